"""Trains the runs of a sweep, each in its folder, and writes their rows.

An experiment yields flat dicts of dotted overrides of one config. `run_sweep`
trains each of them and writes its row to `runs.csv` as soon as it is finished.
So a sweep can be stopped at any moment and started again: a run that has a row
is not repeated, and one that was under way goes on from its last checkpoint.
Several processes, on one machine or on several that share the folder, can work
on one sweep together: a process holds a lock on the run that it trains.
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
  Iterator,
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
from ws_jax.train import build, checkpoint, loop, record

Row = rows_lib.Row
Train = Callable[[ml_collections.ConfigDict, str], Mapping[str, Any]]
Notify = Callable[[Run, Row | None], None]

# A run whose row has one of these is finished.
_FINAL = ("done", "diverged", "failed")
# Holds the config that the overrides change, by dotted key.
_BASE = "base_config.json"
# Seconds between two looks whether another process has released a run.
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
  notify: Notify = print_line,
  stack: int = 1,
) -> list[Row]:
  """Trains every run that has no finished row yet; see the top of this file.

  Waits for runs that another process trains, and takes them over if it dies.

  Args:
    config: Base config; it is not changed.
    overrides: Flat dicts of dotted overrides, as an experiment's `sweep()`
      returns them.
    out: Folder of the sweep, for `runs.csv` and one folder per run.
    only: Filter, as in `plan`.
    limit: Largest number of runs to train in this call; None for all.
    retry_failed: Whether to train runs again whose row says `failed`.
    train_fn: Function to train with, called as `train_fn(config, workdir)`; it
      returns the final metrics.
    notify: Function that is called with each run and None when it begins, and
      with the run and its row when it has ended.
    stack: Most runs to train in one program, by `loop.train_stack`.

  Returns:
    The rows that these runs have now, in the order of the plan.

  Raises:
    ValueError: An override does not fit the config, a data set is missing, or
      `out` holds runs of another base config. Raised before anything runs.
    KeyboardInterrupt, Interrupted: Ctrl-C or SIGTERM stopped the sweep. Every
      finished row is kept, and the same call goes on from there.
  """
  out, runs = pathlib.Path(out), plan(overrides, only)
  todo = choose(config, runs, out, limit=limit, retry_failed=retry_failed)
  # The generator holds locks: close it even if somebody keeps the exception.
  with signals.interrupt(), contextlib.closing(_take(todo, out, stack)) as mine:
    for together in mine:
      for run in together:
        notify(run, None)
      rows, stop = _train(config, together, out, train_fn)
      for run, row in zip(together, rows, strict=True):
        rows_lib.append(out / "runs.csv", row)
        notify(run, row)
      if stop is not None:
        raise stop
  keys = {run.key for run in runs}
  rows = {row["key"]: row for row in rows_lib.read_runs(out / "runs.csv", keys)}
  return [rows[run.key] for run in runs if run.key in rows]


def choose(
  config: ml_collections.ConfigDict,
  runs: Sequence[Run],
  out: pathlib.Path,
  *,
  limit: int | None = None,
  retry_failed: bool = False,
) -> list[Run]:
  """Returns the runs that are still to be done, after it has checked all.

  Args:
    config: Base config of the sweep.
    runs: Runs of the sweep.
    out: Folder of the sweep, made if need be.
    limit: Largest number of runs to return; None for all.
    retry_failed: Whether runs that failed before are to be done again.

  Raises:
    ValueError: As `run_sweep` raises it.
  """
  configs = check(config, runs)
  # Data that are not there end the sweep too, instead of failing every run.
  for request in {build.request(one) for one in configs}:
    data.read_info(request)
  (out / ".locks").mkdir(parents=True, exist_ok=True)
  _claim(out, config)
  if retry_failed:
    # This is written to the file, and not only remembered: otherwise each of
    # the processes that share the sweep would retry what has failed again.
    for row in rows_lib.read_runs(out / "runs.csv"):
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
    ConfigError: An override names no key, or its value is of a wrong type or
      out of range.
  """
  configs = [config_of(config, run) for run in runs]
  for one in configs:
    config_lib.check(one)
  return configs


