"""Works on the weights of a run or a file: `python -m ws_jax.weights VERB`."""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ws_jax import models, train, weights
from ws_jax.base import disk, names
from ws_jax.core import conventions, describe
from ws_jax.train import calling
from ws_jax.weights import convert, generate, predict, steps
from ws_jax.weights.export import verb as export

_SOURCE = "a run's workdir, an orbax folder, a .npz or a .safetensors file"
_CONVENTIONS = f"one of {', '.join(conventions.CONVENTIONS)}"


def _describe(given: argparse.Namespace) -> None:
  """Prints the table of `ws_jax.describe`."""
  convention = conventions.get_convention(given.convention or "bit")
  params, read = weights.read_params_of(given.source)
  print(describe.describe(params, convention=convention), flush=True)
  if words := steps.told(read):
    print(f"This is {words}.")
  info = weights.read_info(given.source)
  if info.folded:
    print(f"This file is {info}. Do not fold it again, or train on from it.")


def _fold(given: argparse.Namespace) -> None:
  """Writes plain weights, with which the plain model computes the same."""
  source = pathlib.Path(given.source)
  raw, read = weights.read_checkpoint(source)
  model = _model_of(source)
  convention = _convention(source, model, given.convention)
  if _is_imported(model):
    # Only the model itself knows the kernels of an NNX module.
    folded = train.load_run(source).variables
  else:
    is_run = isinstance(raw, dict) and isinstance(raw.get("params"), dict)
    params = raw["params"] if is_run else raw
    globs = tuple(model.get("ws_where", ()))
    plain = calling.effective_params(
      None,
      params,
      convention,
      globs or models.ws_where(model.get("name", ":")),
      model.get("ws_axes", "joint"),
      model.get("ws_depthwise", "standardize"),
    )
    folded = {**raw, "params": plain} if is_run else plain
  weights.write_params(given.out, folded, folded=convention)
  words = [steps.told(read), str(weights.read_info(given.out))]
  print(f"{given.out}: {', '.join(filter(None, words))}")


def _model_of(source: pathlib.Path) -> dict[str, Any]:
  """Returns the `config.model` of a run; nothing for other sources."""
  config = disk.read_json(source / "config.json") if source.is_dir() else None
  return config["model"] if config else {}


def _is_imported(model: Mapping[str, Any]) -> bool:
  """Returns whether a run's model is the user's own, by import name."""
  module, colon, _ = model.get("name", "").partition(":")
  return bool(colon) and module != names.GIVEN


def _convention(
  source: pathlib.Path, model: Mapping[str, Any], name: str | None
) -> conventions.Convention:
  """Returns the convention that the weights were trained with."""
  chosen = None if name is None else conventions.get_convention(name)
  if model:
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


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m ws_jax.weights",
    description="Looks at trained weights, and turns them into other forms.",
  )
  verbs = parser.add_subparsers(metavar="VERB", required=True)
  verb = verbs.add_parser(
    "describe",
    help="print what Weight Standardization does to each array",
    description="Prints a line for each array: whether it is standardized, "
    "over which axes, and what its filters are like.",
  )
  verb.add_argument("source", help=_SOURCE)
  verb.add_argument("--convention", help=f"{_CONVENTIONS} (default: bit)")
  verb.set_defaults(run=_describe)
  verb = verbs.add_parser(
    "fold",
    help="write plain weights for the plain model",
    description="Folds Weight Standardization into the kernels of a trained "
    "run: the plain model computes the same with what is written.",
  )
  verb.add_argument(
    "source",
    help=f"{_SOURCE}. Of a workdir the newest step is taken: the moving "
    "average of the parameters if the run kept one, and the running "
    "statistics",
  )
  verb.add_argument("out", help="the .npz or .safetensors file to write")
  verb.add_argument(
    "--convention",
    help=f"the convention of the training, {_CONVENTIONS}; a workdir knows "
    "its own",
  )
  verb.set_defaults(run=_fold)
  for name, module_arguments, run, text in (
    (
      *("export", export.add_arguments, export.run),
      "write the folded network of a run for use without this package",
    ),
    (
      *("predict", predict.add_arguments, predict.run),
      "print the classes that a run, or a file that `export` has written, sees"
      " in images, clips or texts",
    ),
    (
      *("generate", generate.add_arguments, generate.run),
      "print a prompt and what a language model writes behind it",
    ),
    (
      *("import", convert.add_import, convert.run_import),
      "make parameters of a model here of published weights, and report every"
      " array that is used, unused or missing",
    ),
    (
      *("publish", convert.add_publish, convert.run_publish),
      "write the raw parameters of a run in a published layout",
    ),
  ):
    verb = verbs.add_parser(name, help=text, description=text)
    module_arguments(verb)
    verb.set_defaults(run=run)
  return parser


def main(arguments: list[str] | None = None) -> int:
  """Runs one verb; what is wrong is one line on stderr, and exit code 2."""
  parser = _parser()
  given = parser.parse_args(arguments)
  try:
    given.run(given)
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
