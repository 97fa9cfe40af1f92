"""What a classifier answered to each example of its last evaluation.

A run keeps it as `predictions.npz`, from which a report makes the confusion
matrix and the accuracy of each group, such as that of each speaker.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ws_jax.base import disk
from ws_jax.data import npz

FILE_NAME = "predictions.npz"
_TEXTS = ("classes", "groups")


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """The answers of a classifier.

  Attributes:
    label: Class of each example, int32 `[N]`.
    answer: Class that the model chose, int32 `[N]`.
    group: Group of each example, int32 `[N]`; -1 where it is not known.
    classes: Names of the classes; numbers where the data have no names.
    groups: Names of the groups, by number; empty without groups.
    group_key: Word for a group, such as "speaker"; "" without groups.
  """

  label: np.ndarray
  answer: np.ndarray
  group: np.ndarray
  classes: tuple[str, ...]
  groups: tuple[str, ...] = ()
  group_key: str = ""

  @property
  def confusion(self) -> np.ndarray:
    """Counts examples by class and answer, int `[classes, classes]`.

    Example:
      >>> zero, one = np.array([0, 1, 1]), np.array([0, 0, 1])
      >>> Predictions(zero, one, zero, ("a", "b")).confusion.tolist()
      [[1, 0], [1, 1]]
    """
    counts = np.zeros((len(self.classes),) * 2, int)
    np.add.at(counts, (self.label, self.answer), 1)
    return counts

  @property
  def by_group(self) -> dict[str, tuple[int, int]]:
    """Counts for each group its right answers and its examples, by name."""
    counts = {}
    for number, name in enumerate(self.groups):
      mine = self.group == number
      if mine.any():
        right = int((self.label == self.answer)[mine].sum())
        counts[name] = right, int(mine.sum())
    return counts

  def write(self, workdir: pathlib.Path) -> None:
    """Writes `predictions.npz`, whole or not at all."""
    content: dict[str, Any] = {
      name: np.asarray(value, "U") if name in _TEXTS else np.asarray(value)
      for name, value in vars(self).items()
    }
    with disk.whole(workdir / FILE_NAME) as file:
      np.savez_compressed(file, **content)


def gather(found: Sequence[jax.Array], info: Any) -> Predictions:
  """Puts the answers of all batches together, without the padding.

  Args:
    found: Label, answer and group, int32 `[3, B]` of each batch; labels of
      padding are -1.
    info: What is known of the data set, a `ws_jax.data.Info`.
  """
  rows = np.concatenate(jax.device_get(list(found)), axis=1)
  label, answer, group = rows[:, rows[0] >= 0]
  classes = info.classes or tuple(map(str, range(info.num_classes)))
  known = info.groups if (group >= 0).any() else ()
  key = info.group_key if known else ""
  return Predictions(label, answer, group, classes, known, key)


def read(workdir: pathlib.Path) -> Predictions | None:
  """Returns what a run kept; None if it kept nothing.

  Raises:
    ValueError: the file is damaged; the message names it.
  """
  path = workdir / FILE_NAME
  if not path.exists():
    return None
  loaded: dict[str, Any] = npz.read_all(path)
  fields = {field.name for field in dataclasses.fields(Predictions)}
  if loaded.keys() != fields or not _fits(loaded):
    raise ValueError(
      f"{path}: is damaged: it does not hold what a run answered"
    )
  loaded |= {name: tuple(loaded[name].tolist()) for name in _TEXTS}
  return Predictions(**loaded | {"group_key": str(loaded["group_key"])})


def _fits(loaded: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the arrays of a file fit each other."""
  texts = [loaded[name] for name in _TEXTS]
  if any(x.ndim != 1 or x.size and x.dtype.kind != "U" for x in texts):
    return False
  classes, groups = map(len, texts)
  numbers = [loaded[name] for name in ("label", "answer", "group")]
  if len({x.shape for x in numbers}) > 1 or numbers[0].ndim != 1:
    return False
  limits = ((0, classes), (0, classes), (-1, groups))
  return loaded["group_key"].ndim == 0 and all(
    x.dtype.kind in "iu" and ((low <= x) & (x < high)).all()
    for x, (low, high) in zip(numbers, limits, strict=True)
  )