def give_up(run: Run, out: pathlib.Path, reason: str) -> Row | None:
  """Records a failure that the run's own process could not record.

  Args:
    run: Run whose process died.
    out: Folder of the sweep.
    reason: Reason to write into the row.

  Returns:
    The row; None if another process has finished the run or is training it.
  """
  with disk.locked(_lock_of(out, run.name), wait=False) as free:
    if not free or not unfinished([run], out):
      return None
    row = _row(run, out, {"status": "failed", "reason": reason})
    rows_lib.append(out / "runs.csv", row)
    return row


def unfinished(runs: Sequence[Run], out: pathlib.Path) -> list[Run]:
  """Returns the runs whose row in `runs.csv` is missing or not final."""
  rows = rows_lib.read_runs(out / "runs.csv", {run.key for run in runs})
  ended = {row["key"] for row in rows if row["status"] in _FINAL}
  return [run for run in runs if run.key not in ended]


def _take(
  runs: Sequence[Run], out: pathlib.Path, stack: int
) -> Generator[list[Run], None, None]:
  """Yields runs that are free, locked until the next ones are asked for.

  They are trained together, so at most `stack` and of one program. A process
  compiles least if it has all runs of one program to itself. So this first
  takes groups of runs that no other process works on, and then helps with the
  rest.
  """
  while left := unfinished(runs, out):
    idle = True
    for alone in (True, False):
      left = unfinished(left, out)  # The first pass leaves few to the second.
      for structure, members in grid.by_structure(left).items():
        digest = hashlib.sha256(structure.encode()).hexdigest()[:16]
        with disk.locked(_lock_of(out, digest), wait=False) as mine:
          for together in (
            _stacks(members, out, stack) if mine or not alone else ()
          ):
            with contextlib.ExitStack() as locks:
              free = [run for run in together if _lock(run, out, locks)]
              if free:
                idle = False
                yield free
    if idle:
      time.sleep(_POLL_SECONDS)


def _lock(run: Run, out: pathlib.Path, locks: contextlib.ExitStack) -> bool:
  """Locks a run until `locks` ends; returns whether it is ours to train."""
  lock = disk.locked(_lock_of(out, run.name), wait=False)
  # Look again: it may have been finished before it became free.
  return locks.enter_context(lock) and bool(unfinished([run], out))


def _stacks(
  runs: Sequence[Run], out: pathlib.Path, size: int
) -> Iterator[Sequence[Run]]:
  """Yields the runs to train together: at most `size`, at the same step."""
  groups: dict[int, list[Run]] = {}
  for run in runs:
    step = checkpoint.newest_step(out / run.name) if size > 1 else 0
    groups.setdefault(step, []).append(run)
  for members in groups.values():
    for start in range(0, len(members), size):
      yield members[start : start + size]


def _lock_of(out: pathlib.Path, name: str) -> pathlib.Path:
  return out / ".locks" / name


def _train(
  config: ml_collections.ConfigDict,
  runs: Sequence[Run],
  out: pathlib.Path,
  train_fn: Train,
) -> tuple[list[Row], BaseException | None]:
  """Trains runs together; returns their rows, and what ends the sweep."""
  outcomes: dict[str, dict[str, Any]] = {run.name: {} for run in runs}
  stop: BaseException | None = None
  # A finished run has no row if the sweep was killed in between.
  ended = ("done", "diverged")
  todo = [
    run
    for run in runs
    if rows_lib.status_of(out / run.name).get("status") not in ended
  ]
  for run in todo:
    (out / run.name).mkdir(parents=True, exist_ok=True)
  try:
    results = _results(config, todo, out, train_fn)
    outcomes |= {
      run.name: _outcome(result)
      for run, result in zip(todo, results, strict=True)
    }
  except loop.Interrupted as error:
    stop, outcome = error, {"status": "interrupted"}
    outcome |= {"step": error.step, "reason": error.reason}
    outcomes |= {run.name: outcome for run in todo}
  except KeyboardInterrupt as error:
    stop, outcome = error, {"status": "interrupted", "reason": str(error)}
    outcomes |= {run.name: outcome for run in todo}
  except Exception as error:  # One broken run must not end the others.
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    full = isinstance(error, OSError) and disk.is_of_disk(error, out)
    stop, status = (error, "interrupted") if full else (None, "failed")
    outcomes |= {run.name: {"status": status, "reason": reason} for run in todo}
    for run in () if full else todo:
      disk.write_text(out / run.name / "error.txt", traceback.format_exc())
  return [_row(run, out, outcomes[run.name]) for run in runs], stop


