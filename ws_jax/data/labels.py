"""Class numbers: how many there are, and whether each example has one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from ws_jax.data.request import DataError

# More than any set has.
_MOST_CLASSES = 10_000_000


def names_of(label: Any, where: str) -> tuple[str, ...]:
  """Returns the names of the classes of a set that TFDS prepared.

  TFDS calls classes without names "0", "1", ..., however many a damaged file
  says there are.

  Args:
    label: the `ClassLabel` of TFDS.
    where: the source, for the message.

  Raises:
    DataError: there are more classes than any set has.
  """
  if label.num_classes > _MOST_CLASSES:
    raise DataError(
      f"{where}: {label.num_classes:,} classes are more than {_MOST_CLASSES:,}"
    )
  return tuple(label.names)


def own_names_of(label: Any, where: str) -> tuple[str, ...]:
  """Returns what `names_of` does, but () for those that TFDS made up."""
  names = names_of(label, where)
  return () if names == tuple(map(str, range(len(names)))) else names


def count_classes(
  labels: Mapping[str, np.ndarray], where: str, given: int | None
) -> int | None:
  """Returns the number of classes; None where labels are not class numbers.

  Class numbers are one integer for each example. Without a given number the
  classes are 0 to the largest label of all splits.

  Args:
    labels: the labels of each whole split.
    where: the source, for the message.
    given: the number of classes, where the source says it.

  Raises:
    DataError: a label is negative or not below the given number, or there are
      more classes than examples.
  """
  first = next(iter(labels.values()))
  if not are_numbers_of_classes(first):
    return None
  for split, values in labels.items():
    if given is None:
      _refuse(values, values < 0, where, split, "0 or more")
    else:
      check(values, where, split, given)
  if given is not None:
    return given
  largest = max(int(values.max()) for values in labels.values())
  size = sum(len(values) for values in labels.values())
  if largest >= size:
    raise DataError(
      f"{where}: label {largest} makes {largest + 1} classes of {size} "
      "examples: number the classes 0, 1, 2, ... or name them in 'classes'"
    )
  if min(int(values.min()) for values in labels.values()) > 0:
    logging.warning("%s: no example is of class 0, the first class", where)
  return largest + 1


def are_numbers_of_classes(labels: np.ndarray) -> bool:
  """Returns whether labels are one integer for each example."""
  return labels.ndim == 1 and labels.dtype.kind in "biu"


def check(
  labels: np.ndarray, where: str, split: str, num_classes: int | None
) -> None:
  """Checks the labels of a whole split.

  Args:
    labels: the labels.
    where: the source, for the message.
    split: the name of the split, for the message.
    num_classes: the number of classes; None where labels are not class
      numbers.

  Raises:
    DataError: a class number is negative or not below `num_classes`, or another
      label is not a number; the message gives the first such label.
  """
  if num_classes is not None:
    wrong = (labels < 0) | (labels >= num_classes)
    _refuse(labels, wrong, where, split, f"in [0, {num_classes})")
  elif labels.dtype.kind == "f":
    _refuse(labels, np.isnan(labels), where, split, "a number")


def _refuse(
  labels: np.ndarray, wrong: np.ndarray, where: str, split: str, wanted: str
) -> None:
  if wrong.any():
    index = tuple(np.argwhere(wrong)[0].tolist())
    place = index[0] if len(index) == 1 else list(index)
    raise DataError(
      f"{where}: label {labels[index]} of example {place} of {split!r} must be "
      f"{wanted}"
    )


def warn_of_one(
  values: np.ndarray, num_classes: int | None, where: str
) -> None:
  """Warns if all training examples are of one class of several."""
  if (
    num_classes is not None and num_classes > 1 and (values == values[0]).all()
  ):
    logging.warning(
      "%s: every training example is of class %d: nothing else can be learned",
      where,
      values[0],
    )


def warn_of_unseen(
  whole: np.ndarray, cut: np.ndarray, num_classes: int | None, what: str
) -> None:
  """Warns of classes of a whole split of which a slice has no example.

  Arrays that are sorted by class are cut so, and training on the slice then
  never sees some classes.
  """
  if num_classes is None:
    return
  unseen = sorted(set(np.unique(whole).tolist()) - set(np.unique(cut).tolist()))
  if unseen:
    logging.warning(
      "%s has no example of class %s: shuffle arrays that are sorted by class",
      what,
      ", ".join(map(str, unseen[:10])) + (", ..." if len(unseen) > 10 else ""),
    )
