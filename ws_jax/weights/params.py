"""Parameters in files: orbax folders (read only), .npz and .safetensors.

A file that is written here says whether its kernels are raw or folded, and by
which convention: folded ones look like any others, and are not to be trained
on.
"""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ws_jax.base import disk, extras
from ws_jax.core.conventions import CONVENTIONS, Convention, get_convention
from ws_jax.core.kernels import path_string
from ws_jax.weights import formats, steps

PyTree = Any


def read_params(path: str | os.PathLike[str]) -> PyTree:
  """Reads the parameters of a checkpoint into host memory.

  Args:
    path: Path of a `.npz` or `.safetensors` file, of an orbax folder, or of the
      workdir of a run, from which the newest step is read.

  Returns:
    A tree of NumPy arrays. For a training state in an orbax folder it is the
    `params` alone. For a file it is one dict by name; the dots of PyTorch's
    names become "/", so that selectors see the same kind of path everywhere.

  Raises:
    ValueError: It is no such file, it is damaged, or it holds an array that
      would need pickle; the message names the path. Of a workdir the newest
      step that is whole is read, and a line on stderr names those that are not.
    FileNotFoundError: There is nothing at `path`.

  Example:
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/weights.npz"
    >>> np.savez(file, **{"layer1.0.weight": np.ones((8, 4))})
    >>> read_params(file)["layer1/0/weight"].shape
    (8, 4)
    >>> folder.cleanup()
  """
  return read_params_of(path)[0]


def read_params_of(
  path: str | os.PathLike[str],
) -> tuple[PyTree, pathlib.Path]:
  """Reads parameters as `read_params`, and tells what they are of.

  Args:
    path: Path as in `read_params`.

  Returns:
    The parameters, and the file or folder that was read: of a workdir that of
    the newest step that is whole.

  Raises:
    ValueError: As `read_params`.
    FileNotFoundError: There is nothing at `path`.
  """
  path = _existing(path)
  if path.is_dir():
    return _read_newest(path)
  if path.suffix not in formats.SUFFIXES:
    raise ValueError(
      f"{path}: must be an orbax folder, a .npz or a .safetensors file"
    )
  arrays = {}
  for name, array in formats.read(path).items():
    if _as_path(name) in arrays:
      raise ValueError(f"{path}: two arrays of the path {_as_path(name)!r}")
    arrays[_as_path(name)] = array
  return arrays, path


@dataclasses.dataclass(frozen=True)
class Info:
  """The note of a file about its kernels.

  Attributes:
    folded: True for effective kernels, False for raw ones, None if the file
      does not say, as files of other programs.
    convention: Convention of folded kernels, or None.
  """

  folded: bool | None = None
  convention: Convention | None = None

  def __str__(self) -> str:
    if not self.folded:
      return "raw" if self.folded is False else "not said"
    names = [name for name, c in CONVENTIONS.items() if c == self.convention]
    formula = self.convention.formula if self.convention else "unknown"
    return f"folded with {' = '.join(names) or 'a convention'}: {formula}"


def read_info(path: str | os.PathLike[str]) -> Info:
  """Reads whether the kernels of a file are folded, and nothing else.

  Args:
    path: Path as in `read_params`; orbax folders hold raw parameters, if this
      package wrote them.

  Raises:
    ValueError: As `read_params`.
    FileNotFoundError: There is nothing at `path`.

  Example:
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/folded.safetensors"
    >>> write_params(file, {"w": np.ones((8, 4))}, folded="timm")
    >>> print(read_info(file))
    folded with timm: (w - mean) / sqrt(var + 1e-06)
    >>> folder.cleanup()
  """
  path = _existing(path)
  if path.is_dir() or path.suffix not in formats.SUFFIXES:
    return Info()
  text = formats.read_note(path)
  if not text:
    return Info()
  try:
    stored = disk.parse_json(text)
    fields = stored["convention"]
    info = Info(stored["folded"], Convention(**fields) if fields else None)
    str(info)  # a number of a thousand digits cannot be printed
    return info
  except (
    *(AttributeError, KeyError, OverflowError, TypeError),
    ValueError,
  ) as error:
    raise ValueError(
      f"{path}: its note on folding is damaged: {error}"
    ) from None


def read_raw_params(path: str | os.PathLike[str]) -> PyTree:
  """Reads parameters to be trained on or folded, and refuses folded ones.

  Args:
    path: Path as in `read_params`.

  Raises:
    ValueError: The file holds folded kernels, or as `read_params`.
    FileNotFoundError: There is nothing at `path`.

  Example:
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/folded.npz"
    >>> write_params(file, {"w": np.ones((8, 4))}, folded="bit")
    >>> read_raw_params(file)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ...folded.npz: is folded with bit = composer: ...
    >>> folder.cleanup()
  """
  info = read_info(path)
  if info.folded:
    raise ValueError(
      f"{path}: is {info}. Its kernels are the effective ones, for the plain "
      "model: fold, or train on from, the raw parameters they were made from"
    )
  return read_params(path)


def read_raw_variables(path: str | os.PathLike[str]) -> PyTree:
  """Reads raw parameters, and for a run all variables of its model.

  Args:
    path: Path as in `read_params`.

  Returns:
    For a training state a dict of `params` (their moving average if the run
    kept one) and of the model's other collections, such as `batch_stats`; for
    anything else what `read_raw_params` returns.

  Raises:
    ValueError: As `read_raw_params`.
    FileNotFoundError: There is nothing at `path`.
  """
  return read_checkpoint(path)[0]


