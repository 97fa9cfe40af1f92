"""Runs an experiment: every run of its sweep, one row each in OUT/runs.csv.

  python scripts/sweep.py --experiment=experiments/quickstart.py
  python scripts/sweep.py --experiment=experiments/quickstart.py --plan
  python scripts/sweep.py --experiment=experiments/quickstart.py \
      --filter='norm=group,learning_rate=0.*' --limit=1

Stopped at any moment and started again it repeats nothing that is finished.
Started twice, also on two machines that share the folder, the work is shared.
OUT/worker-N.log has what worker N says while it is at a run.
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

from ws_jax.base import extras

with extras.program("train", by="scripts/sweep.py"):
  from absl import app, flags, logging

from ws_jax import config
from ws_jax.base import disk, names, signals
from ws_jax.sweep import (
  estimate,
  grid,
  rows,
  runner,
  shares,
  slurm,
  view,
)
from ws_jax.sweep.workers import STOPPED, Fleet, work
from ws_jax.train import backend, loop

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
_LAUNCHER = flags.DEFINE_enum(
  "launcher",
  "local",
  ["local", "slurm"],
  "Trains here, or submits a job array with a task for each compile.",
)
_PARTITION = flags.DEFINE_string("slurm_partition", None, "Of the cluster.")
_MINUTES = flags.DEFINE_integer(
  "slurm_minutes",
  60,
  "Time limit of a task; one that needs more saves and queues again.",
  lower_bound=1,
)
_GPUS = flags.DEFINE_integer("slurm_gpus", None, "GPUs of a task.")
_CPUS = flags.DEFINE_integer("slurm_cpus", None, "CPU cores of a task.")
_WORKER = flags.DEFINE_bool("worker", False, "Is one of them; not for people.")
_PLAN = flags.DEFINE_bool("plan", False, "Print the runs, and train none.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "The same, and how long they take: times each program."
)
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


def describe(base, runs: list[grid.Run]) -> None:
  """Prints the runs, those of one compile together; and times them if asked."""
  groups = grid.by_structure(runs)
  workers, total = _WORKERS.value, 0.0
  if _DRY_RUN.value:
    print("compiling each program and timing a block (--plan: without)")
    if workers > 1:  # as a worker would
      env, cores = shares.share(*shares.machine(), 0, workers)
      os.environ |= env
      if cores:
        os.sched_setaffinity(0, cores)
    backend.configure()
  for number, (structure, members) in enumerate(groups.items(), start=1):
    print(f"compile {number}: {structure}", flush=True)
    for run in members:
      print(f"  {run.name}")
    if _DRY_RUN.value:
      cost = estimate.measure(runner.config_of(base, members[0]))
      total += cost.seconds(len(members))
      print(
        f"  {cost.steps} steps of {cost.step:.3g} s, {cost.evaluations}"
        f" evaluations of {cost.evaluation:.3g} s, compiling"
        f" {cost.compiling:.3g} s: {view.clock(cost.seconds(len(members)))}",
        flush=True,
      )
  print(f"{len(runs)} runs, {len(groups)} compiles")
  if _DRY_RUN.value:
    many = "1 worker" if workers == 1 else f"{workers} workers"
    print(f"about {view.clock(total / workers)} with {many}")


def worker_command(out: pathlib.Path) -> list[str]:
  """Starts a worker of this sweep, from any folder."""
  experiment = pathlib.Path(_EXPERIMENT.value).absolute()
  command = [sys.executable, os.path.abspath(__file__), "--worker"]
  return [*command, f"--experiment={experiment}", f"--out={out.absolute()}"]


def run_here(todo: list[grid.Run], out: pathlib.Path) -> None:
  """Trains them, in view."""
  workers = _WORKERS.value
  with signals.interrupt(), view.View(todo, out, workers) as shown:
    if _MAX_HOURS.value is not None:
      stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
      timer = threading.Timer(_MAX_HOURS.value * 3600, stop)
      timer.daemon = True
      timer.start()
    Fleet(
      todo, out, worker_command(out), workers=workers, tell=shown.tell
    ).run()


def submit(todo: list[grid.Run], out: pathlib.Path, say) -> None:
  """Submits them to Slurm; says how to look after them."""
  jobs = slurm.submit(
    todo,
    out,
    worker_command(out),
    workers=_WORKERS.value,
    partition=_PARTITION.value,
    minutes=_MINUTES.value,
    gpus=_GPUS.value,
    cpus=_CPUS.value,
  )
  say(f"submitted {len(todo)} runs as jobs {' '.join(jobs)}; see them with")
  say(f"  squeue --jobs={jobs[0].partition('_')[0]}   tail {out}/slurm/*.out")


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
    base = config.load(experiment.CONFIG)
    if _WORKER.value:
      # Not in the parent: it would take a device from the workers.
      print(backend.configure(), file=sys.stderr, flush=True)
      work(base, out)
      return
    runs = grid.plan(experiment.sweep(), _FILTER.value)
    if _PLAN.value or _DRY_RUN.value:
      describe(base, runner.unfinished(runs, out)[: _LIMIT.value])
      return
    todo = runner.choose(
      base, runs, out, limit=_LIMIT.value, retry_failed=_RETRY_FAILED.value
    )
    # The whole of it, whatever the filter: a report says what is missing.
    every = grid.plan(experiment.sweep())
    disk.write_json(out / "plan.json", [run.key for run in every])
    left = len(runner.unfinished(runs, out))
    say(f"{len(runs)} runs, {len(runs) - left} finished before, in {out}")
    if todo and _LAUNCHER.value == "slurm":
      submit(todo, out, say)
      return
    if todo:
      run_here(todo, out)
  except (ValueError, ChildProcessError) as error:
    say(f"error: {error}")
    sys.exit(2)
  except (KeyboardInterrupt, loop.Interrupted) as error:
    say(f"stopped ({error}); {out} is kept: the same command goes on")
    sys.exit(STOPPED)
  keys = {run.key for run in runs}
  found = [r for r in rows.read(out / "runs.csv") if r["key"] in keys]
  say(f"{len(found)} rows: {out / 'runs.csv'}")
  say(f"table and figure: python scripts/report.py {out}")
  failed = [row["run"] for row in found if row["status"] == "failed"]
  if failed:
    say(f"failed (each has an error.txt; --retry_failed): {' '.join(failed)}")
    sys.exit(4)


if __name__ == "__main__":
  app.run(main)
