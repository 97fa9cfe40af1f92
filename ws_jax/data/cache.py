"""Decoded arrays, kept for the next start beside the files they come from.

Plain arrays in an uncompressed .npz, never a pickle: nothing in it is run.
Where the files lie in a folder that cannot be written, the arrays go to the
user's cache folder.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import logging

from ws_jax.base import disk

CACHE_NAME = "ws_jax_decoded.npz"


def read(
  path: pathlib.Path, fingerprint: str, wanted: Iterable[str] | None = None
) -> dict[str, np.ndarray] | None:
  """Returns arrays that `write` kept, or None if they are not all there.

  Args:
    path: the file that `write` was asked for.
    fingerprint: the state of the files that were decoded, as text.
    wanted: the names of the arrays; None for all that were kept.
  """
  for place in (path, _elsewhere(path)):
    try:
      with (
        open(place, "rb") as file,
        np.load(file, allow_pickle=False) as archive,
      ):
        if str(archive["fingerprint"]) == fingerprint:
          names = set(archive) if wanted is None else set(wanted)
          return {name: archive[name] for name in names - {"fingerprint"}}
    except Exception:  # Absent, damaged, of an older layout: decode again.
      continue
  return None


def write(
  path: pathlib.Path, fingerprint: str, arrays: dict[str, np.ndarray]
) -> None:
  """Keeps arrays for `read`; warns if there is no place that can be written.

  Args:
    path: the file to write, beside those that were decoded.
    fingerprint: the state of the files that were decoded, as text.
    arrays: the arrays by name.
  """
  content: dict[str, Any] = {"fingerprint": fingerprint, **arrays}
  for place in (path, _elsewhere(path)):
    try:
      if place != path:
        place.parent.mkdir(parents=True, exist_ok=True)
      with disk.whole(place) as file:
        np.savez(file, **content)
      return
    except OSError as error:  # A full disk or a folder of others.
      reason = error
  logging.warning("cannot keep the decoded images of %s: %s", path, reason)


def _elsewhere(path: pathlib.Path) -> pathlib.Path:
  """Returns the file in the user's cache folder that stands in for `path`."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
  return pathlib.Path(cache, "ws_jax", "data", f"{digest}.npz")
