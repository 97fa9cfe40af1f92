"""Trains every run of an experiment, and writes a row each to OUT/runs.csv.

  python scripts/sweep.py --experiment=experiments/quickstart.py
  python scripts/sweep.py --experiment=experiments/quickstart.py --plan
  python scripts/sweep.py --experiment=experiments/quickstart.py \
      --filter='norm=group,learning_rate=0.*' --limit=1

It can be stopped at any moment. Started again it repeats nothing that is
finished. Started twice, also on two machines that share the folder, the two
share the work. Worker N writes its messages to OUT/worker-N.log.
Exits with 2 if it cannot run, 4 if some runs failed, 130 if it was stopped.
"""

import functools
import importlib.util
import itertools
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
from ws_jax.base import disk, names, numerics, signals
from ws_jax.sweep import (
  estimate,
  grid,
  ray_tasks,
  rows,
  runner,
  shares,
  slurm,
  view,
)
from ws_jax.sweep.workers import STOPPED, Fleet, work
from ws_jax.train import backend, loop

_EXPERIMENT = flags.DEFINE_string(
  "experiment",
  None,
  "Experiment to run: the path of a file such as experiments/NAME.py.",
  required=True,
)
_OUT = flags.DEFINE_string(
  "out", None, "Folder for the runs and runs.csv. Default: workdirs/NAME."
)
_FILTER = flags.DEFINE_string(
  "filter",
  "",
  "Runs only those whose name has all of these comma-separated terms, which may"
  " be shell patterns.",
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Largest number of runs to train now. Default: all."
)
_MAX_HOURS = flags.DEFINE_float(
  "max_hours", None, "Hours after which to stop, as on Ctrl-C.", lower_bound=0.0
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  1,
  "Number of processes that share the work, each with its part of the CPU cores"
  " or with devices of its own.",
  lower_bound=1,
)
_STACK = flags.DEFINE_integer(
  "stack",
  1,
  "Most runs that a worker trains in one program: runs that differ in learning"
  " rate, weight decay, momentum or seed. For a GPU or TPU that a small network"
  " leaves idle; a CPU is slower with it.",
  lower_bound=1,
)
_LAUNCHER = flags.DEFINE_enum(
  "launcher",
  "local",
  ["local", "slurm", "ray"],
  "Place to train: this machine, a Slurm job array that has one task for each"
  " compile, or a cluster of Ray with one task for each run.",
)
_PARTITION = flags.DEFINE_string(
  "slurm_partition", None, "Partition of the cluster. Default: its own."
)
_MINUTES = flags.DEFINE_integer(
  "slurm_minutes",
  60,
  "Time limit of a task. A task that needs more time saves and queues again.",
  lower_bound=1,
)
_ADDRESS = flags.DEFINE_string(
  "address",
  None,
  "Address of the cluster of Ray. Default: $RAY_ADDRESS, or else the one that"
  " `ray start` started on this machine.",
)
_CPUS = flags.DEFINE_integer(
  "cpus",
  None,
  "Number of CPU cores of a task of Slurm or a run of Ray. Default: the"
  " cluster's for Slurm, 1 for Ray.",
  lower_bound=1,
)
_GPUS = flags.DEFINE_float(
  "gpus",
  None,
  "Number of GPUs of a task of Slurm or a run of Ray. Default: the cluster's"
  " for Slurm, none for Ray. Runs of Ray that ask for 0.5 share one.",
  lower_bound=0.0,
)
flags.DEFINE_alias("slurm_cpus", "cpus")
flags.DEFINE_alias("slurm_gpus", "gpus")
_WORKER = flags.DEFINE_bool(
  "worker", False, "Internal: run as a worker process."
)
_PLAN = flags.DEFINE_bool(
  "plan", False, "Print the runs, and train none of them."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run",
  False,
  "Like --plan, and time each program to estimate the total.",
)
_RETRY_FAILED = flags.DEFINE_bool(
  "retry_failed", False, "Run the runs again that failed before."
)


def load_experiment(path: pathlib.Path) -> ModuleType:
  """Returns an experiment: the module in a file with `CONFIG` and `sweep()`.

  Raises:
    ValueError: There is no such file, or it has no usable `CONFIG` and `sweep`.
  """
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
  if not isinstance(module.CONFIG, str):
    raise ValueError(
      f"experiment {path}: CONFIG is {grid.kind(module.CONFIG)}, and must be"
      ' the path of a config file, such as "configs/x.py:norm=batch"'
    )
  if not callable(module.sweep):
    raise ValueError(
      f"experiment {path}: sweep is {grid.kind(module.sweep)}, and must be"
      " a function that returns or yields dicts of overrides"
    )
  return module


def plan_of(path: pathlib.Path, experiment: ModuleType) -> list[grid.Run]:
  """Returns the runs of an experiment.

  Raises:
    ValueError: Its `sweep()` gives something else than dicts of overrides.
  """
  try:
    return grid.plan(experiment.sweep())
  except ValueError as error:
    raise ValueError(f"experiment {path}: sweep(): {error}") from error


def print_plan(base, runs: list[grid.Run]) -> None:
  """Prints the runs by compile; with --dry_run also the time they take."""
  groups = grid.by_structure(runs)
  workers, total = _WORKERS.value, 0.0
  if _DRY_RUN.value:
    print("compiling each program and timing a block (--plan: without)")
    if workers > 1:  # Time it on the share of the machine that a worker has.
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
  """Returns the command that starts a worker of this sweep, from any folder."""
  experiment = pathlib.Path(_EXPERIMENT.value).absolute()
  command = [sys.executable, os.path.abspath(__file__), "--worker"]
  command += [f"--experiment={experiment}", f"--out={out.absolute()}"]
  return [*command, f"--stack={_STACK.value}"]


