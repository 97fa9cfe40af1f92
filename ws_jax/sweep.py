"""Sweeps: flat dicts of overrides -> runs, each in its folder -> `runs.csv`.

An experiment yields flat dicts of dotted overrides of one config. `run_sweep`
trains each of them and writes its row as soon as it is finished, so a sweep
can be stopped at any moment and started again: what has a row is not repeated,
and what was under way goes on from its last checkpoint.
"""

import contextlib
import json
import pathlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from ws_jax import config as config_lib
from ws_jax import data, train, writers
from ws_jax import rows as rows_lib
from ws_jax.grid import Overrides, Run, log_grid, plan, product, zipped

__all__ = ["Run", "log_grid", "plan", "product", "run_sweep", "zipped"]

Train = Callable[[ml_collections.ConfigDict, str], Mapping[str, Any]]


def run_sweep(
  config: ml_collections.ConfigDict,
  overrides: Iterable[Overrides],
  out: str | pathlib.Path,
  *,
  only: str = "",
  limit: int | None = None,
  retry_failed: bool = False,
  train_fn: Train = train.train_and_evaluate,
  say: Callable[[str], None] = print,
) -> list[rows_lib.Row]:
  """Trains every run that has no finished row yet; see the top of this file.

  Args:
    config: the base config; it is not changed.
    overrides: flat dicts of dotted overrides, as an experiment's `sweep()`.
    out: folder of the sweep: `runs.csv` and one folder per run.
    only: a filter, as in `plan`.
    limit: at most so many runs now; None for all.
    retry_failed: also runs those whose row says `failed`.
    train_fn: called as `train_fn(config, workdir)`; returns final metrics.
    say: prints one line of progress.

  Returns:
    The rows that these runs have now, in the order of the plan.

  Raises:
    ValueError: before anything runs, if an override names no key of the config,
      a data set is missing, or `out` holds runs of another base config.
    KeyboardInterrupt, Interrupted: stopped by Ctrl-C or SIGTERM; every finished
      row is kept, and the same call goes on from there.
  """
  out = pathlib.Path(out)
  runs = plan(overrides, only)
  # All of them first: a misspelt key should end the sweep in a second, not
  # after the runs that come before it.
  configs = {}
  for run in runs:
    copy = config.copy_and_resolve_references()
    configs[run.key] = config_lib.apply(copy, run.overrides)
  # The same for data that are not there: not a failure of each of the runs.
  for name, folder in {(c.data.name, c.data.dir) for c in configs.values()}:
    data.check_dataset(name, folder)
  out.mkdir(parents=True, exist_ok=True)
  _claim(out, config)
  table = out / "runs.csv"
  ended = {row["key"]: row["status"] for row in rows_lib.read(table)}
  final = (
    {"done", "diverged"} if retry_failed else {"done", "diverged", "failed"}
  )
  todo = [run for run in runs if ended.get(run.key) not in final]
  say(f"{len(runs)} runs, {len(runs) - len(todo)} finished before, in {out}")
  todo = todo[:limit]
  with _sigterm_interrupts():
    for number, run in enumerate(todo, start=1):
      head = f"[{number}/{len(todo)}] {run.name}"
      say(head)
      row, stop = _run_one(run, configs[run.key], out / run.name, train_fn)
      rows_lib.append(table, row)
      say(f"{head}: {rows_lib.verdict(row)}")
      if stop is not None:
        raise stop
  rows = {row["key"]: row for row in rows_lib.read(table)}
  return [rows[run.key] for run in runs if run.key in rows]


def _run_one(
  run: Run,
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  train_fn: Train,
) -> tuple[rows_lib.Row, BaseException | None]:
  """Runs one; returns its row, and the exception that ends the sweep."""
  outcome: dict[str, Any] = {}
  stop: BaseException | None = None
  # A run that is finished but has no row: the sweep was killed in between.
  if rows_lib.status_of(workdir).get("status") not in ("done", "diverged"):
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      metrics = train_fn(config, str(workdir))
      outcome = {"status": "done", "reason": None, "metrics": dict(metrics)}
    except train.Diverged as error:
      outcome = {"status": "diverged"}
      outcome |= {"step": error.step, "reason": error.reason}
    except train.Interrupted as error:
      stop = error
      outcome = {"status": "interrupted"}
      outcome |= {"step": error.step, "reason": error.reason}
    except KeyboardInterrupt as error:
      stop = error
      outcome = {"status": "interrupted", "reason": str(error)}
    except Exception as error:  # One broken run must not cost the others.
      (workdir / "error.txt").write_text(traceback.format_exc())
      reason = f"{type(error).__name__}: {error}".splitlines()[0]
      outcome = {"status": "failed", "reason": reason}
  status = rows_lib.status_of(workdir) | outcome
  resolved = writers.read_json(workdir / "config.json")
  row = rows_lib.make(
    run.key, run.name, run.overrides, resolved or config.to_dict(), status
  )
  return row, stop


def _claim(out: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Keeps a folder to one base config: a row's key holds just the overrides."""
  mine = json.loads(json.dumps(config_lib.flatten(config.to_dict())))
  path = out / "base_config.json"
  theirs = writers.read_json(path)
  if theirs is None:
    writers.write_json(path, mine)
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


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
  """SIGTERM ends the sweep as Ctrl-C does, also between two runs."""
  if threading.current_thread() is not threading.main_thread():
    yield  # Only the main thread may set handlers.
    return

  def stop(*_: Any) -> None:
    raise KeyboardInterrupt("SIGTERM")

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
