"""Splits and slices of them, in the notation and with the rounding of TFDS.

`train[:90%]`, `train[45000:]` and `train[-10%:]` are cut from the arrays of the
whole split, whatever the source is.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from ws_jax.base import names
from ws_jax.data.request import DataError, Request

# What is evaluated on unless a split is named: the first that is there.
EVAL_SPLITS = ("test", "validation", "val")

_SPLIT = re.compile(
  r"(?P<split>[\w-]+)(\[(?P<start>[^:\]]*):(?P<stop>[^\]]*)\])?"
)
_BOUND = re.compile(r"(?P<number>-?\d[\d_]*(\.\d+)?)(?P<percent>%?)")


@dataclasses.dataclass(frozen=True)
class _Slice:
  """A split, and its bounds as they were written: `"45000"`, `"-10%"`, `""`."""

  split: str
  start: str = ""
  stop: str = ""


def choose(
  request: Request, available: Iterable[str], where: str
) -> tuple[str, str]:
  """Returns the whole splits to train on and to evaluate on.

  Args:
    request: the request with `train_split` and `eval_split`.
    available: the splits that the source has.
    where: the source, for the message.

  Raises:
    DataError: a split is not there or a slice is not well formed.

  Example:
    >>> choose(Request("x", train_split="train[:9]"), ["train", "val"], "x")
    ('train', 'val')
  """
  available = list(available)
  train = _parse(request.train_split or "train", "train_split").split
  if request.eval_split is not None:
    test = _parse(request.eval_split, "eval_split").split
  else:
    there = [split for split in EVAL_SPLITS if split in available]
    test = there[0] if there else EVAL_SPLITS[0]
  for key, split in (("train_split", train), ("eval_split", test)):
    if split not in available:
      raise DataError(_missing(request, key, split, available, where))
  return train, test


def ranges(
  request: Request, splits: tuple[str, str], sizes: Mapping[str, int]
) -> tuple[range, range]:
  """Returns which examples of the whole splits are trained on and evaluated.

  Args:
    request: the request with `train_split` and `eval_split`.
    splits: the whole splits that `choose` returned.
    sizes: the number of examples of each of them.

  Raises:
    DataError: a slice is empty or reaches beyond the split, or the two have
      examples in common.

  Example:
    >>> request = Request("x", train_split="train[:90%]")
    >>> ranges(request, ("train", "test"), {"train": 50, "test": 20})
    (range(0, 45), range(0, 20))
  """
  texts = (request.train_split or splits[0], request.eval_split or splits[1])
  keys = ("train_split", "eval_split")
  train, test = (
    _bounds(text, key, sizes[split])
    for text, key, split in zip(texts, keys, splits, strict=True)
  )
  shared = min(train.stop, test.stop) - max(train.start, test.start)
  if splits[0] == splits[1] and shared > 0 and not request.may_overlap:
    raise DataError(
      f"train_split={texts[0]!r} and eval_split={texts[1]!r} share {shared} "
      "examples: training must not see what is evaluated"
    )
  return train, test


def _parse(text: str, key: str) -> _Slice:
  match = _SPLIT.fullmatch(text) if isinstance(text, str) else None
  if match is None:
    raise DataError(
      f"{key}={text!r} must be the name of a split or a slice of one, such as "
      "train, train[:90%] or train[45000:]"
    )
  return _Slice(match["split"], match["start"] or "", match["stop"] or "")


def _bounds(text: str, key: str, size: int) -> range:
  piece = _parse(text, key)
  units = {bound.endswith("%") for bound in (piece.start, piece.stop) if bound}
  if len(units) == 2:  # TFDS would read `train[10:50%]` as 10 percent.
    raise DataError(
      f"{key}={text!r} mixes examples and percent: give both bounds in one unit"
    )
  start = _position(piece.start, 0, text, key, size)
  stop = _position(piece.stop, size, text, key, size)
  if start >= stop:
    raise DataError(
      f"{key}={text!r} is empty: it runs from {start} to {stop} of the {size} "
      f"examples of {piece.split!r}"
    )
  return range(start, stop)


def _position(bound: str, default: int, text: str, key: str, size: int) -> int:
  """Returns a bound as a position between 0 and the size of the split."""
  if not bound:
    return default
  match = _BOUND.fullmatch(bound)
  if match is None or ("." in bound and not match["percent"]):
    raise DataError(
      f"{key}={text!r}: {bound!r} must be a number of examples or a percentage,"
      " such as 45000 or -10%"
    )
  if match["percent"]:
    position = round(float(match["number"]) * size / 100.0)
  else:
    position = int(match["number"])
  if abs(position) > size:
    raise DataError(
      f"{key}={text!r}: {bound!r} is beyond the {size} examples of the split"
    )
  return position + size if position < 0 else position


def _missing(
  request: Request, key: str, split: str, available: list[str], where: str
) -> str:
  """Returns the message about a split that is not there."""
  if getattr(request, key) is not None:
    return f"{where}: no split {split!r}: {names.suggest(split, available)}"
  have = ", ".join(sorted(available)) or "none"
  return (
    f"{where} has the splits {have}; needed are train, and test or validation: "
    f"say by {key} what to take instead, such as train[90%:]"
  )
