"""The official Fashion-MNIST files, made from those of Debian's package."""

import gzip
import pathlib

from ws_jax.data.request import DataError

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = pathlib.Path("/usr/share/datasets/fashion-mnist")
# The time stamps in the gzip headers of the official files. Debian's files have
# the same compressed data behind a header without a name and with another time,
# which changes the checksums that TFDS compares.
OFFICIAL_MTIMES = {
  "train-images-idx3-ubyte.gz": 1504176606,
  "train-labels-idx1-ubyte.gz": 1504176606,
  "t10k-images-idx3-ubyte.gz": 1504176627,
  "t10k-labels-idx1-ubyte.gz": 1504176627,
}


def debian_files_exist() -> bool:
  """Returns whether Debian's package is installed here."""
  return all((DEBIAN_DIR / name).exists() for name in OFFICIAL_MTIMES)


def restore_official_files(target: pathlib.Path) -> None:
  """Writes the four official files to a folder, byte for byte.

  Args:
    target: the folder to write to; TFDS takes it as its `manual_dir`.

  Raises:
    DataError: the files of the package are not as expected.
  """
  for filename, mtime in OFFICIAL_MTIMES.items():
    packed = (DEBIAN_DIR / filename).read_bytes()
    restored = restore_gzip_header(packed, filename, mtime)
    gzip.decompress(restored)  # The trailer's checksum holds, or this raises.
    (target / filename).write_bytes(restored)


def restore_gzip_header(packed: bytes, filename: str, mtime: int) -> bytes:
  """Puts a file name and a time back into the header of a gzip file.

  Args:
    packed: a gzip file of one member whose header has no optional fields.
    filename: the name of the file, ending in `.gz`; the header gets it without
      that ending.
    mtime: the time in seconds since 1970.

  Returns:
    The same compressed data and trailer behind the new header.

  Raises:
    DataError: the file is not a gzip file with a plain header.
  """
  if packed[:3] != b"\x1f\x8b\x08" or packed[3] != 0:
    raise DataError(
      f"{filename} does not start with the plain gzip header that Debian's "
      f"package {DEBIAN_PACKAGE} has: reinstall the package"
    )
  has_name, unix = 8, 3
  header = b"\x1f\x8b\x08" + bytes([has_name]) + mtime.to_bytes(4, "little")
  name = filename.removesuffix(".gz").encode("latin-1") + b"\0"
  return header + bytes([0, unix]) + name + packed[10:]
