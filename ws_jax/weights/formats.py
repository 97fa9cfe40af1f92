"""Named arrays in .npz and .safetensors files, with a line of text beside them.

Nothing is unpickled: a file can be wrong, but it cannot run code. Files are
written whole or not at all.
"""

import json
import math
import pathlib
import zipfile
import zlib
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from ws_jax.base import disk

Arrays = dict[str, np.ndarray]

SUFFIXES = (".npz", ".safetensors")

# The key of the text: in the metadata of a safetensors file, and of an array of
# text in an npz file.
_NOTE = "ws_jax"
# The dtypes of https://github.com/huggingface/safetensors; little-endian.
DTYPES = {
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


def read(path: pathlib.Path) -> Arrays:
  """Reads all arrays of a file.

  Args:
    path: Path of the file, ending in one of `SUFFIXES`.

  Raises:
    ValueError: The file is damaged, or holds an array that would need pickle.
  """
  if path.suffix == ".npz":
    arrays = _read_npz(path)
    arrays.pop(_NOTE, None)
    return arrays
  return _read_safetensors(path)


def read_note(path: pathlib.Path) -> str:
  """Reads the text that `write` put beside the arrays; "" if there is none."""
  if path.suffix == ".npz":
    return str(_read_npz(path, only=_NOTE).get(_NOTE, ""))
  header, _ = _read_header(path)
  metadata = header.get("__metadata__")
  return metadata.get(_NOTE, "") if isinstance(metadata, dict) else ""


def write(path: pathlib.Path, arrays: Arrays, note: str) -> None:
  """Writes a file in one step: a reader sees the old one or the new one.

  Args:
    path: Path of the file to write, ending in one of `SUFFIXES`.
    arrays: Arrays by name.
    note: Text to write beside them.

  Raises:
    ValueError: The format does not have the dtype of an array.
  """
  writer = _write_npz if path.suffix == ".npz" else _write_safetensors
  with disk.whole(path) as file:
    writer(file, arrays, note)


def _read_npz(path: pathlib.Path, only: str | None = None) -> Arrays:
  """Reads all arrays of an npz file, or `only` one."""
  try:
    # Opened here: NumPy leaves the file of a broken archive open.
    with path.open("rb") as opened:
      file = np.load(opened, allow_pickle=False)
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("one array, not an archive of arrays")
      names = [name for name in file.files if only in (None, name)]
      return {name: file[name] for name in names}
  except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(f"{path}: cannot be read as .npz: {error}") from None


def _read_safetensors(path: pathlib.Path) -> Arrays:
  """Reads all arrays of a safetensors file."""
  header, start = _read_header(path)
  header.pop("__metadata__", None)
  size = path.stat().st_size
  with path.open("rb") as file:
    try:
      return {
        name: _read_tensor(file, entry, start, size)
        for name, entry in header.items()
      }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      reason = f"no {error}" if isinstance(error, KeyError) else str(error)
      raise ValueError(f"{path}: damaged header: {reason}") from None


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Reads the header of a safetensors file.

  The file is eight bytes that give the length of the header, the header (JSON),
  and the data.

  Returns:
    The header, and the position at which the data start.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
      raise ValueError(f"{path}: damaged: its header does not fit into it")
    try:
      header = json.loads(file.read(length))
    except ValueError as error:
      raise ValueError(f"{path}: damaged header: {error}") from None
  if not isinstance(header, dict):
    raise ValueError(f"{path}: damaged header: not an object")
  return header, 8 + length


def _read_tensor(file, entry: dict, start: int, size: int) -> np.ndarray:
  """Reads one array.

  Args:
    file: Open safetensors file.
    entry: Entry of the array in the header.
    start: Position at which the data start.
    size: Size of the file in bytes.
  """
  dtype = DTYPES.get(entry["dtype"])
  if dtype is None:
    raise ValueError(f"dtype {entry['dtype']!r}, known are {', '.join(DTYPES)}")
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


def _write_npz(file: IO[bytes], arrays: Arrays, note: str):
  """Writes arrays and a note as npz."""
  with zipfile.ZipFile(file, "w") as archive:
    for name, array in {_NOTE: np.array(note), **arrays}.items():
      if array.dtype.kind == "V" or array.dtype.hasobject:
        raise ValueError(
          f"{name}: an .npz file has no {array.dtype}; write .safetensors"
        )
      with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)


def _write_safetensors(file: IO[bytes], arrays: Arrays, note: str):
  """Writes arrays and a note as safetensors."""
  names = {dtype: name for name, dtype in DTYPES.items()}
  header: dict[str, Any] = {"__metadata__": {_NOTE: note}}
  begin = 0
  for name, array in arrays.items():
    if array.dtype not in names:
      raise ValueError(f"{name}: a .safetensors file has no {array.dtype}")
    header[name] = {
      "dtype": names[array.dtype],
      "shape": list(array.shape),
      "data_offsets": [begin, begin + array.nbytes],
    }
    begin += array.nbytes
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # the format aligns the data
  file.write(len(text).to_bytes(8, "little") + text)
  for array in arrays.values():
    file.write(array.tobytes())
