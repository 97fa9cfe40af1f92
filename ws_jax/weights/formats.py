"""Named arrays in .npz and .safetensors files, with a line of text beside them.

Nothing is unpickled: a file can be wrong, but it cannot run code. Files are
written whole or not at all.
"""

import dataclasses
import json
import lzma
import math
import pathlib
import tokenize
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
# A compressed archive may unpack to this many bytes more than a hundred times
# its own size: zeros shrink to a thousandth.
LARGEST_UNPACKED = 1 << 30
_PART = 1 << 20  # bytes that are unpacked at a time


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
  """Reads all arrays of an npz file, or `only` one.

  Not by `np.load`, which allocates what a damaged header asks for.
  """
  try:
    if not zipfile.is_zipfile(path):
      raise ValueError("no archive; one array, not an archive of arrays?")
    with zipfile.ZipFile(path) as archive:
      entries: dict[str, zipfile.ZipInfo] = {}
      for entry in archive.infolist():
        _add(entries, entry.filename.removesuffix(".npy"), entry)
      size = sum(entry.file_size for entry in entries.values())
      if size > LARGEST_UNPACKED + 100 * path.stat().st_size:
        raise ValueError(f"would unpack to {size:,} bytes")
      return {
        name: _read_npy(archive, entry)
        for name, entry in entries.items()
        if only in (None, name)
      }
  except (
    *(EOFError, LookupError, NotImplementedError, OverflowError, RuntimeError),
    *(ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
  ) as error:
    raise ValueError(f"{path}: cannot be read as .npz: {error}") from None


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
  """Reads one array of an npz file; the first bytes of what is no array.

  Raises:
    ValueError: It has another size than its header says, or needs pickle.
  """
  read_header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  with archive.open(entry) as file:
    start = file.read(len(np.lib.format.MAGIC_PREFIX) + 2)
    version = tuple(start[-2:])
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
      return start
    if version not in read_header:
      raise ValueError(f"{entry.filename}: version {version} of the format")
    try:
      shape, fortran, dtype = read_header[version](file)
    except (SyntaxError, TypeError, tokenize.TokenError) as error:
      raise ValueError(f"{entry.filename}: damaged header: {error}") from None
    if dtype.hasobject or not dtype.itemsize:
      raise ValueError(
        f"{entry.filename}: {dtype} would need pickle: allow_pickle=False"
      )
    wanted = math.prod(shape) * dtype.itemsize
    held = entry.file_size - file.tell()
    if min(shape, default=0) < 0 or wanted != held:
      raise ValueError(
        f"{entry.filename}: {held} bytes for {dtype} {list(shape)}"
      )
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    flat = array.reshape(-1, order="A").view(np.uint8)
    begin = 0
    while begin < wanted:
      part = file.read(min(_PART, wanted - begin))
      if not part:
        raise ValueError(f"{entry.filename}: ends early")
      flat[begin : begin + len(part)] = np.frombuffer(part, np.uint8)
      begin += len(part)
  if dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
    raise ValueError(f"{entry.filename}: {dtype}, known are floats to 64 bits")
  return array.astype(dtype.newbyteorder("="), copy=False)


def _add(found: dict[str, Any], name: str, value: Any) -> None:
  """Adds an array to those of a file.

  Raises:
    ValueError: There is one of that name, or the name cannot be printed: it
      could move the cursor of a terminal.
  """
  if name in found:
    raise ValueError(f"two arrays of the name {name!r}")
  if not name.isprintable():
    raise ValueError(f"an array of the name {name!r}")
  found[name] = value


def _read_safetensors(path: pathlib.Path) -> Arrays:
  """Reads all arrays of a safetensors file."""
  header, start = _read_header(path)
  header.pop("__metadata__", None)
  size = path.stat().st_size - start
  with path.open("rb") as file:
    try:
      tensors = {name: _Tensor.of(entry) for name, entry in header.items()}
      # Arrays that overlap could be many times as large as the file.
      end = 0
      for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if not end <= tensor.begin <= tensor.end <= size:
          raise ValueError(
            f"bytes {tensor.begin} to {tensor.end} of {size} for {tensor.dtype}"
            f" {list(tensor.shape)}"
          )
        end = tensor.end
      return {name: one.read(file, start) for name, one in tensors.items()}
    except (
      *(AttributeError, KeyError, OverflowError, TypeError, ValueError),
    ) as error:
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
      text = file.read(length)
      header = disk.parse_json(text, object_pairs_hook=_object)
    except ValueError as error:
      raise ValueError(f"{path}: damaged header: {error}") from None
  if not isinstance(header, dict):
    raise ValueError(f"{path}: damaged header: not an object")
  return header, 8 + length


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns an object of JSON, in which no name is there twice."""
  found: dict[str, Any] = {}
  for name, value in pairs:
    _add(found, name, value)
  return found


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """An entry of the header of a safetensors file.

  Attributes:
    dtype: Dtype of the array.
    shape: Shape of the array.
    begin: Position of its first byte in the data.
    end: Position behind its last byte.
  """

  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int
  end: int

  @classmethod
  def of(cls, entry: dict[str, Any]) -> "_Tensor":
    """Returns an entry that is in itself right.

    Raises:
      AttributeError, KeyError, TypeError, ValueError: It is not.
    """
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
      known = ", ".join(DTYPES)
      raise ValueError(f"dtype {entry['dtype']!r}, known are {known}")
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, begin, end)
    # More axes NumPy does not have; the product of many would take its time.
    if len(shape) > 64 or any(type(n) is not int or n < 0 for n in numbers):
      raise ValueError(f"bytes {begin} to {end} for {dtype} {list(shape)}")
    if end - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"bytes {begin} to {end} for {dtype} {list(shape)}")
    return cls(dtype, shape, begin, end)

  def read(self, file: IO[bytes], start: int) -> np.ndarray:
    """Reads the array of an open file, whose data begin at `start`."""
    file.seek(start + self.begin)
    data = file.read(self.end - self.begin)
    return np.frombuffer(data, self.dtype).reshape(self.shape)


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