def stop_in_time() -> None:
  """Sends this process a SIGTERM when the hours of --max_hours are over."""
  if _MAX_HOURS.value is not None:
    stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    timer = threading.Timer(_MAX_HOURS.value * 3600, stop)
    timer.daemon = True
    timer.start()


def run_here(todo: list[grid.Run], out: pathlib.Path) -> None:
  """Trains the runs on this machine, and shows how far they are."""
  workers = _WORKERS.value
  with signals.interrupt(), view.View(todo, out, workers) as shown:
    stop_in_time()
    Fleet(
      todo, out, worker_command(out), workers=workers, notify=shown.update
    ).run()


def run_on_ray(base, todo: list[grid.Run], out: pathlib.Path, say) -> None:
  """Trains the runs on a cluster of Ray, and says how each has ended."""
  ended = itertools.count(1)

  def notify(host: str, run: grid.Run, row: rows.Row) -> None:
    head = f"[{next(ended)}/{len(todo)}] {host}:"
    say(f"{head} {run.name}: {rows.verdict(row)}")

  with signals.interrupt():
    stop_in_time()
    ray_tasks.train(
      todo,
      base,
      out,
      address=_ADDRESS.value,
      cpus=_CPUS.value or 1,
      gpus=_GPUS.value or 0.0,
      stack=_STACK.value,
      notify=notify,
      say=say,
    )


def check_launcher() -> None:
  """Checks flags that are not for every launcher.

  Raises:
    ValueError: One is not for this launcher.
  """
  if _LAUNCHER.value == "ray" and _WORKERS.value > 1:
    raise ValueError(
      f"--workers={_WORKERS.value} is not for --launcher=ray: as many runs"
      " train at a time as the cluster has --cpus and --gpus for"
    )
  gpus = _GPUS.value or 0
  if gpus % 1 and (_LAUNCHER.value == "slurm" or gpus > 1):
    raise ValueError(
      f"--gpus={gpus:g}: a number that is not whole is for --launcher=ray, and"
      " below 1"
    )


def submit(todo: list[grid.Run], out: pathlib.Path, say) -> None:
  """Submits the runs to Slurm, and says how to follow them."""
  jobs = slurm.submit(
    todo,
    out,
    worker_command(out),
    workers=_WORKERS.value,
    partition=_PARTITION.value,
    minutes=_MINUTES.value,
    gpus=None if _GPUS.value is None else int(_GPUS.value),
    cpus=_CPUS.value,
  )
  say(f"submitted {len(todo)} runs as jobs {' '.join(jobs)}; see them with")
  say(f"  squeue --jobs={jobs[0].partition('_')[0]}   tail {out}/slurm/*.out")


def main(argv: list[str]) -> None:
  """Loads the experiment and trains the runs that are not finished."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  say = functools.partial(print, flush=True)
  path = pathlib.Path(_EXPERIMENT.value)
  out = pathlib.Path(_OUT.value or f"workdirs/{path.stem}")
  try:
    check_launcher()
    experiment = load_experiment(path)
    base = config.load(experiment.CONFIG)
    if _WORKER.value:
      # The parent does not: it would take a device from the workers.
      print(backend.configure(), file=sys.stderr, flush=True)
      work(base, out, stack=_STACK.value)
      return
    # All of them, whatever the filter: a report says which runs are missing.
    every = plan_of(path, experiment)
    runs = grid.plan((run.overrides for run in every), _FILTER.value)
    runner.check(base, every)
    if cut := rows.incomplete(out / "runs.csv"):
      say(f"incomplete in runs.csv, and not finished: {' '.join(cut)}")
    if _PLAN.value or _DRY_RUN.value:
      print_plan(base, runner.unfinished(runs, out)[: _LIMIT.value])
      return
    todo = runner.choose(
      base, runs, out, limit=_LIMIT.value, retry_failed=_RETRY_FAILED.value
    )
    disk.write_json(out / "plan.json", [run.key for run in every])
    left = len(runner.unfinished(runs, out))
    say(f"{len(runs)} runs, {len(runs) - left} finished before, in {out}")
    if todo and _LAUNCHER.value == "slurm":
      submit(todo, out, say)
      return
    if todo and _LAUNCHER.value == "ray":
      run_on_ray(base, todo, out, say)
    elif todo:
      run_here(todo, out)
  except (ValueError, OSError) as error:
    said = str(error).removeprefix("error: ")  # of a worker, or ours
    line = rows.printable(f"error: {said}")
    # What a worker prints on standard output is a message for its parent.
    print(line, file=sys.stderr if _WORKER.value else sys.stdout, flush=True)
    sys.exit(2)
  except (KeyboardInterrupt, loop.Interrupted) as error:
    say(f"stopped ({error}); {out} is kept: the same command goes on")
    sys.exit(STOPPED)
  sys.exit(report_ends(runs, out, say))


def report_ends(runs: list[grid.Run], out: pathlib.Path, say) -> int:
  """Says how the runs ended; returns the exit code."""
  keys = {run.key for run in runs}
  ended = [r for r in rows.read_runs(out / "runs.csv") if r["key"] in keys]
  say(f"{len(ended)} rows: {out / 'runs.csv'}")
  say(f"table and figure: python scripts/report.py {out}")
  for line in numerics.mixed(ended):
    say(line)
  failed = [row["run"] for row in ended if row["status"] == "failed"]
  if failed:
    say(f"failed (each has an error.txt; --retry_failed): {' '.join(failed)}")
  return 4 if failed else 0


if __name__ == "__main__":
  app.run(main)
