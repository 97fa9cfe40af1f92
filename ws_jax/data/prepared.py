"""Reads what TFDS prepared, without TensorFlow, and keeps it decoded."""

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from ws_jax.base import extras
from ws_jax.data import cache, splits
from ws_jax.data.labels import own_names_of
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_memory,
  unknown_key,
)


def open_set(folder: pathlib.Path, request: Request) -> Source:
  """Returns the source of a prepared set, by its metadata alone.

  Args:
    folder: a folder that `find.find` returned.
    request: the splits and keys that are wanted.

  Raises:
    DataError: it is not image classification and no keys are asked for, a
      split or key is not there, examples differ in shape, or they do not fit in
      memory.
  """
  extras.need("data", by=f"data set {request.name!r}")
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS raises whatever its parsers raise.
    raise DataError(f"cannot read {folder}: {error}") from error
  info: Any = builder.info  # What it holds depends on the files.
  input_key, label_key = _choose_keys(folder, info, request)
  inputs, label = info.features[input_key], info.features[label_key]
  pair = splits.choose(request, info.splits, str(folder))
  sizes = {split: info.splits[split].num_examples for split in pair}
  dtype = _dtype(inputs)
  shape = tuple(inputs.shape)
  rows = int(np.prod(shape)) * dtype.itemsize
  check_memory(folder, sum(sizes.values()) * rows)
  num_classes = getattr(label, "num_classes", None)
  classes = ()
  if num_classes is not None:
    classes = own_names_of(label, str(folder))

  def read() -> dict[str, Arrays]:
    return read_arrays(folder, builder, (input_key, label_key), tuple(sizes))

  return Source(
    name=request.name,
    splits=pair,
    sizes=sizes,
    input_key=input_key,
    label_key=label_key,
    input_shape=shape,
    input_dtype=str(dtype),
    num_classes=num_classes,
    classes=classes,
    read=read,
  )


def _choose_keys(
  folder: pathlib.Path, info: Any, request: Request
) -> tuple[str, str]:
  """Returns the keys of inputs and labels, whose features suit training.

  Without keys in the request a set must be image classification. A key that is
  asked for may also hold numbers of another kind.
  """
  asked = request.input_key, request.label_key
  for what, key in zip(("input_key", "label_key"), asked, strict=True):
    if key is not None and key not in info.features:
      raise unknown_key(str(folder), what, key, info.features)
  own: Any = info.supervised_keys or ()
  if None in asked and len(own) != 2:
    raise DataError(
      f"{folder} is not a set of inputs with one label each: say by input_key "
      f"and label_key which of {', '.join(info.features)} they are"
    )
  input_key = asked[0] or own[0]
  label_key = asked[1] or own[1]
  _check_features(folder, info.features, (input_key, label_key), asked)
  return input_key, label_key


def _check_features(
  folder: pathlib.Path,
  features: Any,
  keys: tuple[str, str],
  asked: tuple[str | None, str | None],
) -> None:
  import tensorflow_datasets as tfds

  kinds = tfds.features.Image, tfds.features.ClassLabel
  for key, kind, given in zip(keys, kinds, asked, strict=True):
    feature = features[key]
    tensor = isinstance(feature, tfds.features.Tensor)
    number = tensor and _dtype(feature).kind in "biuf"
    if not isinstance(feature, kind) and not (given and number):
      said = " and ".join(f"{k!r} {type(features[k]).__name__}" for k in keys)
      raise DataError(
        f"{folder} is not image classification: its inputs and labels are "
        f"{said}; other keys are given as input_key and label_key"
      )
    image = isinstance(feature, tfds.features.Image)
    dtype = _dtype(feature)
    if None in feature.shape or (image and dtype != np.uint8):
      raise DataError(
        f"{folder} holds {key!r} of {tuple(feature.shape)} {dtype}; training "
        "in memory needs uint8 images of one size (None: sizes differ)"
      )


def _dtype(feature: Any) -> np.dtype:
  return np.dtype(feature.np_dtype)


def read_arrays(
  folder: pathlib.Path,
  builder: Any,
  keys: tuple[str, str],
  wanted_splits: tuple[str, ...],
) -> dict[str, Arrays]:
  """Returns the arrays of whole splits, from the cache if they are there.

  Args:
    folder: the folder of the prepared set.
    builder: the TFDS builder that reads it.
    keys: the keys of the inputs and of the labels.
    wanted_splits: the splits to read.

  Raises:
    DataError: a record cannot be decoded.
  """
  path, fingerprint = folder / cache.CACHE_NAME, _fingerprint(folder)
  wanted = [f"{split}_{key}" for split in wanted_splits for key in keys]
  kept = cache.read(path, fingerprint, wanted)
  if kept is None:
    kept = {
      f"{split}_{key}": array
      for split in wanted_splits
      for key, array in _decode(folder, builder, keys, split).items()
    }
    # Other keys and splits stay for the runs that ask for them.
    others = cache.read(path, fingerprint) or {}
    cache.write(path, fingerprint, others | kept)
  return {
    split: {key: kept[f"{split}_{key}"] for key in keys}
    for split in wanted_splits
  }


def _fingerprint(folder: pathlib.Path) -> str:
  """Returns a text that changes when the set is prepared again."""
  digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
  for path in sorted(folder.iterdir()):
    if "record" in path.name:
      stat = path.stat()
      digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
  return digest.hexdigest()


def _decode(
  folder: pathlib.Path, builder: Any, keys: tuple[str, str], split: str
) -> Arrays:
  size = builder.info.splits[split].num_examples
  logging.info("decoding %d examples of %s, once", size, folder)
  arrays = {}
  for key in keys:
    feature = builder.info.features[key]
    # Class numbers have 32 bits everywhere here; those of TFDS have 64.
    label = key == keys[1] and hasattr(feature, "num_classes")
    dtype = np.int32 if label else _dtype(feature)
    arrays[key] = np.empty((size, *feature.shape), dtype)
  count = 0
  for example in examples(folder, builder, split):
    for key, array in arrays.items():
      array[count] = example[key]
    count += 1
  if count != size:
    raise DataError(f"{folder}: split {split!r} has {count} examples of {size}")
  return arrays


def examples(
  folder: pathlib.Path, builder: Any, split: str
) -> Iterator[dict[str, Any]]:
  """Yields decoded examples in the order in which they are stored."""
  metadata = builder.info
  stored = getattr(metadata.file_format, "value", metadata.file_format)
  if stored == "array_record":
    yield from builder.as_data_source(split)
  elif stored == "tfrecord":  # What TFDS writes unless told otherwise.
    for path in metadata.splits[split].filepaths:
      for record in _tfrecords(pathlib.Path(path)):
        yield metadata.features.deserialize_example_np(record)
  else:
    raise DataError(
      f"{folder} is stored as {stored}; delete it and prepare it again with "
      "scripts/prepare_data.py, which writes array_record"
    )


def _tfrecords(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file; checksums are not compared."""
  with open(path, "rb") as file:
    while header := file.read(12):  # Length in 8 bytes, its checksum in 4.
      length = int.from_bytes(header[:8], "little")
      record = file.read(length)
      if len(record) + len(file.read(4)) != length + 4:
        raise DataError(f"{path} is cut off: delete its folder, prepare again")
      yield record
