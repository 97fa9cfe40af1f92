"""Which images a name stands for, where they are not all decoded beforehand.

`open_stream` looks at names and places alone: of a folder of images, of tar
files, or of a set that TFDS prepared as array_record or TFRecord.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from ws_jax.base import extras
from ws_jax.data import find, folder, splits
from ws_jax.data.labels import own_names_of
from ws_jax.data.request import DataError, Request, unknown_key
from ws_jax.data.stream import shards
from ws_jax.data.stream.options import Options
from ws_jax.data.stream.records import ArrayRecords, Files, Packed, Records

_RECORDS = ("array_record", "tfrecord")


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """A training and an evaluation split whose images are decoded when needed.

  Attributes:
    options: how they are decoded.
    splits: the whole splits that training and evaluation are cut from.
    records: the images of each.
    parts: the positions in them to train on, and to evaluate on.
    input_key: the key of the images.
    label_key: the key of the labels.
    num_classes: labels are in `[0, num_classes)`.
    classes: the names of the classes, or ().
    left_out: a line for each thing that is missing and was to be skipped.
  """

  options: Options
  splits: tuple[str, str]
  records: dict[str, Records]
  parts: tuple[range, range]
  input_key: str
  label_key: str
  num_classes: int
  classes: tuple[str, ...]
  left_out: tuple[str, ...] = ()


def open_stream(request: Request) -> Stream:
  """Returns the images that a request with `stream` options stands for.

  Args:
    request: the name of a prepared set, or the path of a folder that holds
      `SPLIT/CLASS/*.jpg`, or `SPLIT-*.tar`, or `SPLIT/*.tar`.

  Raises:
    DataError: there are no such images, or a file is missing and
      `on_error` is "raise".
  """
  extras.need("stream", by="data.source=stream")
  name = request.name
  if not isinstance(name, (str, os.PathLike)):
    raise DataError(
      f"data.source=stream takes a name or a path, not {repr(name)[:60]}"
    )
  if request.options is not None:
    raise DataError("data.source=stream has images alone; this task asks more")
  text = os.fspath(name)
  path = _place(text, isinstance(name, os.PathLike), request.dir)
  left_out: list[str] = []
  skip = request.stream.on_error == "skip"
  report = left_out.append if skip else shards.raise_error
  try:
    if (path / "dataset_info.json").exists():
      opened = _open_prepared(path, request, report)
    elif tars := _tars(path):
      opened = _open_tars(path, tars, request, report)
    else:
      opened = _open_folder(path, request, report)
  except OSError as error:
    raise DataError(f"cannot list {path}: {error}") from error
  for line in left_out:
    logging.warning("left out: %s", line)
  return dataclasses.replace(opened, left_out=tuple(left_out))


def _place(text: str, is_path: bool, data_dir: str | None) -> pathlib.Path:
  """Returns the folder that a name or a path stands for."""
  begins = is_path or text.startswith(("/", ".", "~"))
  path = pathlib.Path(text).expanduser()
  if begins:  # The folder of a prepared set may be named without its version.
    found = find.find(path.parent, path.name)
  else:
    prepared = find.data_folder(data_dir)
    found = find.find(prepared, text)
    if found is None and _tars(prepared / text):
      return prepared / text
  if found is not None:
    return found
  if path.is_dir() and ("/" in text or begins):
    return path
  if begins:
    raise DataError(f"there is no folder {path.absolute()}")
  raise find.not_found(text, data_dir)


def _open_folder(
  path: pathlib.Path, request: Request, report: shards.Report
) -> Stream:
  """Opens `DIR/SPLIT/CLASS/*.jpg`; the classes are those of either split."""
  pair = splits.choose(request, folder.subfolders(path), str(path))
  there = {split: folder.subfolders(path / split) for split in {*pair}}
  classes = sorted(set().union(*there.values()))
  if not classes:
    raise DataError(f"{path / pair[0]} holds no folder; a class has one each")
  records: dict[str, Records] = {}
  for split in dict.fromkeys(pair):
    names, labels = [], []
    for label, name in enumerate(classes):
      found = []
      if name in there[split]:
        found = folder.image_files(path / split / name)
      if not found:
        report(f"{path / split / name} holds no image")
      names += [f"{name}/{file.name}" for file in found]
      labels += [label] * len(found)
    if not names:
      raise DataError(f"{path / split} holds no image")
    # By a hash, as in memory: else `train[:90%]` would leave classes out.
    keys = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
    order = sorted(range(len(names)), key=keys.__getitem__)
    records[split] = Files(
      path / split,
      [names[i] for i in order],
      np.asarray([labels[i] for i in order], np.int32),
    )
  return _stream(request, pair, records, len(classes), tuple(classes))


def _tars(path: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Returns the tar files of each split of a folder; {} if there are none."""
  found: dict[str, list[pathlib.Path]] = {}
  for file in sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]):
    split = file.parent.name
    if file.parent == path:
      split = file.stem.partition("-")[0]
    found.setdefault(split, []).append(file)
  return found


