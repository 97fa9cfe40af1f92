"""Networks as StableHLO, the format of `jax.export`.

    data = bytearray(open("x.stablehlo", "rb").read())
    program = jax.export.deserialize(data)
    logits = program.call(images)

What a file says of its network lies beside it, as `x.stablehlo.json`: the
format has no place of its own for it.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ws_jax import native
from ws_jax.base import disk, extras
from ws_jax.weights.export import network

SUFFIX = ".stablehlo"
EXTRA = "stablehlo"  # that the format needs
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(path: pathlib.Path, folded: network.Folded) -> None:
  """Writes a network, and what is known of it to a file beside.

  Args:
    path: Path of the file.
    folded: The network.
  """
  disk.write_json(about_path(path), folded.about)
  with disk.whole(path) as file:
    file.write(export(folded).serialize())


def export(
  folded: network.Folded, platforms: Sequence[str] = PLATFORMS
) -> jax.export.Exported:
  """Returns the program of a network, for any number of inputs at once.

  Args:
    folded: The network.
    platforms: Names of the backends that may run it.
  """
  (batch,) = jax.export.symbolic_shape("batch")
  inputs = jax.ShapeDtypeStruct((batch, *folded.shape), folded.dtype)
  with native.portable():
    call = jax.jit(lambda inputs: folded.closed(inputs))
    return jax.export.export(call, platforms=platforms)(inputs)


def read(path: pathlib.Path) -> network.Network:
  """Reads a network.

  Raises:
    ValueError: the file is damaged, or there is none that says what it takes.
    MissingExtra: flatbuffers, which jax.export needs, is not installed.
  """
  extras.need(EXTRA, by=f"a file of {SUFFIX}")
  about = about_path(path)
  if not about.is_file():
    raise ValueError(f"{about}: no such file; it belongs to {path.name}")
  said = network.loads(about.read_text(encoding="utf-8"), about)
  try:
    program = jax.export.deserialize(bytearray(path.read_bytes()))
  except Exception as error:  # whatever the parser stumbles over
    raise ValueError(f"{path}: no program of jax.export: {error}") from None
  call: Any = jax.jit(program.call)
  return network.Network(
    about=said,
    call=lambda inputs: np.asarray(call(jnp.asarray(inputs))),
    runtime=f"jax {jax.__version__}",
  )


def about_path(path: pathlib.Path) -> pathlib.Path:
  """Returns the path of the file that says what a program takes."""
  return path.with_name(f"{path.name}.json")
