"""A written network against the run that it was made of."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import numpy as np

from ws_jax.weights.export import network

# The largest difference, as a part of the largest output, by the dtype of the
# activations. Programs add in orders of their own, mostly for a difference of
# 1e-6; large logits of attention made 3e-4 of it.
_CLOSE = {"float32": 1e-3, "bfloat16": 0.05}


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A file against its run.

  Attributes:
    runtime: Name and version of the program that read the file.
    seconds: Time it took to read the file, and to compute for the first time.
    difference: Largest difference of an output.
    largest: Largest output of the run.
  """

  runtime: str
  seconds: float
  difference: float
  largest: float

  def __str__(self) -> str:
    return (
      f"as {self.runtime} reads it ({self.seconds:.1f} s) it differs by"
      f" {self.difference:.1e} at most, of outputs up to {self.largest:.3g}"
    )


def compare(
  read: Callable[[pathlib.Path], network.Network],
  path: pathlib.Path,
  folded: network.Folded,
) -> Comparison:
  """Reads a file, and compares its outputs with those of the run.

  Args:
    read: Function that reads the file.
    path: Path of the file.
    folded: The network that was written.

  Raises:
    ValueError: the outputs differ.
  """
  began, seconds = time.perf_counter(), 0.0
  found = read(path)
  differences, sizes = [], []
  for number in (1, 3):  # a file takes any number of inputs
    raw = folded.samples(number, seed=number)
    outputs = found.call(folded.taken(raw))
    seconds = seconds or time.perf_counter() - began
    wanted = folded.run.predict(raw)
    differences.append(_distance(outputs, wanted))
    sizes.append(np.abs(wanted).max())
  difference, largest = float(max(differences)), float(max(sizes))
  dtype = folded.run.config.model.get("dtype", "float32")
  allowed = _CLOSE.get(dtype, _CLOSE["float32"])
  if not difference <= allowed * max(largest, 1e-3):
    raise ValueError(
      f"not written: as {found.runtime} reads it, outputs up to {largest:.3g}"
      f" differ by {difference:.1e} from those of the run"
    )
  return Comparison(found.runtime, seconds, difference, largest)


def _distance(outputs: np.ndarray, wanted: np.ndarray) -> float:
  if outputs.shape != wanted.shape:
    raise ValueError(
      f"not written: its outputs are {list(outputs.shape)}, those of the run"
      f" {list(wanted.shape)}"
    )
  return float(np.abs(outputs.astype(np.float64) - wanted).max())