def _results(
  config: ml_collections.ConfigDict,
  runs: Sequence[Run],
  out: pathlib.Path,
  train_fn: Train,
) -> list[Mapping[str, Any] | loop.Diverged]:
  """Trains runs; returns the metrics of each, or how it diverged."""
  configs = [config_of(config, run) for run in runs]
  workdirs = [str(out / run.name) for run in runs]
  if len(runs) > 1:
    return list(loop.train_stack(configs, workdirs))
  results: list[Mapping[str, Any] | loop.Diverged] = []
  for one, workdir in zip(configs, workdirs, strict=True):
    try:
      results.append(train_fn(one, workdir))
    except loop.Diverged as error:
      results.append(error)
  return results


def _outcome(result: Mapping[str, Any] | loop.Diverged) -> dict[str, Any]:
  """Returns what a row says of a run that has ended by itself."""
  if isinstance(result, loop.Diverged):
    ended = {"step": result.step, "reason": result.reason}
    return {"status": "diverged", **ended}
  return {"status": "done", "reason": None, "metrics": dict(result)}


def _row(run: Run, out: pathlib.Path, outcome: dict[str, Any]) -> Row:
  """Returns the row of a run, from its folder and from how it ended."""
  workdir = out / run.name
  resolved = disk.read_json(workdir / "config.json")
  base = base_config(out)
  return rows_lib.make(
    run.key,
    run.name,
    run.overrides,
    resolved if isinstance(resolved, dict) else base | run.overrides,
    rows_lib.status_of(workdir) | outcome,
    record.read_metrics(workdir),
  )


def config_of(
  config: ml_collections.ConfigDict, run: Run
) -> ml_collections.ConfigDict:
  """Returns the config of one run."""
  copy = config.copy_and_resolve_references()
  return config_lib.apply(copy, run.overrides)


def _claim(out: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Keeps a folder to one base config: the key of a row has overrides only."""
  mine = json.loads(json.dumps(config_lib.flatten(config.to_dict())))
  theirs, mine = base_config(out), _completed(mine)
  if not theirs:
    disk.write_json(out / _BASE, mine)
    return
  if theirs != mine:
    changes = "; ".join(
      f"{key}: {theirs.get(key)} -> {mine.get(key)}"
      for key in sorted(mine.keys() | theirs.keys())
      if mine.get(key) != theirs.get(key)
    )
    raise ValueError(
      f"{out} holds runs of another config ({changes}); give another folder,"
      " or delete this one"
    )


def base_config(out: pathlib.Path) -> dict[str, Any]:
  """Returns the config that the runs of a sweep change, by dotted key.

  A key that is newer than the folder has its default: the runs had no other.

  Args:
    out: Folder of the sweep.

  Returns:
    The config; empty where the folder does not tell.

  Raises:
    ValueError: The file is damaged, or has a key that is none any more.
  """
  path = out / _BASE
  try:
    saved = disk.read_json(path)
    return {} if saved is None else _completed(saved)
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} cannot be read: {error}. Give another folder, or delete {out}"
    ) from error


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
  flat = config_lib.flatten(config_lib.from_saved(saved))
  return json.loads(json.dumps(flat))
