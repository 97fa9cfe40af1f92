"""The command line: `python -m ws_jax.main --config=FILE.py --workdir=DIR`.

`--config.KEY=VALUE` sets a key of the configuration; `--help` behind a
`--config` lists all of its keys. `--evaluate=DIR` evaluates a trained run.
"""

import sys
import types
from typing import NoReturn

from ws_jax.base import extras

with extras.program("train", by="ws_jax.main"):
  from absl import app, flags, logging

from ws_jax import config
from ws_jax.base import keys

_CONFIG = flags.DEFINE_string(
  "config",
  None,
  "Config file, e.g. configs/fashion_mnist.py:norm=batch,ws=false; a key of it"
  " is set by --config.optim.learning_rate=0.4, and switched off by"
  " --config.optim.clip_norm=none.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; a run found there is resumed."
)
_EVALUATE = flags.DEFINE_string(
  "evaluate",
  None,
  "Workdir of a run, or the folder of one of its checkpoints: evaluates it, and"
  " trains nothing. Choose the split by --config.data.eval_split=NAME.",
)

# Results of `parse`: the `--config.KEY=VALUE` given, and the config with them.
_parsed = types.SimpleNamespace(given=[], config=None)


def main(argv: list[str]) -> None:
  """Runs one configuration; exits 2 if it cannot be run, 3 if it diverged."""
  from ws_jax import train

  if len(argv) > 1:
    _stop(f"error: unexpected arguments {' '.join(argv[1:])}", 2)
  logging.set_verbosity(logging.WARNING)
  try:
    _check_flags()
    _configure()
    if _EVALUATE.value is not None:
      metrics = _evaluate(_EVALUATE.value)
    else:
      workdir = str(_WORKDIR.value)
      metrics = train.train_and_evaluate(_parsed.config, workdir)
  except train.Diverged as error:
    _stop(f"{error}; recorded in {_WORKDIR.value}/status.json", 3)
  except train.Interrupted as error:
    _stop(
      f"{error}; saved in {_WORKDIR.value}, run the same command to go on",
      128 + error.signum,
    )
  except config.ConfigError as error:
    _stop(f"error: {error}", 2)
  else:
    shown = {k: x for k, x in metrics.items() if k.startswith("eval/")}
    _say("  ".join(f"{name} {x:.4f}" for name, x in sorted(shown.items())))


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; whatever is wrong with them is one line, and exit 2.

  Sets of keys are taken out first: they belong to the configuration, whose
  keys are not known before it is loaded.
  """
  try:
    rest, given = _take_keys(argv)
    if {"--help", "-h", "--helpfull"} & set(rest):
      _print_keys(rest, given)
    _parsed.given = given
    rest = flags.FLAGS(rest)
    if _CONFIG.value is not None:  # here, for its errors to come first
      _parsed.config = config.apply_texts(config.load(_CONFIG.value), given)
    return rest
  except (flags.Error, ValueError) as error:
    _stop(f"error: {' '.join(str(error).split())}", 2)


def _take_keys(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Splits `--config.KEY=VALUE`, `--config.KEY VALUE` and `--noconfig.KEY` off.

  A key without a value is a switch that is turned on.
  """
  rest: list[str] = []
  given: list[tuple[str, str]] = []
  words = iter(range(len(argv)))
  for i in words:
    head, equals, value = argv[i].partition("=")
    name = head.lstrip("-")
    if not head.startswith("-") or not name.startswith(
      ("config.", "noconfig.")
    ):
      rest.append(argv[i])
      continue
    key = name.partition(".")[2]
    if name.startswith("no"):
      value = "false"
    elif not equals:
      value = "true"
      if i + 1 < len(argv) and not argv[i + 1].startswith("--"):
        value = argv[next(words)]
    given.append((key, value))
  return rest, given


def _print_keys(argv: list[str], given: list[tuple[str, str]]) -> None:
  """Prints every key of the configuration that the command line stands for."""
  path = None
  for i, word in enumerate(argv):
    head, equals, value = word.partition("=")
    if head.lstrip("-") == "config":
      path = value if equals else argv[i + 1] if i + 1 < len(argv) else None
  chosen = config.load(path) if path else config.default()
  config.apply_texts(chosen, given)
  flat = config.flatten(chosen)
  print(
    f"Keys of {path or 'the default configuration'}, as --config.KEY=VALUE:"
  )
  print(keys.listing(config.keys(chosen), flat))
  print()


def _check_flags() -> None:
  if _EVALUATE.value is not None:
    if _CONFIG.value is not None or _WORKDIR.value is not None:
      raise config.ConfigError("--evaluate takes no --config and no --workdir")
    return
  for flag in (_CONFIG, _WORKDIR):
    if not flag.value:
      raise config.ConfigError(
        f"--{flag.name} is missing: python -m ws_jax.main --config=FILE.py"
        " --workdir=DIR"
      )


def _configure() -> None:
  from ws_jax.train import backend

  try:
    _say(backend.configure())
  except ValueError as error:  # WS_JAX_NATIVE=maybe
    raise config.ConfigError(str(error)) from error


def _evaluate(path: str) -> dict[str, float]:
  from ws_jax import train

  try:
    run = train.load_run(path)
  except ValueError as error:
    raise config.ConfigError(" ".join(str(error).split())) from error
  _say(f"{path}: step {run.step}")
  metrics, answers = run.answer(_parsed.given)
  for name, (right, count) in (answers.by_group if answers else {}).items():
    _say(f"{answers.group_key} {name}: {right} of {count}, {right / count:.4f}")
  return {f"eval/{name}": x for name, x in metrics.items()}


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _stop(line: str, code: int) -> NoReturn:
  _say(line)
  sys.exit(code)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
