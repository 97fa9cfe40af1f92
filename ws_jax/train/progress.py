"""Shows how far a run is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping

_PLAIN_LINE_SECONDS = 10.0


class Progress:
  """A bar with rate and time left on a terminal; plain lines otherwise.

  Args:
    total: Number of steps of the run.
    start: Step that it starts at.
    name: Name of the run, for the front of the line.
  """

  def __init__(self, total: int, start: int, name: str):
    self._total, self._name = total, name
    self._first: tuple[int, float] | None = None
    self._said = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      from rich import console, progress

      # What must be seen comes first: a narrow terminal cuts the rest off.
      self._bar = progress.Progress(
        progress.MofNCompleteColumn(),
        progress.BarColumn(bar_width=12),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("{task.fields[rate]} {task.fields[metrics]}"),
        progress.TextColumn("{task.description}"),
        console=console.Console(stderr=True),
        transient=True,
      )
      self._bar.start()
      self._task = self._bar.add_task(
        name, total=total, completed=start, rate="", metrics=""
      )

  def update(self, step: int, metrics: Mapping[str, float] | None) -> None:
    """Shows that `step` is done, with the newest metrics."""
    now = time.monotonic()
    # From the first step on: the time before it went into compiling.
    self._first = self._first or (step, now)
    rate = (step - self._first[0]) / max(now - self._first[1], 1e-9)
    shown = " ".join(f"{k}={v:.4g}" for k, v in (metrics or {}).items())
    if self._bar:
      self._bar.update(
        self._task, completed=step, rate=f"{rate:.3g} steps/s", metrics=shown
      )
    elif now - self._said > _PLAIN_LINE_SECONDS or step == self._total:
      self._said = now
      line = [f"{self._name} step {step}/{self._total}"]
      if rate:
        left = (self._total - step) / rate
        line += [f"{rate:.3g} steps/s", f"{left:.0f} s left"]
      print(*line, shown, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Takes the bar away."""
    if self._bar:
      self._bar.stop()