def read_checkpoint(
  path: str | os.PathLike[str],
) -> tuple[PyTree, pathlib.Path]:
  """Reads variables as `read_raw_variables`, and tells what they are of.

  Args:
    path: Path as in `read_params`.

  Returns:
    The variables, and the file or folder that was read: of a workdir that of
    the newest step that is whole.

  Raises:
    ValueError: As `read_raw_params`.
    FileNotFoundError: There is nothing at `path`.
  """
  path = _existing(path)
  if not path.is_dir():
    return read_raw_params(path), path
  parts = ("params", "ema_params", "model_state")
  state, folder = _read_newest(path, parts)
  if not isinstance(state, dict) or not state.keys() >= {"params"}:
    return state, folder
  params = state.get("ema_params") or state["params"]
  return {"params": params, **(state.get("model_state") or {})}, folder


def write_params(
  path: str | os.PathLike[str],
  params: PyTree,
  *,
  folded: str | Convention | None = None,
) -> None:
  """Writes parameters to a file, whole or not at all.

  Args:
    path: Path of the file to write, ending in `.npz` or `.safetensors`; a file
      that is there is replaced.
    params: Pytree of arrays; each is named by its path, as "Conv_0/kernel".
    folded: Convention if `params` are from `ws_jax.fold`, None if they are raw.

  Raises:
    ValueError: The path has another ending, the convention is unknown, two
      leaves have one name, or the format does not have a dtype.

  Example:
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/raw.safetensors"
    >>> write_params(file, {"Conv_0": {"kernel": np.ones((3, 3, 2, 4))}})
    >>> read_params(file)["Conv_0/kernel"].shape
    (3, 3, 2, 4)
    >>> read_info(file).folded
    False
    >>> folder.cleanup()
  """
  path = pathlib.Path(path)
  if path.suffix not in formats.SUFFIXES:
    raise ValueError(f"{path}: must be a .npz or a .safetensors file")
  convention = None if folded is None else get_convention(folded)
  fields = dataclasses.asdict(convention) if convention else None
  info = json.dumps({"folded": bool(convention), "convention": fields})
  arrays = {}
  for keys, leaf in jax.tree.leaves_with_path(params):
    name = path_string(keys)
    if name in arrays:
      raise ValueError(f"{path}: two arrays of the name {name!r}")
    arrays[name] = np.asarray(leaf)
  formats.write(path, arrays, info)


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the path, or raises an error if there is nothing."""
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder")
  return path


def _as_path(name: str) -> str:
  """Returns the name of an array with the dots of PyTorch as "/"."""
  return name if "/" in name else name.replace(".", "/")


def _read_newest(
  path: pathlib.Path, keys: tuple[str, ...] = ("params",)
) -> tuple[PyTree, pathlib.Path]:
  """Reads a folder, or the newest step in it; returns which that was."""
  extras.need("train", by=f"the orbax folder {path}")
  read = lambda folder: _read_orbax(folder, keys)
  state, folder, _ = steps.read_newest(path.absolute(), read)
  return state, folder


def _read_orbax(folder: pathlib.Path, keys: tuple[str, ...]) -> PyTree:
  """Reads some parts of a training state, or the whole of any other tree."""
  from orbax.checkpoint import v1 as ocp

  try:
    load: Any = ocp.load  # its annotations allow no tree
    metadata: Any = ocp.metadata(str(folder)).metadata
    # It is read into host memory, whatever devices it was written from; the
    # optimizer's state is not read at all.
    as_array = lambda x: np.empty(x.shape, x.dtype)
    _check_size(folder, metadata, keys)
    if isinstance(metadata, dict) and "params" in metadata:
      wanted = {
        key: jax.tree.map(
          as_array if key in keys else lambda _: ocp.PLACEHOLDER, value
        )
        for key, value in metadata.items()
      }
      state = load(str(folder), wanted)
      if keys == ("params",):
        return state["params"]
      return {key: state[key] for key in keys if key in state}
    return load(str(folder), jax.tree.map(as_array, metadata))
  # The error that orbax raises depends on which of its files is missing.
  except Exception as error:
    raise ValueError(
      f"{folder}: no orbax checkpoint that can be read: {error}"
    ) from error


def _check_size(
  folder: pathlib.Path, metadata: Any, keys: tuple[str, ...]
) -> None:
  """Refuses arrays that the files of a folder cannot hold.

  What orbax does not find in its files it fills: a shape that lies takes all
  memory.

  Raises:
    ValueError: They would be larger than any compression explains.
  """
  if isinstance(metadata, dict) and "params" in metadata:
    metadata = {key: metadata[key] for key in keys if key in metadata}
  sizes = [
    math.prod(x.shape) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(metadata)
  ]
  held = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
  if sum(sizes) > formats.LARGEST_UNPACKED + 100 * held:
    raise ValueError(f"its arrays would take {sum(sizes):,} bytes, of {held:,}")


def newest_step(folder: pathlib.Path) -> int | None:
  """Returns the newest step in a workdir or of one checkpoint, or None."""
  found = steps.steps(folder.absolute()) or [folder.absolute()]
  return steps.step_of(found[0])
