"""Reads what TFDS prepared, without TensorFlow, and keeps it decoded."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from ws_jax.data import cache

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class DataError(ValueError):
  """A data set cannot be had; the message says what to do about it."""


@dataclasses.dataclass(frozen=True)
class Info:
  """What the metadata of a prepared set say.

  Attributes:
    builder: the TFDS builder, able to read and no more.
    image: the key of the image in an example.
    label: the key of the class.
    shape: `(H, W, C)` of every image.
    num_classes: how many classes.
    splits: the TFDS names of the training and the test split.
    sizes: how many examples each of the two has.
  """

  builder: Any
  image: str
  label: str
  shape: tuple[int, int, int]
  num_classes: int
  splits: tuple[str, str]
  sizes: tuple[int, int]


def find(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
  """The folder of the newest prepared version of a set, None if there is none.

  Args:
    data_dir: the folder of all prepared sets.
    name: `set`, `set/config`, either with `:version` behind it.

  Raises:
    DataError: the set is there in several configs and the name says none.
  """
  path, _, version = name.partition(":")
  if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", path):
    return None  # Not a name, or a way out of `data_dir`.
  folder = data_dir / path
  found = _versions(folder, version)
  if found:
    return found[-1]
  if not folder.is_dir():
    return None
  configs = {
    child.name: _versions(child, version)
    for child in sorted(folder.iterdir())
    if child.is_dir()
  }
  configs = {config: found for config, found in configs.items() if found}
  if len(configs) > 1:
    choices = ", ".join(f"{path}/{config}" for config in configs)
    raise DataError(f"data set {name!r} has configs: choose one of {choices}")
  return next(iter(configs.values()))[-1] if configs else None


def _versions(folder: pathlib.Path, version: str) -> list[pathlib.Path]:
  """Prepared versions in a folder, oldest first."""
  if not folder.is_dir():
    return []
  found = [
    child
    for child in folder.iterdir()
    if _VERSION.fullmatch(child.name)
    and version in ("", child.name)
    and (child / "dataset_info.json").exists()
  ]
  return sorted(found, key=lambda path: [int(n) for n in path.name.split(".")])


def read_info(folder: pathlib.Path) -> Info:
  """Reads the metadata of a prepared set and checks that it suits us.

  Raises:
    DataError: it is not image classification, has no test split, images differ
      in size, or it does not fit in memory.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS raises whatever its parsers raise.
    raise DataError(f"cannot read {folder}: {error}") from error
  info: Any = builder.info  # What it holds depends on the files.
  if not info.supervised_keys or len(info.supervised_keys) != 2:
    raise DataError(f"{folder} is not a set of inputs with one label each")
  image, label = info.supervised_keys
  kinds = info.features[image], info.features[label]
  if not isinstance(kinds[0], tfds.features.Image) or not isinstance(
    kinds[1], tfds.features.ClassLabel
  ):
    raise DataError(
      f"{folder} is not image classification: {image!r} is "
      f"{type(kinds[0]).__name__}, {label!r} is {type(kinds[1]).__name__}"
    )
  shape = tuple(info.features[image].shape)
  dtype = np.dtype(info.features[image].np_dtype)
  if None in shape or dtype != np.uint8:
    raise DataError(
      f"{folder} holds images of {shape} {dtype}; training in memory needs "
      "uint8 images of one size (None: sizes differ)"
    )
  splits = _choose_splits(folder, info.splits)
  sizes = tuple(info.splits[split].num_examples for split in splits)
  _check_memory(folder, sum(sizes) * int(np.prod(shape)))
  num_classes = info.features[label].num_classes
  return Info(builder, image, label, shape, num_classes, splits, sizes)


def _choose_splits(folder: pathlib.Path, splits) -> tuple[str, str]:
  for test in ("test", "validation"):
    if "train" in splits and test in splits:
      return "train", test
  raise DataError(
    f"{folder} has splits {sorted(splits)}; needed are train, and test or "
    "validation"
  )


def _check_memory(folder: pathlib.Path, num_bytes: int) -> None:
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if num_bytes > memory // 2:
    raise DataError(
      f"{folder} takes {num_bytes / 2**30:.1f} GiB decoded, more than half of "
      f"the {memory / 2**30:.1f} GiB here: it does not suit training in memory"
    )


def read_arrays(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], int]:
  """All images and labels of a prepared set, from the cache if there is one.

  Args:
    folder: a folder that `find` returned.

  Returns:
    `{"train_image", "train_label", "test_image", "test_label", "mean", "std"}`,
    and the number of classes.

  Raises:
    DataError: see `read_info`; or a record cannot be decoded.
  """
  arrays = cache.read(folder)
  if arrays is None:
    info = read_info(folder)
    arrays = {"num_classes": np.asarray(info.num_classes)}
    for split, ours in zip(info.splits, ("train", "test"), strict=True):
      images, labels = _decode(folder, info, split)
      arrays |= {f"{ours}_image": images, f"{ours}_label": labels}
    mean, std = channel_statistics(arrays["train_image"])
    arrays |= {"mean": np.asarray(mean), "std": np.asarray(std)}
    cache.write(folder, arrays)
  return arrays, int(arrays.pop("num_classes"))


def _decode(
  folder: pathlib.Path, info: Info, split: str
) -> tuple[np.ndarray, np.ndarray]:
  size = info.builder.info.splits[split].num_examples
  logging.info("decoding %d images of %s, once", size, folder)
  images = np.empty((size, *info.shape), np.uint8)
  labels = np.empty(size, np.int32)
  count = 0
  for example in _examples(folder, info, split):
    images[count] = example[info.image]
    labels[count] = example[info.label]
    count += 1
  if count != size or not 0 <= labels.min() <= labels.max() < info.num_classes:
    raise DataError(
      f"{folder}: split {split!r} has {count} examples of {size}, with labels "
      f"{labels.min()} to {labels.max()} of {info.num_classes} classes"
    )
  return images, labels


def _examples(folder: pathlib.Path, info: Info, split: str) -> Iterator[dict]:
  """Decoded examples in the order in which they are stored."""
  metadata = info.builder.info
  stored = getattr(metadata.file_format, "value", metadata.file_format)
  if stored == "array_record":
    yield from info.builder.as_data_source(split)
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
  """The records of a TFRecord file; their checksums are not looked at."""
  with open(path, "rb") as file:
    while header := file.read(12):  # Length in 8 bytes, its checksum in 4.
      length = int.from_bytes(header[:8], "little")
      record = file.read(length)
      if len(record) + len(file.read(4)) != length + 4:
        raise DataError(f"{path} is cut off: delete its folder, prepare again")
      yield record


def channel_statistics(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation of each channel, scaled to [0, 1].

  Args:
    images: uint8 `[N, H, W, C]`.

  Returns:
    Two tuples of `C` numbers, from exact integer sums.
  """
  channels = images.shape[-1]
  total = np.zeros(channels, np.int64)
  squares = np.zeros(channels, np.int64)
  for start in range(0, len(images), 4096):  # A small piece of a large array.
    part = images[start : start + 4096].reshape(-1, channels).astype(np.uint16)
    total += part.sum(0, dtype=np.int64)
    squares += (part * part).sum(0, dtype=np.int64)
  count = images.size // channels
  mean = total / count
  variance = squares / count - mean**2
  # A channel that never varies must not divide by zero later.
  std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 255.0)
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
