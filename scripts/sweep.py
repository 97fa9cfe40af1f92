"""Runs an experiment: every run of its sweep, one row each in OUT/runs.csv.

  python scripts/sweep.py --experiment=experiments/quickstart.py
  python scripts/sweep.py --experiment=experiments/quickstart.py --dry_run
  python scripts/sweep.py --experiment=experiments/quickstart.py \
      --filter='norm=group,learning_rate=0.*' --limit=1

Stopped at any moment and started again it repeats nothing that is finished.
Exits 2 if it cannot run, 4 if some runs failed, 130 if it was stopped.
"""

import functools
import importlib.util
import pathlib
import sys
from types import ModuleType

from absl import app, flags, logging

from ws_jax import backend, config, names, sweep, train

_EXPERIMENT = flags.DEFINE_string(
  "experiment", None, "The file: experiments/NAME.py.", required=True
)
_OUT = flags.DEFINE_string(
  "out", None, "Folder of the runs and runs.csv. Default: workdirs/NAME."
)
_FILTER = flags.DEFINE_string(
  "filter", "", "Only runs whose name has these terms; shell patterns allowed."
)
_LIMIT = flags.DEFINE_integer("limit", None, "At most so many runs now.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the runs, train none.")
_RETRY_FAILED = flags.DEFINE_bool(
  "retry_failed", False, "Also runs those that failed before."
)


def load_experiment(path: pathlib.Path) -> ModuleType:
  """Reads an experiment: a file with `CONFIG` and `sweep()`."""
  if not path.is_file():
    known = [other.stem for other in path.parent.glob("*.py")]
    raise ValueError(f"no experiment {path}: {names.suggest(path.stem, known)}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"experiment {path} is not a .py file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for name in ("CONFIG", "sweep"):
    if not hasattr(module, name):
      raise ValueError(f"experiment {path} has no {name}")
  return module


def describe(runs: list[sweep.Run]) -> None:
  """Prints the plan, runs of one compile together."""
  structures = dict.fromkeys(run.structure for run in runs)
  for number, structure in enumerate(structures, start=1):
    print(f"compile {number}: {structure}")
    for run in runs:
      if run.structure == structure:
        print(f"  {run.name}")
  print(f"{len(runs)} runs, {len(structures)} compiles")


def main(argv: list[str]) -> None:
  """Loads the experiment and runs what is left of it."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  say = functools.partial(print, flush=True)
  path = pathlib.Path(_EXPERIMENT.value)
  out = pathlib.Path(_OUT.value or f"workdirs/{path.stem}")
  try:
    experiment = load_experiment(path)
    if _DRY_RUN.value:
      describe(sweep.plan(experiment.sweep(), _FILTER.value))
      return
    base = config.load(experiment.CONFIG)
    say(backend.configure())
    rows = sweep.run_sweep(
      base,
      experiment.sweep(),
      out,
      only=_FILTER.value,
      limit=_LIMIT.value,
      retry_failed=_RETRY_FAILED.value,
      say=say,
    )
  except ValueError as error:
    say(f"error: {error}")
    sys.exit(2)
  except (KeyboardInterrupt, train.Interrupted) as error:
    say(
      f"stopped ({error or 'Ctrl-C'}); {out} is kept: the same command goes on"
    )
    sys.exit(130)
  say(f"{len(rows)} rows: {out / 'runs.csv'}")
  say(f"table and figure: python scripts/report.py {out}")
  failed = [row["run"] for row in rows if row["status"] == "failed"]
  if failed:
    say(f"failed (each has an error.txt; --retry_failed): {' '.join(failed)}")
    sys.exit(4)


if __name__ == "__main__":
  app.run(main)
