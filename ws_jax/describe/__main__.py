"""`python -m ws_jax.describe CHECKPOINT` prints the table of its parameters."""

import argparse
import os
import sys

from ws_jax import describe, files
from ws_jax.core import conventions


def main(arguments: list[str] | None = None) -> int:
  """Prints the table, or one line that says what is wrong; returns the code."""
  parser = argparse.ArgumentParser(
    prog="python -m ws_jax.describe",
    description="What Weight Standardization does to the parameters on disk.",
  )
  parser.add_argument(
    "checkpoint",
    help="a run's workdir, an orbax folder, a .npz or a .safetensors file",
  )
  parser.add_argument(
    "--convention",
    default="bit",
    help=f"one of {', '.join(conventions.CONVENTIONS)} (default: bit)",
  )
  given = parser.parse_args(arguments)
  try:
    convention = conventions.get_convention(given.convention)
    params = files.read_params(given.checkpoint)
    print(describe(params, convention=convention), flush=True)
    info = files.read_info(given.checkpoint)
    if info.folded:
      print(f"This file is {info}. Do not fold it again, or train on from it.")
  except BrokenPipeError:
    # The reader, as `head`, has seen enough. Python would complain at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except (OSError, ValueError) as error:
    line = " ".join(str(error).split())
    print(f"{parser.prog}: {line}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
