"""Runs an experiment: every run of its sweep, one row each in OUT/runs.csv.

  python scripts/sweep.py --experiment=experiments/quickstart.py
  python scripts/sweep.py --experiment=experiments/quickstart.py --dry_run
  python scripts/sweep.py --experiment=experiments/quickstart.py \
      --filter='norm=group,learning_rate=0.*' --limit=1

Stopped at any moment and started again it repeats nothing that is finished.
Started twice, also on two machines that share the folder, the work is shared.
Exits 2 if it cannot run, 4 if some runs failed, 130 if it was stopped.
"""

import functools
import importlib.util
import os
import pathlib
import signal
import sys
import threading
from types import ModuleType

from absl import app, flags, logging

from ws_jax import backend, config, launch, names, rows, sweep, train

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
_MAX_HOURS = flags.DEFINE_float(
  "max_hours", None, "Stops after this time, as on Ctrl-C.", lower_bound=0.0
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  1,
  "Processes that share the work, each with its part of the CPU cores or with"
  " devices of its own.",
  lower_bound=1,
)
_WORKER = flags.DEFINE_bool("worker", False, "Is one of them; not for people.")
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


def run(base, runs: list[sweep.Run], out: pathlib.Path, say) -> list[rows.Row]:
  """Does what is left to do, and returns the rows of all `runs`."""
  todo = sweep.choose(
    base, runs, out, limit=_LIMIT.value, retry_failed=_RETRY_FAILED.value
  )
  left = len(sweep.unfinished(runs, out))
  say(f"{len(runs)} runs, {len(runs) - left} finished before, in {out}")
  ended = 0

  def tell(number: int, run: sweep.Run, row: rows.Row | None) -> None:
    nonlocal ended
    ended += row is not None
    worker = f"worker {number}: " if _WORKERS.value > 1 else ""
    verdict = "begins" if row is None else rows.verdict(row)
    say(f"[{ended}/{len(todo)}] {worker}{run.name}: {verdict}")

  if todo:
    # The script, its flags that say what to run, and that it is a worker.
    command = [sys.executable, __file__, f"--experiment={_EXPERIMENT.value}"]
    command += [f"--out={out}", "--worker"]
    launch.local(base, todo, out, command, workers=_WORKERS.value, tell=tell)
  known = {row["key"]: row for row in rows.read(out / "runs.csv")}
  return [known[run.key] for run in runs if run.key in known]


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
    if _WORKER.value:
      # Not in the parent: it would take a device from the workers.
      print(backend.configure(), file=sys.stderr, flush=True)
      launch.work(base, out)
      return
    if _MAX_HOURS.value is not None:
      stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
      timer = threading.Timer(_MAX_HOURS.value * 3600, stop)
      timer.daemon = True
      timer.start()
    found = run(base, sweep.plan(experiment.sweep(), _FILTER.value), out, say)
  except ValueError as error:
    say(f"error: {error}")
    sys.exit(2)
  except (KeyboardInterrupt, train.Interrupted) as error:
    say(
      f"stopped ({error or 'Ctrl-C'}); {out} is kept: the same command goes on"
    )
    sys.exit(launch.STOPPED)
  say(f"{len(found)} rows: {out / 'runs.csv'}")
  say(f"table and figure: python scripts/report.py {out}")
  failed = [row["run"] for row in found if row["status"] == "failed"]
  if failed:
    say(f"failed (each has an error.txt; --retry_failed): {' '.join(failed)}")
    sys.exit(4)


if __name__ == "__main__":
  app.run(main)
