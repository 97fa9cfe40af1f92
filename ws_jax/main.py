"""The command line: `python -m ws_jax.main --config=FILE.py --workdir=DIR`.

`--config.KEY=VALUE` sets a key of the configuration; `--help` behind a
`--config` lists all of its keys. `--evaluate=DIR` evaluates a trained run.

Several processes train one run together if `srun` or `mpirun` started them, or
each is told by `--coordinator=HOST:PORT --num_processes=N --process_id=I`.
"""

import sys
import traceback
import types
from typing import NoReturn

from ws_jax.base import extras

with extras.program("train", by="ws_jax.main"):
  from absl import app, flags, logging

from ws_jax import config
from ws_jax.base import disk, keys

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

_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT at which process 0 of several answers; with --num_processes and"
  " --process_id. Slurm and Open MPI need none of the three.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Number of processes that train this run."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Number of this process, from 0."
)

# Results of `parse`: the `--config.KEY=VALUE` given, and the config with them;
# and how to end, which several processes exchange.
_parsed = types.SimpleNamespace(given=[], config=None, leave=sys.exit)


def main(argv: list[str]) -> None:
  """Runs one configuration.

  It exits 2 if it cannot be run, 3 if it diverged, and 4 if another process of
  the run is gone.
  """
  import jax

  from ws_jax import data, train
  from ws_jax.train import processes

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
    line = f"{error}; recorded in {_WORKDIR.value}/status.json"
    _stop(line, 3, alone=False)
  except train.Interrupted as error:
    _stop(
      f"{error}; saved in {_WORKDIR.value}, run the same command to go on",
      128 + error.signum,
      alone=False,
    )
  except config.ConfigError as error:
    _stop(f"error: {error}", 2)
  except data.DataError as error:  # One before the first step is the former.
    _stop(f"error: {error}; data.on_error=skip would count and skip it", 1)
  except Exception as error:
    workdir = str(_WORKDIR.value)
    if isinstance(error, OSError) and disk.is_of_disk(error, workdir):
      what = f"{error.filename or workdir}: {error.strerror or error}"
      _stop(
        f"error: {what}; the same command goes on from the newest checkpoint", 1
      )
    if not processes.several():
      raise
    if not isinstance(error, jax.errors.JaxRuntimeError):
      traceback.print_exc()
      _stop("error: this process failed, and ends all others of its run", 1)
    said = str(error).partition("\n")[0]
    _stop(
      f"error: another process of this run is gone ({said}); start all of them"
      " again to go on from the newest checkpoint",
      processes.LOST,
    )
  else:
    shown = {k: x for k, x in metrics.items() if k.startswith("eval/")}
    if processes.first():
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
  from ws_jax.train import backend, processes

  try:
    if joined := processes.join(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    ):
      _parsed.leave = processes.leave
    _say(backend.configure())
    if joined:
      _say(processes.describe())
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
  if answers is not None:
    for name, (right, count) in answers.by_group.items():
      share = right / count
      _say(f"{answers.group_key} {name}: {right} of {count}, {share:.4f}")
  return {f"eval/{name}": x for name, x in metrics.items()}


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _stop(line: str, code: int, *, alone: bool = True) -> NoReturn:
  """Ends with a line; `alone` if other processes of the run may not end."""
  _say(line)
  if alone:
    _parsed.leave(code)
  sys.exit(code)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
