"""Numbers that cannot be trained on, found before anything is compiled."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ws_jax.data.request import DataError

# Numbers looked at together: what fits in a processor's cache.
_PIECE = 2**18


def first_not_finite(array: np.ndarray) -> tuple[int, str] | None:
  """Returns the first example that holds a number that is not finite.

  Args:
    array: Array `[N, ...]` of any dtype.

  Returns:
    The example and its number, "nan" or "inf", as float32 holds it; None where
    there is none.

  Example:
    >>> first_not_finite(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    (1, 'nan')
    >>> first_not_finite(np.array([0.0, 1e300]))
    (1, '1e+300, which is inf in float32')
  """
  if array.dtype.kind != "f":
    return None
  for start, part in _pieces(array):
    with np.errstate(over="ignore"):
      wrong = ~np.isfinite(part.astype(np.float32, copy=False))
    if wrong.any():
      place = tuple(np.argwhere(wrong)[0].tolist())
      value = part[place]
      text = f"{value:g}"
      if np.isfinite(value):
        text += ", which is inf in float32"
      return start + place[0], text
  return None


def check_finite(dataset: Any) -> None:
  """Refuses inputs that hold NaN or infinities, in training or evaluation.

  It is for tasks that give them to the model as they are: there one such number
  is a loss that is NaN. A task of the user's own may have a use for them.

  Args:
    dataset: The data, as `ws_jax.data.load` returns them.

  Raises:
    DataError: the message has the first such example.
  """
  key = dataset.info.input_key
  for split, arrays in (("training", dataset.train), ("eval", dataset.test)):
    found = key in arrays and first_not_finite(arrays[key])
    if found:
      example, value = found
      raise DataError(
        f"{dataset.info.name}: {key!r} of example {example} of the {split} set"
        f" holds {value}: remove such examples, or put numbers in their place"
      )


def check_range(array: np.ndarray, where: str, split: str, key: str) -> None:
  """Refuses integers that JAX would cut to 32 bits, and so change.

  Args:
    array: Array `[N, ...]` of any dtype.
    where: Source, for the message.
    split: Name of the split, for the message.
    key: Name of the array, for the message.

  Raises:
    DataError: the message has the first such number.
  """
  if array.dtype.kind not in "iu" or array.dtype.itemsize <= 4:
    return
  limits = np.iinfo(np.int32 if array.dtype.kind == "i" else np.uint32)
  for start, part in _pieces(array):
    wrong = (part < limits.min) | (part > limits.max)
    if wrong.any():
      place = tuple(np.argwhere(wrong)[0].tolist())
      raise DataError(
        f"{where}: {key!r} of example {start + place[0]} of {split!r} holds"
        f" {part[place]}, and integers have 32 bits here: scale them, or give"
        " floats"
      )


def _pieces(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields parts of an array, and the number of the first example of each."""
  rows = max(1, _PIECE // max(1, array[:1].size))
  for start in range(0, len(array), rows):
    yield start, array[start : start + rows]