def _open_tars(
  path: pathlib.Path,
  tars: dict[str, list[pathlib.Path]],
  request: Request,
  report: shards.Report,
) -> Stream:
  pair = splits.choose(request, tars, str(path))
  records: dict[str, Records] = {}
  classes: dict[str, tuple[str, ...]] = {}
  most = 0
  for split in dict.fromkeys(pair):
    _report_missing(tars[split], report)
    kept = path / f"{split}.ws_jax_index.npz"
    index, classes[split] = shards.tar_index(tars[split], kept, report)
    most = max(most, int(index["label"].max()) + 1)
    records[split] = Packed(tars[split], index)
  one, other = classes[pair[0]], classes[pair[1]]
  if one != other:
    differ = ", ".join(sorted({*one} ^ {*other}))
    raise DataError(f"{path}: the splits differ in classes: {differ}")
  return _stream(request, pair, records, most, one)


def _open_prepared(
  path: pathlib.Path, request: Request, report: shards.Report
) -> Stream:
  """Opens a set that TFDS prepared, by its metadata."""
  extras.need("data", by=f"data set {request.name!r}")
  import tensorflow_datasets as tfds

  try:
    info: Any = tfds.builder_from_directory(path).info
  except Exception as error:  # TFDS raises whatever its parsers raise.
    raise DataError(f"cannot read {path}: {error}") from error
  kind = getattr(info.file_format, "value", info.file_format)
  if kind not in _RECORDS:
    raise DataError(f"{path} is stored as {kind}, not {' or '.join(_RECORDS)}")
  keys = _keys(path, info, request, tfds)
  label = info.features[keys[1]]
  classes = own_names_of(label, str(path))
  pair = splits.choose(request, info.splits, str(path))
  records: dict[str, Records] = {}
  for split in dict.fromkeys(pair):
    files, sizes = _shards_of(info.splits[split], report)
    if kind == "tfrecord":
      kept = path / f"{split}.ws_jax_index.npz"
      index = shards.tfrecord_index(files, kept, report)
      records[split] = Packed(files, index, keys, label.num_classes)
    else:
      whole = [
        _is_whole(*one, report) for one in zip(files, sizes, strict=True)
      ]
      files = [file for file, fine in zip(files, whole, strict=True) if fine]
      sizes = [size for size, fine in zip(sizes, whole, strict=True) if fine]
      if not files:
        raise DataError(f"{path}: no file of {split!r} can be read")
      records[split] = ArrayRecords(files, sizes, keys, label.num_classes)
  return _stream(request, pair, records, label.num_classes, classes, keys)


def _keys(path, info, request, tfds) -> tuple[str, str]:
  """Returns the keys of images and labels."""
  own = info.supervised_keys or ("image", "label")
  keys = request.input_key or own[0], request.label_key or own[1]
  kinds = tfds.features.Image, tfds.features.ClassLabel
  whats = "input_key", "label_key"
  for what, key, feature in zip(whats, keys, kinds, strict=True):
    if key not in info.features:
      raise unknown_key(str(path), what, key, info.features)
    if not isinstance(info.features[key], feature):
      raise DataError(
        f"{path}: {key!r} is {type(info.features[key]).__name__}; a stream has"
        f" an Image and a ClassLabel, chosen by input_key and label_key"
      )
  return keys


def _shards_of(
  split: Any, report: shards.Report
) -> tuple[list[pathlib.Path], list[int]]:
  """Returns the files of a split that are there, with their lengths."""
  files, sizes = [], []
  try:
    listed = [*zip(split.filepaths, split.shard_lengths, strict=True)]
  except Exception as error:  # TFDS makes the names of what the set says.
    line = " ".join(str(error).split())
    raise DataError(f"{split.name!r} has no files: {line}") from error
  if not listed:
    raise DataError(f"{split.name!r} has no files in dataset_info.json")
  for file, size in listed:
    if pathlib.Path(file).exists():
      files.append(pathlib.Path(file))
      sizes.append(size)
    else:
      report(f"{file} is missing, with {size} images")
  if not files:
    raise DataError(f"{split.filepaths[0]} and all others are missing")
  return files, sizes


def _is_whole(file: pathlib.Path, size: int, report: shards.Report) -> bool:
  """Returns whether an array_record can be opened and is as long as it was."""
  from array_record.python import array_record_module

  try:
    reader = array_record_module.ArrayRecordReader(os.fspath(file))
    found = reader.num_records()
    reader.close()
  except Exception as error:  # Its parser raises RuntimeError and others.
    reason = " ".join(str(error).split())
    report(f"{file} is cut off or damaged, with {size} images: {reason}")
    return False
  if found != size:
    report(f"{file} has {found} images of {size}")
  return found == size


def _report_missing(paths: list[pathlib.Path], report: shards.Report) -> None:
  for name in shards.missing(path.name for path in paths):
    report(f"{paths[0].parent / name} is missing")


def _stream(
  request: Request,
  pair: tuple[str, str],
  records: dict[str, Records],
  num_classes: int,
  classes: tuple[str, ...],
  keys: tuple[str, str] = (folder.INPUT_KEY, folder.LABEL_KEY),
) -> Stream:
  for what, own in zip(("input_key", "label_key"), keys, strict=True):
    if getattr(request, what) not in (None, own):
      where, key = str(request.name), getattr(request, what)
      raise unknown_key(where, what, key, [own])
  sizes = {split: len(images) for split, images in records.items()}
  parts = splits.ranges(request, pair, sizes)
  options = request.stream
  return Stream(options, pair, records, parts, *keys, num_classes, classes)
