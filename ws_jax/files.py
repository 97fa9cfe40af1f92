"""Parameters from files: orbax folders, .npz and .safetensors.

Nothing is unpickled: a file can be wrong, but it cannot run code.
"""

import json
import math
import os
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

# Of https://github.com/huggingface/safetensors; little-endian.
_DTYPES = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "U16": np.dtype("<u2"),
  "I16": np.dtype("<i2"),
  "U32": np.dtype("<u4"),
  "I32": np.dtype("<i4"),
  "U64": np.dtype("<u8"),
  "I64": np.dtype("<i8"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(jnp.bfloat16),
  "F32": np.dtype("<f4"),
  "F64": np.dtype("<f8"),
  "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
  "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
# The format's own limit: no header is longer.
_LONGEST_HEADER = 100_000_000


def read_params(path: str | os.PathLike[str]) -> PyTree:
  """Reads the parameters of a checkpoint into host memory.

  Args:
    path: a `.npz` or `.safetensors` file, an orbax folder, or the workdir of
      a run, of which the newest step is read.

  Returns:
    A tree of NumPy arrays. Of a training state in an orbax folder it is the
    `params` alone. Of a file it is one dict by name; the dots of PyTorch's
    names become "/", so that selectors see the same kind of path everywhere.

  Raises:
    ValueError: not such a file, damaged, or a kind of array that would need
      pickle; the message names the path.
    FileNotFoundError: there is nothing at `path`.

  Example:
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = folder.name + "/weights.npz"
    >>> np.savez(file, **{"layer1.0.weight": np.ones((8, 4))})
    >>> read_params(file)["layer1/0/weight"].shape
    (8, 4)
    >>> folder.cleanup()
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or folder")
  if path.is_dir():
    return _read_orbax(path)
  readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
  if path.suffix not in readers:
    raise ValueError(
      f"{path}: must be an orbax folder, a .npz or a .safetensors file"
    )
  return {_as_path(k): v for k, v in readers[path.suffix](path).items()}


def _as_path(name: str) -> str:
  return name if "/" in name else name.replace(".", "/")


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("one array, not an archive of arrays")
      return {name: file[name] for name in file.files}
  except (EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path}: cannot be read as .npz: {error}") from None


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Eight bytes that say how long the header is, the header (JSON), data."""
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
      raise ValueError(f"{path}: damaged: its header does not fit into it")
    try:
      header = json.loads(file.read(length))
      header.pop("__metadata__", None)
      tensors = {
        name: _read_tensor(file, entry, 8 + length, size)
        for name, entry in header.items()
      }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      reason = f"no {error}" if isinstance(error, KeyError) else str(error)
      raise ValueError(f"{path}: damaged header: {reason}") from None
  return tensors


def _read_tensor(file, entry: dict, start: int, size: int) -> np.ndarray:
  dtype = _DTYPES.get(entry["dtype"])
  if dtype is None:
    raise ValueError(
      f"dtype {entry['dtype']!r}, known are {', '.join(_DTYPES)}"
    )
  shape = [int(n) for n in entry["shape"]]
  begin, end = (int(n) for n in entry["data_offsets"])
  wanted = math.prod(shape) * dtype.itemsize
  if min(shape, default=0) < 0 or not (
    0 <= begin <= end <= size - start and end - begin == wanted
  ):
    raise ValueError(
      f"bytes {begin} to {end} of {size - start} for {dtype} {shape}"
    )
  file.seek(start + begin)
  return np.frombuffer(file.read(wanted), dtype).reshape(shape)


def _read_orbax(path: pathlib.Path) -> PyTree:
  from orbax.checkpoint import v1 as ocp

  folder = _newest_step(path.absolute())
  try:
    load: Any = ocp.load  # its annotations admit no tree
    metadata: Any = ocp.metadata(str(folder)).metadata
    # To host memory, whatever devices it was written from; the optimizer's
    # state is not read at all.
    as_array = lambda x: np.empty(x.shape, x.dtype)
    if isinstance(metadata, dict) and "params" in metadata:
      wanted = {
        key: jax.tree.map(
          as_array if key == "params" else lambda _: ocp.PLACEHOLDER, value
        )
        for key, value in metadata.items()
      }
      return load(str(folder), wanted)["params"]
    return load(str(folder), jax.tree.map(as_array, metadata))
  # What orbax raises depends on which of its files is missing.
  except Exception as error:
    raise ValueError(
      f"{folder}: no orbax checkpoint that can be read: {error}"
    ) from error


def _newest_step(folder: pathlib.Path) -> pathlib.Path:
  """The folder of the newest step in a workdir, or `folder` itself."""
  inner = folder / "checkpoints"
  inside = inner if inner.is_dir() else folder
  steps = [p for p in inside.iterdir() if p.name.isdecimal() and p.is_dir()]
  return max(steps, key=lambda p: int(p.name), default=inside)
