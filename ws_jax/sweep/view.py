"""Shows how far a sweep is: a live table on a terminal, lines elsewhere."""

import collections
import datetime
import json
import pathlib
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from ws_jax.sweep import grid
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep.workers import log_of

_ENDS = ("done", "diverged", "failed", "interrupted")


class View:
  """Display of the runs of a `Fleet`; a context manager.

  Args:
    runs: Runs to do.
    out: Folder of the sweep.
    workers: Number of workers.
    console: Console of rich; None for standard output, which has a live table
      only on a terminal.
  """

  def __init__(
    self,
    runs: Sequence[grid.Run],
    out: pathlib.Path,
    workers: int,
    console: Any = None,
  ):
    self._runs, self._out, self._workers = runs, out, workers
    self._began = time.monotonic()
    self._current = collections.defaultdict(list)  # Worker -> its runs.
    self._since: dict[int, float] = {}  # When it began, or last ended one.
    self._ended: dict[str, str] = {}  # Name of a run -> its status.
    self._seconds = collections.defaultdict(list)  # Structure -> of its runs.
    self._lock = threading.Lock()
    self._live = None
    if console or sys.stdout.isatty():
      from rich import live

      self._live = live.Live(
        console=console, get_renderable=self.table, refresh_per_second=2
      )

  def __enter__(self) -> "View":
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._live:
      self._live.stop()

  def update(
    self, number: int, run: grid.Run, row: rows_lib.Row | None
  ) -> None:
    """Shows that worker `number` begins a run (no row yet) or has ended it."""
    with self._lock:
      runs, now = self._current[number], time.monotonic()
      if row is None:
        self._since.setdefault(number, now)
        runs.append(run)
      else:
        # Of runs of one stack the first has all its seconds, the others none.
        began = self._since.pop(number, self._began)
        self._current[number] = [one for one in runs if one.name != run.name]
        if self._current[number]:
          self._since[number] = now
        self._ended[run.name] = row["status"]
        self._seconds[run.structure].append(now - began)
    if self._live and row is None:
      return
    head = f"[{len(self._ended)}/{len(self._runs)}]"
    if self._workers > 1:
      head += f" worker {number}:"
    verdict = "begins" if row is None else rows_lib.verdict(row)
    line = f"{head} {run.name}: {verdict}"
    if self._live:
      self._live.console.print(line, markup=False, highlight=False)
    else:
      print(line, flush=True)

  def seconds_left(self) -> float | None:
    """Returns the time left, by the mean time of the runs of each program.

    A program of which no run has ended is taken to need the mean of all. None
    before the first run has ended.
    """
    every = [took for runs in self._seconds.values() for took in runs]
    if not every:
      return None
    left = 0.0
    running = {
      run.name: self._since[number]
      for number, runs in self._current.items()
      for run in runs
    }
    for run in self._runs:
      if run.name not in self._ended:
        known = self._seconds.get(run.structure) or every
        gone = time.monotonic() - running.get(run.name, time.monotonic())
        left += max(sum(known) / len(known) - gone, 0.0)
    return left / self._workers

  def table(self) -> Any:
    """Returns the table as it is now; rich asks for it in its own thread."""
    from rich import console, text

    with self._lock:
      lines = text.Text(self._lines(), no_wrap=True, overflow="ellipsis")
      return console.Group(lines, self._programs())

  def _programs(self) -> Any:
    from rich import box, table

    current = (run.structure for runs in self._current.values() for run in runs)
    running = collections.Counter(current)
    view = table.Table(box=box.SIMPLE_HEAD)
    view.add_column("program", overflow="fold")
    for title in ("runs", "running", *_ENDS):
      view.add_column(title, justify="right")
    for structure, runs in grid.by_structure(self._runs).items():
      ends = collections.Counter(self._ended.get(run.name) for run in runs)
      numbers = [len(runs), running[structure], *map(ends.get, _ENDS)]
      name = grid.name_of(json.loads(structure))
      view.add_row(name, *(str(n) if n else "" for n in numbers))
    return view

  def _lines(self) -> str:
    lines = [
      f"worker {number}: {progress(self._out, number, runs[0])}\n"
      for number, runs in sorted(self._current.items())
      if runs
    ]
    ended = f"{len(self._ended)} of {len(self._runs)} runs ended"
    gone, left = time.monotonic() - self._began, self.seconds_left()
    about = "" if left is None else f", about {clock(left)} left"
    # These lines are above the table, as a screen cuts off what is below it.
    return "".join([f"{ended}, {clock(gone)} gone{about}\n", *lines])


def progress(out: pathlib.Path, number: int, run: grid.Run) -> str:
  """Returns the newest line on this run in the log of its worker."""
  path = log_of(out, number)
  with path.open("rb") as file:
    file.seek(max(path.stat().st_size - 4096, 0))
    lines = file.read().decode(errors="replace").splitlines()
  mine = [line for line in lines if line.startswith(f"{run.name} ")]
  return mine[-1] if mine else f"{run.name} begins"


def clock(seconds: float) -> str:
  """Returns seconds as `h:mm:ss`."""
  return str(datetime.timedelta(seconds=round(seconds)))
