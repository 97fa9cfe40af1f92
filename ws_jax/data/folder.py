"""A user's folder of images: `DIR/{train,test}/CLASS/*.png` or `*.jpg`.

Every image is decoded once, into one uint8 array for each split, which is kept
by `cache.py` for the next start.
"""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from ws_jax.data import cache, images, splits
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_memory,
  unknown_key,
)

SUFFIXES = (".png", ".jpg", ".jpeg")
INPUT_KEY, LABEL_KEY = "image", "label"


@dataclasses.dataclass(frozen=True)
class _Split:
  """The files of a split, in the order of the arrays.

  Attributes:
    files: paths relative to the folder of the split, `CLASS/NAME`.
    labels: the class number of each file.
    fingerprint: the names, sizes and times of the files as one text.
  """

  folder: pathlib.Path
  files: list[str]
  labels: np.ndarray
  fingerprint: str


def open_folder(path: pathlib.Path, request: Request) -> Source:
  """Returns the source of a folder of images.

  Files are listed, and the first image is looked at for its size; no image is
  decoded.

  Args:
    path: the folder; a folder in it is a split, and a folder in that a class.
    request: the splits that are wanted.

  Raises:
    DataError: a split or class is missing or empty, the splits have different
      classes, or the images do not fit in memory.
  """
  _check_keys(path, request)
  try:
    pair = splits.choose(request, subfolders(path), str(path))
    classes = {split: subfolders(path / split) for split in dict.fromkeys(pair)}
    _check_equal(path, classes)
    listed = {split: _list(path / split, classes[split]) for split in classes}
  except OSError as error:
    raise DataError(f"cannot list {path}: {error}") from error
  first = listed[pair[0]].folder / listed[pair[0]].files[0]
  shape = images.read_shape(first)
  sizes = {split: len(part.files) for split, part in listed.items()}
  check_memory(path, sum(sizes.values()) * int(np.prod(shape)))

  def read() -> dict[str, Arrays]:
    return {split: _read(part, first, shape) for split, part in listed.items()}

  return Source(
    name=str(request.name),
    splits=pair,
    sizes=sizes,
    input_key=INPUT_KEY,
    label_key=LABEL_KEY,
    input_shape=shape,
    input_dtype="uint8",
    num_classes=len(classes[pair[0]]),
    classes=tuple(classes[pair[0]]),
    read=read,
  )


def _check_keys(path: pathlib.Path, request: Request) -> None:
  for what, own in (("input_key", INPUT_KEY), ("label_key", LABEL_KEY)):
    key = getattr(request, what)
    if key not in (None, own):
      raise unknown_key(f"{path}, a folder of images", what, key, [own])


def subfolders(path: pathlib.Path) -> list[str]:
  """Returns the names of the folders in a folder, sorted; no hidden ones."""
  with os.scandir(path) as entries:
    found = [entry.name for entry in entries if entry.is_dir()]
  return sorted(name for name in found if not name.startswith("."))


def image_files(path: pathlib.Path) -> list[os.DirEntry[str]]:
  """Returns the image files in a folder, in no order; no hidden ones."""
  with os.scandir(path) as entries:
    return [
      entry
      for entry in entries
      if entry.name.lower().endswith(SUFFIXES)
      and not entry.name.startswith(".")
      and not entry.is_dir()
    ]


def _check_equal(path: pathlib.Path, classes: dict[str, list[str]]) -> None:
  for split, names in classes.items():
    if not names:
      raise DataError(
        f"{path / split} holds no folder; needed is one for each class, with "
        "its images"
      )
  if len(classes) == 2:
    (one, ours), (other, theirs) = classes.items()
    only = [
      f"only {split!r} has {', '.join(sorted(extra))}"
      for split, extra in (
        (one, set(ours) - set(theirs)),
        (other, set(theirs) - set(ours)),
      )
      if extra
    ]
    if only:
      raise DataError(
        f"{path}: the splits differ in classes: {'; '.join(only)}"
      )


def _list(folder: pathlib.Path, classes: list[str]) -> _Split:
  """Lists the images of a split with their labels.

  Files are ordered by a hash of their names. By name they would be sorted by
  class, and a slice such as `train[:90%]` would leave whole classes out.
  """
  found = []
  for label, name in enumerate(classes):
    images = [
      (f"{name}/{entry.name}", label, entry.stat())
      for entry in image_files(folder / name)
    ]
    if not images:
      raise DataError(
        f"{folder / name} holds no image: needed are files that end in "
        f"{', '.join(SUFFIXES)}"
      )
    found += images
  found.sort(key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
  digest = hashlib.sha256()
  for file, label, stat in found:
    line = f"{file}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
    digest.update(os.fsencode(line))
  return _Split(
    folder,
    [file for file, _, _ in found],
    np.asarray([label for _, label, _ in found], np.int32),
    digest.hexdigest(),
  )


def _read(
  split: _Split, first: pathlib.Path, shape: tuple[int, int, int]
) -> Arrays:
  """Returns the arrays of a split, from the cache if they are there."""
  kept = split.folder.with_name(f"{split.folder.name}.{cache.CACHE_NAME}")
  arrays = cache.read(kept, split.fingerprint, (INPUT_KEY, LABEL_KEY))
  # The first image is one of the training split, whatever split this is.
  if arrays is None or arrays[INPUT_KEY].shape[1:] != shape:
    arrays = {
      INPUT_KEY: images.decode(split.folder, split.files, first),
      LABEL_KEY: split.labels,
    }
    cache.write(kept, split.fingerprint, arrays)
  return arrays
