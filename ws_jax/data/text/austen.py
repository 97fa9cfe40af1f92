"""The six novels of Jane Austen, which are in the package.

`scripts/make_austen.py` makes the file. Four novels are for training (3.1 MB),
Northanger Abbey is for validation and Persuasion for the test (0.4 MB each).
"""

import hashlib
import pathlib
import shlex
import zipfile

from ws_jax.data.request import DataError

NAME = "austen"
PATH = pathlib.Path(__file__).with_name("austen.zip")
SHA256 = "c87329ed2b4ebb34ff2b2966e775fad4036d87ff6f3a0a838fcf647f2763efc3"
SPLITS = {
  "train": (
    *("sense_and_sensibility", "pride_and_prejudice"),
    *("mansfield_park", "emma"),
  ),
  "validation": ("northanger_abbey",),
  "test": ("persuasion",),
}


def read(split: str) -> list[bytes]:
  """Returns the text of each novel of a split.

  Raises:
    DataError: the file is missing or damaged.

  Example:
    >>> read("train")[1].splitlines()[9].decode()
    'It is a truth universally acknowledged, that a single man in possession'
  """
  if not PATH.exists():
    raise DataError(f"{PATH} is missing: install ws_jax again")
  if hashlib.sha256(PATH.read_bytes()).hexdigest() != SHA256:
    raise DataError(
      f"{PATH} is damaged (its checksum differs): restore it with "
      f"`git checkout -- {shlex.quote(str(PATH))}` or install ws_jax again"
    )
  with zipfile.ZipFile(PATH) as archive:
    return [archive.read(f"{name}.txt") for name in SPLITS[split]]
