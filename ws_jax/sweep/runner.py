"""Sweeps: flat dicts of overrides -> runs, each in its folder -> `runs.csv`.

An experiment yields flat dicts of dotted overrides of one config. `run_sweep`
trains each of them and writes its row as soon as it is finished, so a sweep
can be stopped at any moment and started again: what has a row is not repeated,
and what was under way goes on from its last checkpoint. Several processes, on
one machine or on several that share the folder, do the work of one sweep
together: each run has a lock that its process holds while it trains.
"""

import contextlib
import hashlib
import json
import pathlib
import time
import traceback
from collections.abc import (
  Callable,
  Generator,
  Iterable,
  Mapping,
  Sequence,
)
from typing import Any

import ml_collections

from ws_jax import config as config_lib
from ws_jax import data
from ws_jax.base import disk, signals
from ws_jax.sweep import grid
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep.grid import Overrides, Run, plan
from ws_jax.train import loop, record

Row = rows_lib.Row
Train = Callable[[ml_collections.ConfigDict, str], Mapping[str, Any]]
Tell = Callable[[Run, Row | None], None]

# Nothing more is done for a run whose row says one of these.
_FINAL = ("done", "diverged", "failed")
# The config that the overrides are of, by dotted key.
_BASE = "base_config.json"
# How often to look whether a run that another process holds has become free.
_POLL_SECONDS = 1.0


def print_line(run: Run, row: Row | None) -> None:
  """Prints that a run begins (no row yet) or how it ended."""
  line = run.name if row is None else f"{run.name}: {rows_lib.verdict(row)}"
  print(line, flush=True)


def run_sweep(
  config: ml_collections.ConfigDict,
  overrides: Iterable[Overrides],
  out: str | pathlib.Path,
  *,
  only: str = "",
  limit: int | None = None,
  retry_failed: bool = False,
  train_fn: Train = loop.train_and_evaluate,
  tell: Tell = print_line,
) -> list[Row]:
  """Trains every run that has no finished row yet; see the top of this file.

  Runs that another process has under way are waited for, and taken over if it
  dies.

  Args:
    config: the base config; it is not changed.
    overrides: flat dicts of dotted overrides, as an experiment's `sweep()`.
    out: folder of the sweep: `runs.csv` and one folder per run.
    only: a filter, as in `plan`.
    limit: at most so many runs now; None for all.
    retry_failed: also runs those whose row says `failed`.
    train_fn: called as `train_fn(config, workdir)`; returns final metrics.
    tell: called with each run when it begins, and with its row when it ended.

  Returns:
    The rows that these runs have now, in the order of the plan.

  Raises:
    ValueError: before anything runs, if an override names no key of the config,
      a data set is missing, or `out` holds runs of another base config.
    KeyboardInterrupt, Interrupted: stopped by Ctrl-C or SIGTERM; every finished
      row is kept, and the same call goes on from there.
  """
  out, runs = pathlib.Path(out), plan(overrides, only)
  todo = choose(config, runs, out, limit=limit, retry_failed=retry_failed)
  # Closed even if somebody keeps the exception: it holds locks.
  with signals.interrupt(), contextlib.closing(_take(todo, out)) as mine:
    for run in mine:
      tell(run, None)
      row, stop = _run_one(config, run, out, train_fn)
      rows_lib.append(out / "runs.csv", row)
      tell(run, row)
      if stop is not None:
        raise stop
  rows = {row["key"]: row for row in rows_lib.read(out / "runs.csv")}
  return [rows[run.key] for run in runs if run.key in rows]


def choose(
  config: ml_collections.ConfigDict,
  runs: Sequence[Run],
  out: pathlib.Path,
  *,
  limit: int | None = None,
  retry_failed: bool = False,
) -> list[Run]:
  """The runs that are still to be done, after all of them have been checked.

  Args:
    config: the base config.
    runs: of the sweep.
    out: its folder, made if need be.
    limit: at most so many.
    retry_failed: also those that failed before.

  Raises:
    ValueError: as `run_sweep`.
  """
  configs = check(config, runs)
  # Data that are not there end the sweep too, instead of failing every run.
  for name, folder in {(c.data.name, c.data.dir) for c in configs}:
    data.check_dataset(name, folder)
  (out / ".locks").mkdir(parents=True, exist_ok=True)
  _claim(out, config)
  if retry_failed:
    # Written down, and not just remembered: of the processes that share this
    # sweep each would else try again what has failed again.
    for row in rows_lib.read(out / "runs.csv"):
      if row["status"] == "failed" and row["key"] in {run.key for run in runs}:
        rows_lib.append(out / "runs.csv", row | {"status": "interrupted"})
  return unfinished(runs, out)[:limit]


