"""The decoded arrays of a prepared set, kept beside it for the next start.

Plain arrays in an uncompressed .npz, never a pickle: nothing in it is run.
"""

import hashlib
import pathlib
from typing import Any

import numpy as np
from absl import logging

from ws_jax.base import disk

CACHE_NAME = "ws_jax_decoded.npz"


def _fingerprint(folder: pathlib.Path) -> str:
  """Changes when the set is prepared again."""
  digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
  for path in sorted(folder.iterdir()):
    if "record" in path.name:
      stat = path.stat()
      digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
  return digest.hexdigest()


def read(folder: pathlib.Path) -> dict[str, np.ndarray] | None:
  """What `write` kept in this folder; None if there is nothing that fits."""
  try:
    with (
      open(folder / CACHE_NAME, "rb") as file,
      np.load(file, allow_pickle=False) as archive,
    ):
      if str(archive["fingerprint"]) != _fingerprint(folder):
        return None
      return {key: archive[key] for key in archive if key != "fingerprint"}
  except Exception:  # Absent, damaged, of an older layout: decode again.
    return None


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Keeps arrays beside the prepared files, if the folder can be written."""
  content: dict[str, Any] = {"fingerprint": _fingerprint(folder), **arrays}
  target = folder / CACHE_NAME
  try:
    with disk.whole(target) as file:
      np.savez(file, **content)
  except OSError as error:  # A full disk or a folder of others: slower starts.
    logging.warning("cannot keep the decoded images in %s: %s", target, error)
