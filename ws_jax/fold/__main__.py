"""`python -m ws_jax.fold SOURCE OUT` writes the plain parameters of a run."""

import argparse
import json
import pathlib
import sys
from typing import Any

from ws_jax import files, fold
from ws_jax.core import conventions
from ws_jax.core.conventions import Convention


def main(arguments: list[str] | None = None) -> int:
  """Writes the file, or one line that says what is wrong; returns the code."""
  parser = argparse.ArgumentParser(
    prog="python -m ws_jax.fold",
    description="Folds Weight Standardization into the kernels of a trained "
    "run: the plain model computes the same with what is written.",
  )
  parser.add_argument(
    "source",
    help="a run's workdir, of which the newest step is taken (the moving "
    "average of the parameters if there is one, and the running statistics "
    "with them), or an orbax folder, a .npz or a .safetensors file",
  )
  parser.add_argument("out", help="a .npz or a .safetensors file")
  parser.add_argument(
    "--convention",
    help="the one of the training; a workdir says it itself. One of "
    f"{', '.join(conventions.CONVENTIONS)}",
  )
  given = parser.parse_args(arguments)
  try:
    raw = files.read_raw_variables(given.source)
    convention = _convention(pathlib.Path(given.source), given.convention)
    folded = fold(raw, convention=convention)
    files.write_params(given.out, folded, folded=convention)
  except (OSError, ValueError) as error:
    line = " ".join(str(error).split())
    print(f"{parser.prog}: {line}", file=sys.stderr)
    return 2
  print(f"{given.out}: {files.read_info(given.out)}")
  return 0


def _convention(source: pathlib.Path, name: str | None) -> Convention:
  """The one that the run was trained with."""
  chosen = None if name is None else conventions.get_convention(name)
  config = source / "config.json"
  if config.is_file():
    model: dict[str, Any] = json.loads(config.read_text())["model"]
    if not model["ws"]:
      raise ValueError(
        f"{source}: was trained without Weight Standardization; there is "
        "nothing to fold"
      )
    own = conventions.get_convention(model["ws_convention"])
    if chosen not in (None, own):
      raise ValueError(
        f"{source}: was trained with {model['ws_convention']}, not {name}"
      )
    return own
  if chosen is None:
    raise ValueError(
      f"{source}: does not say how it was trained; give its --convention"
    )
  return chosen


if __name__ == "__main__":
  sys.exit(main())