def check(
  config: ml_collections.ConfigDict, runs: Sequence[Run]
) -> list[ml_collections.ConfigDict]:
  """Returns the config of every run.

  A misspelt key or a value of a wrong type should end a sweep in a second, and
  not after the runs that come before it.

  Args:
    config: Base config of the sweep.
    runs: Runs of the sweep.

  Raises:
    ConfigError: An override names no key, or its value does not fit.
  """
  return [config_of(config, run) for run in runs]


def give_up(run: Run, out: pathlib.Path, reason: str) -> Row | None:
  """Records that a run failed in a way that its own process could not record.

  Returns:
    Its row; None if another process has finished it or is at it.
  """
  with disk.locked(_lock_of(out, run.name), wait=False) as free:
    if not free or not unfinished([run], out):
      return None
    row = _row(run, out, {"status": "failed", "reason": reason})
    rows_lib.append(out / "runs.csv", row)
    return row


def unfinished(runs: Sequence[Run], out: pathlib.Path) -> list[Run]:
  """Those of `runs` whose row in `runs.csv` is not final, or missing."""
  rows = rows_lib.read(out / "runs.csv")
  ended = {row["key"] for row in rows if row["status"] in _FINAL}
  return [run for run in runs if run.key not in ended]


def _take(runs: Sequence[Run], out: pathlib.Path) -> Generator[Run, None, None]:
  """Yields each run that is free, locked while the caller is at it.

  Compiling is shared best if a process has the runs of one program for itself.
  So it first takes groups that nobody is at, and then helps the others.
  """
  while left := unfinished(runs, out):
    idle = True
    for alone in (True, False):
      for structure, members in grid.by_structure(left).items():
        digest = hashlib.sha256(structure.encode()).hexdigest()[:16]
        with disk.locked(_lock_of(out, digest), wait=False) as mine:
          for run in members if mine or not alone else ():
            with disk.locked(_lock_of(out, run.name), wait=False) as free:
              # Again, for it may have been finished before it became free.
              if free and unfinished([run], out):
                idle = False
                yield run
    if idle:
      time.sleep(_POLL_SECONDS)


def _lock_of(out: pathlib.Path, name: str) -> pathlib.Path:
  return out / ".locks" / name


def _run_one(
  config: ml_collections.ConfigDict,
  run: Run,
  out: pathlib.Path,
  train_fn: Train,
) -> tuple[Row, BaseException | None]:
  """Runs one; returns its row, and the exception that ends the sweep."""
  workdir = out / run.name
  outcome: dict[str, Any] = {}
  stop: BaseException | None = None
  # A run that is finished but has no row: the sweep was killed in between.
  if rows_lib.status_of(workdir).get("status") not in ("done", "diverged"):
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      metrics = train_fn(config_of(config, run), str(workdir))
      outcome = {"status": "done", "reason": None, "metrics": dict(metrics)}
    except loop.Diverged as error:
      outcome = {"status": "diverged"}
      outcome |= {"step": error.step, "reason": error.reason}
    except loop.Interrupted as error:
      stop = error
      outcome = {"status": "interrupted"}
      outcome |= {"step": error.step, "reason": error.reason}
    except KeyboardInterrupt as error:
      stop = error
      outcome = {"status": "interrupted", "reason": str(error)}
    except Exception as error:  # One broken run must not cost the others.
      disk.write_text(workdir / "error.txt", traceback.format_exc())
      reason = f"{type(error).__name__}: {error}".splitlines()[0]
      outcome = {"status": "failed", "reason": reason}
  return _row(run, out, outcome), stop


def _row(run: Run, out: pathlib.Path, outcome: dict[str, Any]) -> Row:
  """The row of a run, of what is in its folder and of how it ended."""
  workdir = out / run.name
  resolved = disk.read_json(workdir / "config.json")
  base = disk.read_json(out / _BASE)
  return rows_lib.make(
    run.key,
    run.name,
    run.overrides,
    resolved or base | run.overrides,
    rows_lib.status_of(workdir) | outcome,
    record.read_metrics(workdir),
  )


def config_of(
  config: ml_collections.ConfigDict, run: Run
) -> ml_collections.ConfigDict:
  """The config of one run."""
  copy = config.copy_and_resolve_references()
  return config_lib.apply(copy, run.overrides)


def _claim(out: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Keeps a folder to one base config: a row's key holds just the overrides."""
  mine = json.loads(json.dumps(config_lib.flatten(config.to_dict())))
  path = out / _BASE
  theirs = disk.read_json(path)
  if theirs is None:
    disk.write_json(path, mine)
  elif theirs != mine:
    changes = "; ".join(
      f"{key}: {theirs.get(key)} -> {mine.get(key)}"
      for key in sorted(mine.keys() | theirs.keys())
      if mine.get(key) != theirs.get(key)
    )
    raise ValueError(
      f"{out} holds runs of another config ({changes}); give another folder,"
      " or delete this one"
    )
