"""Where text lies: a file, a folder, or a set that TFDS prepared."""

import difflib
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from ws_jax.base import extras
from ws_jax.data import find
from ws_jax.data.request import DataError, Request


def locate(request: Request, suffixes: tuple[str, ...]) -> pathlib.Path:
  """Returns the file or folder that a name stands for.

  Args:
    request: the data that are wanted.
    suffixes: how the names of files end that can be read.

  Raises:
    DataError: there is no such file, folder or prepared set, or a file of
      another kind; the message has the nearest name.
  """
  name = request.name
  if not isinstance(name, (str, os.PathLike)):
    raise DataError(
      f"data.name={repr(name)[:60]}: text is read from a file, a folder or a "
      "prepared set; arrays of tokens need a task of your own"
    )
  path = pathlib.Path(name).expanduser()
  is_path = not isinstance(name, str) or name.startswith(("/", ".", "~"))
  if not is_path and path.suffix not in suffixes:
    prepared = find.find(find.data_folder(request.dir), name)
    if prepared is not None:
      return prepared
    if not path.exists():
      raise _unknown(name, request.dir)
  if path.is_dir() or (path.is_file() and path.suffix in suffixes):
    return path
  if path.exists():
    raise DataError(
      f"{path} is no text: needed is a folder, or one of {', '.join(suffixes)}"
    )
  beside = path.parent.iterdir() if path.parent.is_dir() else ()
  near = difflib.get_close_matches(path.name, [p.name for p in beside], n=1)
  hint = f": did you mean {near[0]!r}?" if near else ""
  raise DataError(f"there is no file or folder {path.absolute()}{hint}")


def is_prepared(path: pathlib.Path) -> bool:
  """Returns whether a folder is one of a set that TFDS prepared."""
  return (path / "dataset_info.json").exists()


def open_prepared(path: pathlib.Path) -> Any:
  """Returns the TFDS builder that reads a prepared set, without TensorFlow.

  Raises:
    DataError: TFDS cannot read the folder.
  """
  extras.need("data", by=f"data set {path}")
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(path)
  except Exception as error:  # TFDS raises whatever its parsers raise.
    raise DataError(f"cannot read {path}: {error}") from error


def text_features(builder: Any) -> list[str]:
  """Returns the keys of a prepared set that hold text."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  return [k for k in features if isinstance(features[k], tfds.features.Text)]


def state(paths: Iterable[pathlib.Path]) -> str:
  """Returns a text that changes when one of the files does."""
  digest = hashlib.sha256()
  for path in paths:
    stat = path.stat()
    line = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
    digest.update(line.encode())
  return digest.hexdigest()


def files(path: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
  """Returns the files in a folder whose names end so, by name."""
  found = [p for p in path.iterdir() if p.is_file() and p.suffix in suffixes]
  return sorted(p for p in found if not p.name.startswith("."))


def _unknown(name: str, data_dir: str | None) -> DataError:
  return DataError(
    f"{find.not_found(name, data_dir)}; the novels in the package are "
    "'austen', and a path to a file or folder of text begins with ./ or /"
  )
