"""The command line: `python -m ws_jax.main --config=FILE.py --workdir=DIR`."""

import sys
from typing import NoReturn

from ws_jax.base import extras

with extras.program("train", by="ws_jax.main"):
  from absl import app, flags, logging
  from ml_collections import config_flags

from ws_jax import config

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, e.g. configs/fashion_mnist.py:norm=batch,ws=false; a key of it"
  " is set by --config.optim.learning_rate=0.4.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run; a run found there is continued.",
  required=True,
)


def main(argv: list[str]) -> None:
  """Runs one configuration; exits 2 if it cannot be run, 3 if it diverged."""
  from ws_jax.train import backend, loop

  if len(argv) > 1:
    _stop(f"error: unexpected arguments {' '.join(argv[1:])}", 2)
  logging.set_verbosity(logging.WARNING)
  try:
    _say(backend.configure())
  except ValueError as error:
    _stop(f"error: {error}", 2)
  try:
    metrics = loop.train_and_evaluate(_CONFIG.value, _WORKDIR.value)
  except loop.Diverged as error:
    _stop(f"{error}; recorded in {_WORKDIR.value}/status.json", 3)
  except loop.Interrupted as error:
    _stop(
      f"{error}; saved in {_WORKDIR.value}, run the same command to go on",
      128 + error.signum,
    )
  except config.ConfigError as error:
    _stop(f"error: {error}", 2)
  else:
    _say("  ".join(f"{name} {x:.4f}" for name, x in sorted(metrics.items())))


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; whatever is wrong with them is one line, and exit 2."""
  try:
    _check_keys(argv)
    return flags.FLAGS(argv)
  except Exception as error:
    _stop(f"error: {' '.join(str(error).split())}", 2)


def _check_keys(argv: list[str]) -> None:
  """Says what config_flags would say at greater length, before it does."""
  paths = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
  for path in paths:
    known = config.flatten(config.load(path))
    for arg in argv:
      key = arg.partition("=")[0].removeprefix("--config.")
      if arg.startswith("--config.") and key not in known:
        near = config.nearest(key, known)
        raise config.ConfigError(f"unknown config key {key!r}{near}")


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _stop(line: str, code: int) -> NoReturn:
  _say(line)
  sys.exit(code)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse)
