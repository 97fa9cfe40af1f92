"""A user's Python object with `train` and `test`, or a function that makes one.

Each split is a dict of arrays of one length, or a pair `(x, y)`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ws_jax.base import names
from ws_jax.data import arrays, labels, splits
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_classes,
)


def open_object(value: Any, request: Request) -> Source:
  """Returns the source of an object with `train` and `test`.

  The object may also say `name`, `num_classes`, `classes`, `mean` and `std`.

  Args:
    value: the object, a mapping with these keys, or a function without
      arguments that returns one of the two.
    request: the splits and keys that are wanted.

  Raises:
    DataError: it has no such splits, or their arrays do not suit training.
  """
  if callable(value) and not split_names(value, request):
    value = _call(value)
  where = _name_of(value, request)
  there = split_names(value, request)
  if not there:
    raise DataError(f"{where}: {_kind(value)} has no 'train' and 'test'")
  pair = splits.choose(request, there, where)
  whole = {
    split: _arrays_of(_get(value, split), f"{where}: {split!r}")
    for split in dict.fromkeys(pair)
  }
  input_key, label_key = arrays.choose_keys(
    _with_own_keys(value, request), whole, where
  )
  shape, dtype, kept = arrays.check_layout(whole, input_key, label_key, where)
  targets = {split: part[label_key] for split, part in whole.items()}
  num_classes, classes = _classes_of(value, targets, where)

  def read() -> dict[str, Arrays]:
    return {
      split: {key: part[key] for key in kept} for split, part in whole.items()
    }

  return Source(
    name=where,
    splits=pair,
    sizes={split: len(values) for split, values in targets.items()},
    input_key=input_key,
    label_key=label_key,
    input_shape=shape,
    input_dtype=dtype,
    num_classes=num_classes,
    classes=classes,
    read=read,
    statistics=_statistics(value, where, shape),
  )


def open_name(name: str, request: Request) -> Source:
  """Returns the source of the object that `package.module:name` stands for.

  Raises:
    DataError: there is no such module or attribute, or see `open_object`.
  """
  try:
    found = names.load_object(name, "data set")
  except ValueError as error:
    raise DataError(str(error)) from None
  return open_object(found, request)


@functools.lru_cache(maxsize=1)
def _call(function: Callable[[], Any]) -> Any:
  # `read_info` and `load` follow each other: what takes long is done once.
  return function()


def split_names(value: Any, request: Request) -> list[str]:
  """Returns the splits that an object has, of those that may be wanted."""
  asked = (request.train_split or "train", request.eval_split or "test")
  known = {str(name).partition("[")[0] for name in asked}
  known |= {"train", *splits.EVAL_SPLITS}
  return [name for name in sorted(known) if _get(value, name) is not None]


def _get(value: Any, name: str) -> Any:
  """Returns an attribute, or an item of a mapping, or None."""
  if isinstance(value, Mapping):
    return value.get(name)
  return getattr(value, name, None)


def _kind(value: Any) -> str:
  return f"an object of type {type(value).__name__}"


def _name_of(value: Any, request: Request) -> str:
  if isinstance(request.name, str):
    return request.name
  name = _get(value, "name")
  return name if isinstance(name, str) else type(value).__name__


def _arrays_of(split: Any, where: str) -> Arrays:
  """Returns the arrays of a split, which may be a pair `(x, y)`."""
  if isinstance(split, (tuple, list)) and len(split) == 2:
    split = dict(zip(("x", "y"), split, strict=True))
  if not isinstance(split, Mapping) or not split:
    raise DataError(
      f"{where} is {_kind(split)}: needed is a dict of arrays, or a pair (x, y)"
    )
  done = {}
  for key, array in split.items():
    try:
      done[key] = np.asarray(array)
    except Exception as error:  # Lists of unequal length, arrays on a device.
      raise DataError(f"{where}: {key!r} is no array: {error}") from error
  lengths = {key: arrays.len_of(array) for key, array in done.items()}
  if len(set(lengths.values())) > 1:
    said = ", ".join(f"{size} of {key!r}" for key, size in lengths.items())
    raise DataError(f"{where} has arrays of different lengths: {said}")
  return done


def _own_info(value: Any) -> Any:
  """Returns the `Info` of a `Dataset`; None for any other object."""
  info = _get(value, "info")
  return info if hasattr(info, "label_key") else None


def _classes_of(
  value: Any, targets: Arrays, where: str
) -> tuple[int | None, tuple[str, ...]]:
  """Returns the number of classes and their names."""
  info = _own_info(value)
  if info is not None:
    return info.num_classes, info.classes
  named, given = _get(value, "classes"), _get(value, "num_classes")
  classes = () if named is None else tuple(map(str, named))
  check_classes(where, classes)
  if classes and given not in (None, len(classes)):
    raise DataError(
      f"{where}: num_classes={given}, and the names of {len(classes)} classes"
    )
  given = len(classes) if classes else given
  return labels.count_classes(targets, where, given), classes


def _with_own_keys(value: Any, request: Request) -> Request:
  """Returns the request with the keys that a `Dataset` says itself."""
  info = _own_info(value)
  return Request(
    request.name,
    input_key=request.input_key or getattr(info, "input_key", None),
    label_key=request.label_key or getattr(info, "label_key", None),
  )


def _statistics(
  value: Any, where: str, shape: tuple[int, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
  """Returns the mean and the deviation that the object says, if it does."""
  mean, std = _get(value, "mean"), _get(value, "std")
  if mean is None or std is None or callable(mean) or not len(mean):
    return None
  mean, std = tuple(map(float, mean)), tuple(map(float, std))
  finite = np.isfinite([*mean, *std]).all()
  if not len(mean) == len(std) == shape[-1] or min(std) <= 0 or not finite:
    raise DataError(
      f"{where}: mean={mean} and std={std} must be one number for each of the "
      f"{shape[-1]} channels, and std above 0"
    )
  return mean, std
