"""The metric of a sweep: what its runs are judged by, and how it is shown.

The task of a run names its metric, the run's row keeps that, and everything in
a report asks here, also of which split the numbers are. A fraction has the unit
`%`: it is shown times 100, and a difference of 0.01 is one point. Any other
unit is shown as it is, and the place of a point is taken by 1 % of the best
value.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_GOALS = ("max", "min")
# One point of a fraction; for other units, this part of the best value.
_POINT = 0.01
# The split of a run that does not name one, and the word for several splits.
_SPLIT, _SPLITS = "test", "held-out"


class Metric(NamedTuple):
  """A metric, by default the accuracy of a classifier.

  Attributes:
    name: Name of the metric, which runs log as `eval/NAME`.
    goal: `max` if more is better, `min` if less is.
    unit: Unit of the values: `%` for a fraction, or a text such as `nats`;
      empty if there is none.
    split: Split that the runs are evaluated on; `held-out` for several.
  """

  name: str = "accuracy"
  goal: str = "max"
  unit: str = "%"
  split: str = _SPLIT

  @property
  def column(self) -> str:
    """Returns the name under which runs log the metric."""
    return f"eval/{self.name}"

  @property
  def words(self) -> str:
    """Returns the name as people write it."""
    return self.name.replace("_", " ")

  @property
  def subject(self) -> str:
    """Returns the name with its split in front.

    Example:
      >>> Metric(split="validation").subject
      'validation accuracy'
    """
    return f"{self.split} {self.words}"

  @property
  def loss(self) -> str:
    """Returns the name of the loss, with its split in front."""
    return f"{self.split} loss"

  @property
  def title(self) -> str:
    """Returns the title of a column of a table.

    Example:
      >>> Metric().title, Metric("loss", "min", "nats").title
      ('test accuracy %', 'test loss (nats)')
    """
    return f"{self.subject} %" if self.unit == "%" else self.label

  @property
  def label(self) -> str:
    """Returns the label of an axis.

    Example:
      >>> Metric().label, Metric("bits_per_byte", "min", "bits per byte").label
      ('test accuracy (%)', 'test bits per byte')
    """
    unit = "" if self.unit in ("", self.words) else f" ({self.unit})"
    return f"{self.subject}{unit}"

  @property
  def scale(self) -> float:
    """Returns the number that values are multiplied with to be shown."""
    return 100.0 if self.unit == "%" else 1.0

  @property
  def sign(self) -> int:
    """Returns 1 or -1: a value times this is a score, of which more is better.

    Example:
      >>> max([3.0, 2.0], key=lambda x: x * Metric("loss", "min").sign)
      2.0
    """
    return 1 if self.goal == "max" else -1

  @property
  def extreme(self) -> str:
    """Returns the word for the best value: `highest` or `lowest`."""
    return "highest" if self.goal == "max" else "lowest"

  @property
  def learns(self) -> bool:
    """Returns whether half of the best value means anything.

    It does for a fraction that is to be large. Half of a loss is no less of a
    result, and half of a number that may be negative is nothing.
    """
    return self.unit == "%" and self.goal == "max"

  def tolerance(self, best: float) -> float:
    """Returns how much worse than the best a value may be and still be usable.

    Args:
      best: Best value, as it is logged.

    Example:
      >>> Metric().tolerance(0.9), Metric("loss", "min", "nats").tolerance(2.0)
      (0.01, 0.02)
    """
    return _POINT if self.unit == "%" else _POINT * abs(best)

  def points(self, number: int = 1) -> str:
    """Returns `number` times the tolerance, in words.

    Example:
      >>> Metric().points(), Metric("loss", "min", "nats").points(20)
      ('1 point', '20 % of the best value')
    """
    if self.unit != "%":
      return f"{number} % of the best value"
    return "1 point" if number == 1 else f"{number} points"

  def decimals(self, typical: float | None) -> int:
    """Returns how many decimals a table shows: two, or four digits in all.

    Args:
      typical: A value of the usual size; None if there is none.

    Example:
      >>> loss = Metric("loss", "min", "nats")
      >>> Metric().decimals(0.9), loss.decimals(2.3), loss.decimals(56.0)
      (2, 3, 2)
    """
    if self.unit == "%":
      return 2
    if not typical:
      return 3
    return max(0, 3 - math.floor(math.log10(abs(typical))))

  def within(self, values: Iterable[float]) -> tuple[float, float]:
    """Returns the least and the largest value that can be, as it is shown.

    A fraction lies between 0 and 1. Another metric that is nowhere negative,
    such as a loss, is taken to be so always.

    Args:
      values: Values that are shown, as they are logged.

    Example:
      >>> Metric().within([0.9]), Metric("loss", "min", "nats").within([2.3])
      ((0.0, 100.0), (0.0, inf))
    """
    if self.unit == "%":
      return 0.0, 100.0
    least = 0.0 if all(value >= 0 for value in values) else -math.inf
    return least, math.inf


def of(rows: Sequence[Mapping[str, Any]]) -> Metric:
  """Returns the metric of a sweep.

  A row that was written before rows named their metric means accuracy. A run
  that ended before its task was known has no metric, and follows the others.

  Args:
    rows: Rows of the sweep, as `ws_jax.sweep.rows.make` returns them.

  Raises:
    ValueError: Two rows have different metrics, or one has a goal that is
      neither `max` nor `min`.

  Example:
    >>> of([{"run": "a", "eval/accuracy": 0.9}]).title
    'test accuracy %'
  """
  runs: dict[Metric, list[str]] = {}
  for row in rows:
    metric = _of_row(row)
    if metric is not None:
      runs.setdefault(metric, []).append(row["run"])
  for metric, names in runs.items():
    if metric.goal not in _GOALS:
      raise ValueError(
        f"run {names[0]!r} has the metric {metric.name!r} with the goal"
        f" {metric.goal!r}: it must be {' or '.join(_GOALS)}"
      )
  if len(runs) > 1:
    each = "; ".join(
      f"{metric.name} ({metric.goal}, {metric.unit or 'no unit'}) in"
      f" {len(names)} runs, one of them {names[0]!r}"
      for metric, names in runs.items()
    )
    raise ValueError(
      f"a report needs one metric, and these runs have {len(runs)}: {each}."
      " Give each metric a sweep of its own."
    )
  return next(iter(runs), Metric())._replace(split=_split(rows))


def _split(rows: Iterable[Mapping[str, Any]]) -> str:
  """Returns the split that all rows are evaluated on, or the word for more."""
  every = dict.fromkeys(row.get("data.eval_split") or _SPLIT for row in rows)
  return str(next(iter(every))) if len(every) == 1 else _SPLITS


def _of_row(row: Mapping[str, Any]) -> Metric | None:
  """Returns the metric of a run, or None if that is not known."""
  if row.get("metric") is not None:
    goal, unit = row.get("metric_goal"), row.get("metric_unit")
    return Metric(row["metric"], str(goal), unit or "")
  default = Metric()
  return None if row.get(default.column) is None else default
