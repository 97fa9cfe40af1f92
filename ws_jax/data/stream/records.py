"""The encoded images of a split, by number, wherever they are stored.

Three kinds have the same three things: a length, `read(i)` for the bytes and
the label of image `i`, and `name(i)` for messages. They hold no open file and
can be sent to other processes.
"""

import os
import pathlib
from typing import Any, Protocol

import numpy as np

from ws_jax.data.request import DataError


class Records(Protocol):
  """The encoded images of a split."""

  def __len__(self) -> int:
    """Returns the number of images."""
    ...

  def name(self, index: int) -> str:
    """Returns the file of an image, and its place in the file."""
    ...

  def read(self, index: int) -> tuple[bytes, int]:
    """Returns the bytes of an image file, and its label.

    Raises:
      DataError: they are not there; the caller adds the name.
    """
    ...


class Files:
  """Images in a file each.

  Args:
    folder: the folder that the names start from.
    names: the paths of the files in it.
    labels: the class number of each, int32.
  """

  def __init__(
    self, folder: pathlib.Path, names: list[str], labels: np.ndarray
  ):
    # One array: a list of a million texts would be slow to send to a process.
    self._folder, self._labels = os.fspath(folder), labels
    self._names = np.asarray([os.fsencode(name) for name in names])

  def __len__(self) -> int:
    return len(self._labels)

  def name(self, index: int) -> str:
    return os.path.join(self._folder, os.fsdecode(self._names[index]))

  def read(self, index: int) -> tuple[bytes, int]:
    try:
      with open(self.name(index), "rb") as file:
        return file.read(), int(self._labels[index])
    except OSError as error:
      raise DataError(f"cannot be read: {error.strerror}") from error


class Packed:
  """Images that lie one after the other in a few large files.

  Args:
    paths: the large files.
    index: what is where, an array `[N]` for each key: `shard` is the number of
      the file, `offset` and `size` count bytes, `label` is the class, and
      `name` is what to call the image. Without `label` each piece is a record
      of TFDS that holds image and label.
    keys: the keys of image and label in such a record.
    num_classes: the number of classes, if the labels are to be checked.
  """

  def __init__(
    self,
    paths: list[pathlib.Path],
    index: dict[str, np.ndarray],
    keys: tuple[str, str] = ("", ""),
    num_classes: int | None = None,
  ):
    self._paths = [os.fspath(path) for path in paths]
    self._index, self._keys, self._classes = index, keys, num_classes

  def __len__(self) -> int:
    return len(self._index["shard"])

  def name(self, index: int) -> str:
    path = self._paths[self._index["shard"][index]]
    if "name" not in self._index:
      return f"{path}, record at byte {self._index['offset'][index]}"
    return f"{path}, {os.fsdecode(self._index['name'][index])}"

  def read(self, index: int) -> tuple[bytes, int]:
    size = int(self._index["size"][index])
    path = self._paths[self._index["shard"][index]]
    try:
      # Opened each time: a set has more files than a process may keep open.
      with open(path, "rb", buffering=0) as file:
        piece = os.pread(file.fileno(), size, int(self._index["offset"][index]))
    except OSError as error:
      raise DataError(f"cannot be read: {error.strerror}") from error
    if len(piece) != size:
      raise DataError(f"is cut off: {len(piece)} bytes of {size} are there")
    if "label" in self._index:
      return piece, int(self._index["label"][index])
    return parse_example(piece, self._keys, self._classes)


class ArrayRecords:
  """Images that TFDS stored as array_record.

  Args:
    paths: the files.
    sizes: the number of records in each.
    keys: the keys of image and label in a record.
    num_classes: the number of classes, if the labels are to be checked.
  """

  def __init__(
    self,
    paths: list[pathlib.Path],
    sizes: list[int],
    keys: tuple[str, str],
    num_classes: int | None = None,
  ):
    from array_record.python import array_record_data_source as source

    self._paths, self._keys = [os.fspath(path) for path in paths], keys
    self._classes = num_classes
    self._ends = np.cumsum(sizes)
    # With their sizes, so that it need not open all of them to count.
    spans = [
      f"{path}[0:{size}]" for path, size in zip(paths, sizes, strict=True)
    ]
    self._source: Any = source.ArrayRecordDataSource(spans)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def name(self, index: int) -> str:
    shard = int(np.searchsorted(self._ends, index, side="right"))
    before = int(self._ends[shard - 1]) if shard else 0
    return f"{self._paths[shard]}, record {index - before}"

  def read(self, index: int) -> tuple[bytes, int]:
    try:
      record = self._source[index]
    except Exception as error:  # Its reader raises RuntimeError and others.
      raise DataError(f"cannot be read: {_line(error)}") from error
    return parse_example(record, self._keys, self._classes)


def parse_example(
  record: bytes, keys: tuple[str, str], num_classes: int | None = None
) -> tuple[bytes, int]:
  """Returns the image and the label of a record of TFDS.

  Args:
    record: the bytes of a `tf.train.Example`.
    keys: the keys of image and label.
    num_classes: the number of classes, if the label is to be checked.

  Raises:
    DataError: it is no such record, lacks a key, or its label is no class.
  """
  from tensorflow_datasets.proto import tf_example_pb2

  message: Any = tf_example_pb2
  try:
    features = message.Example.FromString(record).features.feature
    image, label = (features[key] for key in keys)
    found = image.bytes_list.value[0], int(label.int64_list.value[0])
  except Exception as error:  # Protobuf raises what its parser raises.
    raise DataError(f"is no record of TFDS: {_line(error)}") from error
  if num_classes is not None and not 0 <= found[1] < num_classes:
    raise DataError(f"has label {found[1]}, which is not in [0, {num_classes})")
  return found


def _line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__
