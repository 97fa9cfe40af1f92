"""Turns the rows of a sweep into everything that its report shows.

Start with `analyze`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ws_jax.report import groups
from ws_jax.report import metric as metrics
from ws_jax.report.groups import Grids, Setting
from ws_jax.report.metric import Metric
from ws_jax.report.rates import at_best_rate, best, differences
from ws_jax.sweep.arms import arm_of
from ws_jax.sweep.rows import Row


class Results(NamedTuple):
  """The results of a sweep.

  Attributes:
    rows: Rows of all runs.
    metric: Metric that the runs are judged by.
    rate_key: Config key of the learning rate that was varied.
    varied: Config keys that make a setting.
    searched: Those of them that were searched, as the rate is.
    grids: Runs of each setting and arm, by learning rate.
    cells: Rows that `groups.summarize` returns.
    best: Rows that `rates.best` returns.
    scores: Values that `rates.at_best_rate` returns.
    differences: Rows that `rates.differences` returns.
  """

  rows: Sequence[Row]
  metric: Metric
  rate_key: str
  varied: list[str]
  searched: list[str]
  grids: Grids
  cells: list[Row]
  best: list[Row]
  scores: dict[Setting, dict[str, Mapping[Any, float]]]
  differences: list[Row]

  @property
  def kept(self) -> list[str]:
    """Returns the keys within whose values arms are compared."""
    return [key for key in self.varied if key not in self.searched]

  @property
  def rates(self) -> list[float]:
    """Returns all learning rates, in order."""
    rates = {cell["learning_rate"] for cell in self.cells}
    return sorted(rate for rate in rates if rate is not None)

  @property
  def top(self) -> float | None:
    """Returns the best mean of the metric; None if no run is done."""
    values = [cell[self.metric.name] for cell in self.cells]
    key = lambda value: self.metric.sign * value
    return max((x for x in values if x is not None), key=key, default=None)

  def settings(self) -> list[Setting]:
    """Returns the settings that deserve a panel of their own."""
    return groups.settings(self.setting(cell) for cell in self.cells)

  def at(self, entries: Sequence[Row], setting: Setting) -> list[Row]:
    """Returns the rows, cells or other entries that belong to a setting."""
    return [e for e in entries if groups.compatible(self.setting(e), setting)]

  def best_runs(self) -> set[str]:
    """Returns the keys of the runs at the best rate of their arm and setting.

    Each row has its own key.
    """
    at = {
      (entry["arm"], entry["learning_rate"], self._place(entry))
      for entry in self.best
    }
    return {
      row["key"]
      for row in self.rows
      if (arm_of(row), row[self.rate_key], self._place(row)) in at
    }

  def is_best(self, row: Row) -> bool:
    """Returns whether a run has the best rate of its arm in its setting."""
    return row["key"] in self.best_runs()

  def at_best(self, entry: Row) -> list[Row]:
    """Returns the finished runs at the rate of an entry of `best`."""
    return [
      row
      for row in self.rows
      if row["status"] == "done"
      and row[self.rate_key] == entry["learning_rate"]
      and arm_of(row) == entry["arm"]
      and self._place(row) == self._place(entry)
    ]

  def setting(self, entry: Row) -> Setting:
    """Returns the setting that a row, a cell or another entry belongs to."""
    return self._values(entry, self.kept)

  def _place(self, entry: Row) -> Setting:
    """Returns the values of all varied keys, searched or not."""
    return self._values(entry, self.varied)

  def _values(self, entry: Row, keys: Sequence[str]) -> Setting:
    read = groups.value if "key" in entry else dict.get
    return tuple(read(entry, key) for key in keys)


def analyze(rows: Sequence[Row]) -> Results:
  """Returns everything that a report says about a sweep.

  Args:
    rows: Rows of the sweep, as `ws_jax.report.read` returns them.

  Raises:
    ValueError: The rows have several metrics.
  """
  metric, varied = metrics.of(rows), groups.varied_keys(rows)
  runs = groups.grids(rows, varied)
  searched = groups.searched_keys(rows, varied)
  at_best = best(runs, varied, metric, searched)
  scores = at_best_rate(runs, varied, metric, at_best, searched)
  kept = [key for key in varied if key not in searched]
  return Results(
    rows,
    metric,
    groups.rate_key(rows),
    varied,
    searched,
    runs,
    groups.summarize(runs, varied, metric),
    at_best,
    scores,
    differences(scores, kept),
  )
