"""Works on the weights of a run or a file: `python -m ws_jax.weights VERB`."""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ws_jax import models, train, weights
from ws_jax.base import disk, names
from ws_jax.core import conventions, describe, fold
from ws_jax.core.kernels import by_path
from ws_jax.train import calling
from ws_jax.weights import choice, convert, generate, predict, steps
from ws_jax.weights.export import verb as export

_SOURCE = "a run's workdir, an orbax folder, a .npz or a .safetensors file"
_CONVENTIONS = f"one of {', '.join(conventions.CONVENTIONS)}"


def _describe(given: argparse.Namespace) -> None:
  """Prints the table of `ws_jax.describe`."""
  source = pathlib.Path(given.source)
  model = _model_of(source)
  params, read = weights.read_params_of(source)
  chosen = choice.choose(given, by_path(params), source)
  where, axes, convention = chosen.where, chosen.axes, chosen.convention
  if model.get("ws") and not choice.is_given(given):
    # What the run itself did. An NNX module alone knows its own kernels.
    where, axes = calling.selection(None, *_selection(model))
    own = conventions.get_convention(model["ws_convention"])
    convention = convention or own
  table = describe.describe(
    params, where=where, axes=axes, convention=convention or conventions.BIT
  )
  print(table, flush=True)
  if words := steps.told(read):
    print(f"This is {words}.")
  info = weights.read_info(source)
  if info.folded:
    print(f"This file is {info}. Do not fold it again, or train on from it.")


def _fold(given: argparse.Namespace) -> None:
  """Writes plain weights, with which the plain model computes the same."""
  source = pathlib.Path(given.source)
  raw, read = weights.read_checkpoint(source)
  model = _model_of(source)
  if not model:
    folded, convention, line = _fold_file(given, raw, source)
  else:
    if choice.is_given(given):
      raise ValueError(
        f"{source}: a run knows its own kernels; --preset, --where, --exclude,"
        " --filters and --gamma are for other files"
      )
    convention = _convention(source, model, given.convention)
    if _is_imported(model):
      # Only the model itself knows the kernels of an NNX module.
      folded, line = train.load_run(source).variables, ""
    else:
      parts = *_selection(model), model.get("ws_depthwise", "standardize")
      params = raw["params"]
      line = calling.summary(None, params, *parts)
      plain = calling.effective_params(None, params, convention, *parts)
      folded = {**raw, "params": plain}
  weights.write_params(given.out, folded, folded=convention)
  if line:
    print(f"standardized {line}")
  words = [steps.told(read), str(weights.read_info(given.out))]
  print(f"{given.out}: {', '.join(filter(None, words))}")


def _fold_file(
  given: argparse.Namespace, params: Any, source: pathlib.Path
) -> tuple[Any, conventions.Convention, str]:
  """Folds what is no run of this package.

  Returns:
    The folded parameters, their convention, and a line on the kernels.
  """
  is_state = isinstance(params, dict) and isinstance(params.get("params"), dict)
  tree = params["params"] if is_state else params
  leaves = by_path(tree)
  chosen = choice.choose(given, leaves, source)
  if chosen.convention is None:
    raise ValueError(
      f"{source}: does not say how it was trained; give its --convention"
    )
  gains = choice.gains(chosen, leaves, source)
  rules: dict[str, Any] = {"where": chosen.where, "axes": chosen.axes}
  line = describe.summarize(tree, **rules)
  plain = fold.fold(tree, convention=chosen.convention, gains=gains, **rules)
  folded = {**params, "params": plain} if is_state else plain
  return folded, chosen.convention, line


def _selection(model: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
  """Returns the patterns of a run's kernels, and the name of its axis rule."""
  globs = tuple(model.get("ws_where", ()))
  own = models.ws_where(model.get("name", ":"))
  return globs or own, model.get("ws_axes", "joint")


def _model_of(source: pathlib.Path) -> dict[str, Any]:
  """Returns the `config.model` of a run; nothing for other sources.

  Raises:
    ValueError: the file is damaged; the message names it.
  """
  path = source / "config.json"
  config = disk.read_json(path) if source.is_dir() else None
  if config is None:
    return {}
  model = config.get("model") if isinstance(config, dict) else None
  texts = ("name", "ws_convention", "ws_axes", "ws_depthwise")
  kinds = {"ws": bool, "ws_where": list} | dict.fromkeys(texts, str)
  if not isinstance(model, dict) or any(
    not isinstance(model.get(key), kind)
    for key, kind in kinds.items()
    if key in model or key in ("name", "ws", "ws_convention")
  ):
    raise ValueError(f"{path}: is damaged: it describes no model")
  if not all(isinstance(glob, str) for glob in model.get("ws_where", ())):
    raise ValueError(f"{path}: is damaged: model.ws_where must be texts")
  return model


def _is_imported(model: Mapping[str, Any]) -> bool:
  """Returns whether a run's model is the user's own, by import name."""
  module, colon, _ = model.get("name", "").partition(":")
  return bool(colon) and module != names.GIVEN


def _convention(
  source: pathlib.Path, model: Mapping[str, Any], name: str | None
) -> conventions.Convention:
  """Returns the convention that a run was trained with."""
  chosen = None if name is None else conventions.get_convention(name)
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
  verb.add_argument(
    "--convention",
    help=f"{_CONVENTIONS} (default: that of the run or preset, or bit)",
  )
  choice.add_arguments(verb)
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
    "its own, and so does a preset",
  )
  choice.add_arguments(verb)
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
