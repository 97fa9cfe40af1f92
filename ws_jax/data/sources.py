"""Which kind of source a name stands for."""

import dataclasses
import difflib
import hashlib
import os
import pathlib
import re
import shlex
from typing import Any

from ws_jax.data import audio, find, folder, npz, objects, prepared, text
from ws_jax.data.request import DataError, Request, Source

EMBEDDED_PATH = pathlib.Path(__file__).with_name(f"{find.EMBEDDED}.npz")
EMBEDDED_SHA256 = (
  "e1f135263a857d415148830e6c5bd9eda2ce26a856144526a56f752e24d48693"
)
_EMBEDDED_CLASSES = (
  *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
  *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def open_source(request: Request) -> Source:
  """Returns the source that the name in a request stands for."""
  name: Any = request.name
  if isinstance(request.options, text.Options):
    return text.open_source(request)
  if isinstance(name, os.PathLike):
    return _open_path(pathlib.Path(name), request)
  if not isinstance(name, str):
    return _open_object(name, request)
  if name == find.EMBEDDED:
    return _open_embedded(request)
  path = pathlib.Path(name)
  begins = name.startswith(("/", "./", "../", "~"))
  if begins or name in (".", "..") or path.suffix == ".npz":
    return _open_path(path.expanduser(), request)
  if re.fullmatch(r"[^:]+:[A-Za-z_][\w.]*", name):  # Not `set:version`.
    return objects.open_name(name, request)
  folders = find.data_folder(request.dir)
  found = audio.find_folder(folders, name) or find.find(folders, name)
  if found is not None:
    return audio.open_folder(found, request) or prepared.open_set(
      found, request
    )
  # `data/pets` may be a folder as well as a config of a set of TFDS.
  if path.is_file() or ("/" in name and path.exists()):
    return _open_path(path, request)
  raise find.not_found(name, request.dir)


def _open_path(path: pathlib.Path, request: Request) -> Source:
  if path.suffix == ".npz" and path.is_file():
    return npz.open_file(path, request)
  if path.is_dir() and (path / "dataset_info.json").exists():
    raise DataError(
      f"{path} was prepared by TFDS: give its name as data.name and the folder "
      "of all sets as data.dir"
    )
  if path.suffix != ".npz" and path.is_dir():
    return audio.open_folder(path, request) or folder.open_folder(path, request)
  if path.exists():
    raise DataError(f"{path} is neither an .npz file nor a folder of images")
  beside = path.parent.iterdir() if path.parent.is_dir() else ()
  near = difflib.get_close_matches(path.name, [p.name for p in beside], n=1)
  hint = f": did you mean {near[0]!r}?" if near else ""
  kind = "file" if path.suffix == ".npz" else "folder"
  raise DataError(f"there is no {kind} {path.absolute()}{hint}")


def _open_object(value: Any, request: Request) -> Source:
  if not callable(value) and not objects.split_names(value, request):
    known = ", ".join(find.DATASETS)
    raise DataError(
      f"data set {repr(value)[:60]} is no name (such as {known}), no path, and "
      "no object with 'train' and 'test'"
    )
  return objects.open_object(value, request)


def _open_embedded(request: Request) -> Source:
  path = EMBEDDED_PATH
  if not path.exists():
    raise DataError(f"{path} is missing: install ws_jax again")
  if hashlib.sha256(path.read_bytes()).hexdigest() != EMBEDDED_SHA256:
    raise DataError(
      f"{path} is damaged (its checksum differs): restore it with "
      f"`git checkout -- {shlex.quote(str(path))}` or install ws_jax again"
    )
  source = npz.open_file(path, request)
  return dataclasses.replace(
    source,
    num_classes=len(_EMBEDDED_CLASSES),
    classes=_EMBEDDED_CLASSES,
  )
