"""A user's arrays in an .npz file: `train_x`, `train_y`, `test_x`, `test_y`.

Sizes and dtypes come from the headers of the stored arrays, so that a file of
many gigabytes is described in milliseconds. Nothing is ever unpickled.
"""

import dataclasses
import io
import math
import pathlib
import zipfile
import zlib

import numpy as np

from ws_jax.data import arrays, labels, splits
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_classes,
  check_memory,
)

CLASSES = "classes"  # An array with the name of each class; optional.

# Longer headers come from no array of numbers. A header is read up to here
# only: its own idea of its length may be billions.
_MAX_HEADER = 10_000

_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class _Stored:
  """An array as its header describes it."""

  shape: tuple[int, ...]
  dtype: np.dtype


def open_file(path: pathlib.Path, request: Request) -> Source:
  """Returns the source of an .npz file.

  Of the arrays only labels that are class numbers are read, which gives the
  number of classes.

  Args:
    path: the file, with an array `{split}_{key}` for each split and key.
    request: the splits and keys that are wanted.

  Raises:
    DataError: the file cannot be read, does not have these arrays, or they do
      not suit training.
  """
  stored = read_headers(path)
  names = _split_names(stored)
  if not names:
    have = ", ".join(sorted(stored)) or "none"
    raise DataError(
      f"{path} has the arrays {have}; needed are train_x, train_y, test_x and "
      "test_y, with whatever split and key before and behind the '_'"
    )
  pair = splits.choose(request, names, str(path))
  headers = {split: _of_split(stored, split) for split in dict.fromkeys(pair)}
  input_key, label_key = arrays.choose_keys(request, headers, str(path))
  shape, dtype, kept = arrays.check_layout(
    headers, input_key, label_key, str(path)
  )
  wanted = [f"{split}_{key}" for split in headers for key in kept]
  check_memory(path, sum(_num_bytes(stored[name]) for name in wanted))
  classes = _read_classes(path, stored)
  label = next(iter(headers.values()))[label_key]
  num_classes = None
  if len(label.shape) == 1 and label.dtype.kind in "biu":
    by_split = {split: _read(path, f"{split}_{label_key}") for split in headers}
    given = len(classes) if classes else None
    num_classes = labels.count_classes(by_split, str(path), given)

  def read() -> dict[str, Arrays]:
    return {
      split: {key: _read(path, f"{split}_{key}") for key in kept}
      for split in headers
    }

  return Source(
    name=str(request.name),
    splits=pair,
    sizes={
      split: len_of[label_key].shape[0] for split, len_of in headers.items()
    },
    input_key=input_key,
    label_key=label_key,
    input_shape=shape,
    input_dtype=dtype,
    num_classes=num_classes,
    classes=classes,
    read=read,
  )


def read_all(path: pathlib.Path) -> Arrays:
  """Returns all arrays of a file.

  Raises:
    DataError: the file is not an .npz file, an array in it is damaged, or they
      do not fit in memory.
  """
  stored = read_headers(path)
  check_memory(path, sum(map(_num_bytes, stored.values())))
  return {name: _read(path, name) for name in stored}


def read_headers(path: pathlib.Path) -> dict[str, _Stored]:
  """Returns shape and dtype of each array of a file, without reading any.

  Raises:
    DataError: the file is not an .npz file, or an array in it is damaged.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      return {
        entry.filename.removesuffix(".npy"): _read_header(archive, entry, path)
        for entry in archive.infolist()
        if entry.filename.endswith(".npy")
      }
  except (*_UNREADABLE, RuntimeError) as error:  # Encrypted, odd compression.
    raise DataError(f"{path} is not a readable .npz file: {error}") from error


def _read_header(
  archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: pathlib.Path
) -> _Stored:
  with archive.open(entry) as file:
    start = io.BytesIO(file.read(_MAX_HEADER))
  try:
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
      shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    else:  # Version 3 differs in the names of fields, which are refused later.
      shape, _, dtype = np.lib.format.read_array_header_2_0(start)
  except Exception as error:  # NumPy parses the header as a Python literal.
    raise DataError(
      f"{path}: {entry.filename!r} does not begin like an array of NumPy"
    ) from error
  stored = _Stored(shape, dtype)
  # The length of a pickle does not follow from its shape.
  size = start.tell() + _num_bytes(stored)
  if size != entry.file_size and not dtype.hasobject:
    raise DataError(
      f"{path}: {entry.filename!r} has {entry.file_size} bytes, and {size} by "
      "its header: the file is damaged"
    )
  return stored


def _num_bytes(stored: _Stored) -> int:
  return math.prod(stored.shape) * stored.dtype.itemsize


def _split_names(stored: dict[str, _Stored]) -> list[str]:
  """Returns all that could be the name of a split: what ends before a `_`."""
  return sorted(
    {
      name[:end]
      for name in stored
      for end, letter in enumerate(name)
      if letter == "_" and end
    }
  )


def _of_split(stored: dict[str, _Stored], split: str) -> dict[str, _Stored]:
  prefix = f"{split}_"
  return {
    name.removeprefix(prefix): array
    for name, array in stored.items()
    if name.startswith(prefix)
  }


def _read_classes(
  path: pathlib.Path, stored: dict[str, _Stored]
) -> tuple[str, ...]:
  """Returns the names in the array `classes`, or () where there is none."""
  if CLASSES not in stored:
    return ()
  header = stored[CLASSES]
  if header.dtype.kind != "U" or len(header.shape) != 1:
    raise DataError(
      f"{path}: {CLASSES!r} must be text, one name for each class, not "
      f"{header.dtype} {list(header.shape)}"
    )
  classes = tuple(_read(path, CLASSES).tolist())
  check_classes(str(path), classes)
  return classes


def _read(path: pathlib.Path, name: str) -> np.ndarray:
  try:
    with np.load(path, allow_pickle=False) as archive:
      return archive[name]
  except Exception as error:  # zipfile, zlib and NumPy each have their own.
    raise DataError(
      f"{path}: array {name!r} cannot be read: {error}"
    ) from error
