"""What arrays of examples must be, wherever they come from.

`choose_keys` and `check_layout` need shapes and dtypes alone, so they work on
the headers of a file as on arrays in memory.
"""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging

from ws_jax.data.request import Arrays, DataError, Request, unknown_key

# Keys that need no `input_key` and `label_key`.
USUAL_KEYS = (("x", "y"), ("image", "label"))

_NUMBERS = "biuf"


class Header(Protocol):
  """What an array and the header of a stored array have in common."""

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns the lengths of the axes."""
    ...

  @property
  def dtype(self) -> Any:
    """Returns the type of an element."""
    ...


Headers = Mapping[str, Mapping[str, Header]]


def choose_keys(
  request: Request, headers: Headers, where: str
) -> tuple[str, str]:
  """Returns the keys of the inputs and of the labels.

  Args:
    request: the request with `input_key` and `label_key`.
    headers: the arrays of each split by key.
    where: the source, for the message.

  Raises:
    DataError: a key is not there, or the keys do not say which is which.
  """
  known = sorted(set.intersection(*(set(keys) for keys in headers.values())))
  asked = {"input_key": request.input_key, "label_key": request.label_key}
  for what, key in asked.items():
    if key is not None and key not in known:
      raise unknown_key(f"{where}, {' and '.join(headers)}", what, key, known)
  inputs, labels = asked.values()
  for usual in USUAL_KEYS:
    if set(usual) <= set(known):
      inputs, labels = inputs or usual[0], labels or usual[1]
      break
  if len(known) == 2 and (inputs is None) != (labels is None):
    other = next(key for key in known if key not in (inputs, labels))
    inputs, labels = inputs or other, labels or other
  if len(known) == 2 and inputs is None:
    first = next(iter(headers.values()))
    flat = [key for key in known if len(first[key].shape) == 1]
    if len(flat) == 1:  # One number an example: the label.
      labels = flat[0]
      inputs = next(key for key in known if key != labels)
  if inputs is None or labels is None or inputs == labels:
    said = " and ".join(
      f"{sorted(arrays)} in {split!r}" for split, arrays in headers.items()
    )
    raise DataError(
      f"{where} has the keys {said}: needed in each are 'x' and 'y', or say by "
      "input_key and label_key which are the inputs and which the labels"
    )
  return inputs, labels


def check_layout(
  headers: Headers, input_key: str, label_key: str, where: str
) -> tuple[tuple[int, ...], str, list[str]]:
  """Checks that inputs and labels are numbers that go together.

  Args:
    headers: the arrays of each split by key.
    input_key: the key of the inputs.
    label_key: the key of the labels.
    where: the source, for the message.

  Returns:
    The shape of one input, with the axis of channels that `finish` adds; the
    dtype of the inputs; and the keys to keep: the two, and further numbers of
    which each split holds one an example.

  Raises:
    DataError: a split is empty, lengths differ, an array holds something else
      than numbers, or the splits do not agree.
  """
  for split, arrays in headers.items():
    for key in (input_key, label_key):
      _check_numbers(arrays[key], f"{where}: {key!r} of {split!r}")
    size, labels = len_of(arrays[input_key]), len_of(arrays[label_key])
    if size != labels:
      raise DataError(
        f"{where}: {split!r} has {size} of {input_key!r} and {labels} of "
        f"{label_key!r}"
      )
    if not size:
      raise DataError(f"{where}: {split!r} holds no example")
  for key in (input_key, label_key):
    kinds = {
      split: f"{_word(arrays[key], key == label_key)} "
      f"{list(arrays[key].shape[1:])}"
      for split, arrays in headers.items()
    }
    if len(set(kinds.values())) > 1:
      said = " and ".join(f"{kinds[split]} in {split!r}" for split in kinds)
      raise DataError(f"{where}: an example of {key!r} is {said}")
  kept = [key for key in _shared(headers) if _fits(headers, key, input_key)]
  left = set(_shared(headers)) - set(kept)
  if left:
    _say(f"{where}: left out, not one number or row an example: {sorted(left)}")
  first = next(iter(headers.values()))[input_key]
  shape = tuple(first.shape[1:])
  if lacks_channels(first):
    _say(f"{where}: {input_key!r} gets an axis of one channel")
    shape += (1,)
  return shape, str(np.dtype(first.dtype).newbyteorder("=")), kept


def len_of(header: Header) -> int:
  """Returns the number of examples."""
  return header.shape[0] if header.shape else 0


def lacks_channels(inputs: Header) -> bool:
  """Returns whether these are grey images without an axis of channels."""
  return inputs.dtype == np.uint8 and len(inputs.shape) == 3


def finish(arrays: Arrays, input_key: str, label_key: str) -> Arrays:
  """Returns the arrays of a split as training takes them.

  Grey images get their axis of channels, class numbers become int32, and
  numbers of the other byte order become native, which JAX asks for.
  """
  done = {
    key: np.asarray(array, np.dtype(array.dtype).newbyteorder("="))
    for key, array in arrays.items()
  }
  if lacks_channels(done[input_key]):
    done[input_key] = done[input_key][..., None]
  if done[label_key].dtype.kind in "biu":
    done[label_key] = done[label_key].astype(np.int32, copy=False)
  return done


def _check_numbers(array: Header, what: str) -> None:
  if not array.shape:
    raise DataError(f"{what} is one number, not one an example")
  kind = np.dtype(array.dtype)
  if kind.hasobject:
    raise DataError(
      f"{what} holds Python objects, not numbers; in a file they would be a "
      "pickle, which is never loaded"
    )
  if kind.kind not in _NUMBERS:
    raise DataError(f"{what} is of dtype {kind}: needed are integers or floats")


def _word(array: Header, label: bool) -> str:
  """Returns the dtype, for labels only whether they are integers or floats."""
  if label:
    return "float" if array.dtype.kind == "f" else "integer"
  return str(array.dtype)


def _shared(headers: Headers) -> list[str]:
  first, *rest = headers.values()
  return [key for key in first if all(key in arrays for arrays in rest)]


def _fits(headers: Headers, key: str, input_key: str) -> bool:
  """Returns whether each split has one row of an array for each example."""
  rows = {np.dtype(arrays[key].dtype).kind for arrays in headers.values()}
  shapes = {tuple(arrays[key].shape[1:]) for arrays in headers.values()}
  return (
    rows <= set(_NUMBERS)
    and len(shapes) == 1
    and all(
      arrays[key].shape and arrays[key].shape[0] == arrays[input_key].shape[0]
      for arrays in headers.values()
    )
  )


@functools.cache
def _say(line: str) -> None:
  """Logs a line, once for each process."""
  logging.warning("%s", line)


def channel_statistics(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and standard deviation of each channel, scaled to [0, 1].

  Args:
    images: uint8 `[N, H, W, C]`.

  Returns:
    Two tuples of `C` numbers, from exact integer sums.
  """
  channels = images.shape[-1]
  flat = images.reshape(len(images), -1)
  total = np.zeros(flat.shape[1], np.int64)
  squares = np.zeros(flat.shape[1], np.int64)
  # Pieces that fit in a processor's cache, summed down the examples: ten times
  # as fast as sums over rows of three channels. 4096 squares fit 32 bits.
  rows = max(1, min(4096, 2**18 // flat.shape[1]))
  for start in range(0, len(flat), rows):
    part = flat[start : start + rows].astype(np.uint16)
    total += part.sum(0, dtype=np.uint32)
    part *= part
    squares += part.sum(0, dtype=np.uint32)
  count = images.size // channels
  mean = total.reshape(-1, channels).sum(0) / count
  variance = squares.reshape(-1, channels).sum(0) / count - mean**2
  # A channel that never varies must not divide by zero later.
  std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 255.0)
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
