"""Makes the embedded novels of Jane Austen from Debian's package of them.

    apt-get install r-cran-janeaustenr
    python scripts/make_austen.py            # writes the file
    python scripts/make_austen.py --check    # only compares

The package holds the six novels as text of Project Gutenberg, a line a string,
in a file of the R language: pieces that zlib compressed, each behind its length
in four bytes, big end first. Each piece is one vector of strings. The bytes
written are the same each time, on each machine with the usual libbz2.
"""

import hashlib
import io
import pathlib
import sys
import zipfile
import zlib
from collections.abc import Iterator

from absl import app, flags

from ws_jax.base import disk
from ws_jax.data.text import austen

_SOURCE = flags.DEFINE_string(
  "source",
  "/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
  "The file of the R package janeaustenr, version 1.0.0.",
)
_OUTPUT = flags.DEFINE_string(
  "output", str(austen.PATH), "The .zip file to write or check."
)
_CHECK = flags.DEFINE_bool("check", False, "Only compare with the file.")

# The first line of each novel, and the SHA-256 of its text as it is written.
CONTENTS = {
  "sense_and_sensibility": (
    "SENSE AND SENSIBILITY",
    "105e1651fe93bed7130078578efd31e0c557d68667ba672ddc876f735b30fe09",
  ),
  "pride_and_prejudice": (
    "PRIDE AND PREJUDICE",
    "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d",
  ),
  "mansfield_park": (
    "MANSFIELD PARK",
    "98bc90519cdf4ef663ad7de2734bb529435ef24f7abbde6bb1a50898871dafe9",
  ),
  "emma": (
    "EMMA",
    "7c67b5985c6d0de1efaeb5d342d52cb82c38083c40e2295129e30e87ee690ebe",
  ),
  "northanger_abbey": (
    "NORTHANGER ABBEY",
    "51f91bbe0517db8e65cff009b097ce0a1836124c4e0532ac19e6c0cad982abed",
  ),
  "persuasion": (
    "Persuasion",
    "8061549557aebd2fd6e353d18d9197cb707029112bd52d4d8b174583a925848a",
  ),
}
_STRINGS, _STRING = 16, 9  # The types of R's serialization.


def pieces(content: bytes) -> Iterator[bytes]:
  """Yields the decompressed pieces of a lazy-load file of R."""
  while content:
    size = int.from_bytes(content[:4], "big")
    stream = zlib.decompressobj()
    piece = stream.decompress(content[4:])
    if len(piece) != size:
      raise ValueError(f"a piece has {len(piece)} bytes, and says {size}")
    yield piece
    content = stream.unused_data


def strings(piece: bytes) -> list[bytes]:
  """Returns the strings of a vector in R's serialization, version 3."""
  stream = io.BytesIO(piece)

  def number() -> int:
    return int.from_bytes(stream.read(4), "big")

  if stream.read(2) != b"X\n" or number() != 3:
    raise ValueError("not a vector in the third version of R's serialization")
  number(), number()  # The versions of R that wrote it and that can read it.
  stream.read(number())  # The name of the encoding.
  if number() & 0xFF != _STRINGS:
    raise ValueError("a piece is not a vector of strings")
  lines = []
  for _ in range(number()):
    if number() & 0xFF != _STRING:
      raise ValueError("a vector of strings holds something else")
    lines.append(stream.read(number()))
  return lines


def read_novels(source: pathlib.Path) -> dict[str, bytes]:
  """Returns the text of each novel, checked, by its name in the file."""
  by_title = {}
  for piece in pieces(source.read_bytes()):
    lines = strings(piece)
    by_title[lines[0].decode()] = b"\n".join(lines) + b"\n"
  novels = {}
  for name, (title, expected) in CONTENTS.items():
    digest = hashlib.sha256(by_title.get(title, b"")).hexdigest()
    if digest != expected:
      raise ValueError(
        f"{source}: {title!r} has sha256 {digest}, expected {expected}: it is "
        "not version 1.0.0 of janeaustenr"
      )
    novels[name] = by_title[title]
  return novels


def zip_bytes(novels: dict[str, bytes]) -> bytes:
  """Returns a .zip whose bytes depend on the novels alone."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, text in novels.items():
      info = zipfile.ZipInfo(f"{name}.txt")  # Dated 1980, not today.
      info.compress_type = zipfile.ZIP_BZIP2
      info.create_system = 3
      archive.writestr(info, text, compresslevel=9)
  return buffer.getvalue()


def main(argv: list[str]) -> None:
  """Writes the file, or compares it; exits 1 if that cannot be done."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  source, output = pathlib.Path(_SOURCE.value), pathlib.Path(_OUTPUT.value)
  if not source.is_file():
    sys.exit(
      f"no file {source}: install Debian's package r-cran-janeaustenr, or pass "
      "--source=FILE with Rdata.rdb of the R package"
    )
  content = zip_bytes(read_novels(source))
  try:
    print(disk.make_file(output, content, check=_CHECK.value))
  except ValueError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  app.run(main)
