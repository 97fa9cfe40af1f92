"""Panels of the metric: against rates, steps and other keys, and over a run."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ws_jax.report import groups, ticks
from ws_jax.report.figures import Panel, looks
from ws_jax.report.metric import Metric
from ws_jax.report.tables import text

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_DASHES = ("-", "--", ":", "-.")
_MANY_TICKS = 16
_LETTER = 0.085  # inches, of a label
_WIDTH = 3.6  # inches, of an axis
# Text of labels that are turned, and end under their places.
TURNED: dict[str, Any] = {
  "rotation": 45,
  "ha": "right",
  "rotation_mode": "anchor",
}

Cell = Mapping[str, Any]


class Curve(NamedTuple):
  """The metric of one run during training.

  Attributes:
    arm: Name of the arm of the run.
    learning_rate: Learning rate of the run.
    diverged: Step at which the run diverged; None if it did not.
    steps: Optimizer steps at which the run was evaluated [n].
    values: Values of the metric, as they are logged [n].
  """

  arm: str
  learning_rate: float
  diverged: int | None
  steps: np.ndarray
  values: np.ndarray


def against_rate(
  cells: Sequence[Cell],
  metric: Metric,
  title: str = "",
  key: str = "learning_rate",
  name: str = "",
  lines: bool = True,
) -> Panel:
  """Returns a panel of the metric against learning rate, or another number.

  A cross marks a place at which a run diverged.

  Args:
    cells: Cells of one setting, as `ws_jax.report.groups.summarize` returns
      them.
    metric: Metric of the sweep.
    title: Title of the panel.
    key: Column for the x axis: `learning_rate`, `relative_step`, or a config
      key that was searched.
    name: Name of the column, in words.
    lines: Whether lines connect the points of an arm, in the order of the axis,
      and each has its standard deviation.
  """
  cells = [c for c in cells if c[key] is not None]
  shown = [c for c in cells if c["diverged"] or c[metric.name] is not None]
  every = looks(cell["arm"] for cell in shown)
  axis = _Axis([cell[key] for cell in cells], name or key.replace("_", " "))
  series = {}
  for number, arm in enumerate(every):
    own = [cell for cell in shown if cell["arm"] == arm]
    # Moved apart by a part of the axis, so that no point hides another.
    away = 0.04 * (number / max(len(every) - 1, 1) - 0.5) * lines
    x = [axis.place(cell[key], away, number) for cell in own]
    order = np.argsort(x, kind="stable")
    series[arm] = [(x[i], own[i]) for i in order]

  def draw(ax: "Axes") -> None:
    _frame(ax, metric.label)
    for arm, look in every.items():
      points = [(x, c) for x, c in series[arm] if c[metric.name] is not None]
      at, own = [x for x, _ in points], [cell for _, cell in points]
      if lines:
        _errorbar(ax, at, own, metric, look | {"label": arm})
      else:
        # Bars of hundreds of points would hide them.
        y = [metric.scale * cell[metric.name] for cell in own]
        ax.plot(
          at, y, **look | {"linestyle": "none", "markersize": 4}, label=arm
        )
    axis.finish(ax, [*every])

  crosses = {
    arm: [x for x, cell in points if cell["diverged"]]
    for arm, points in series.items()
  }
  return _of_metric(draw, metric, title, crosses, cells)


def _of_metric(draw, metric, title, crosses, cells, axis="value") -> Panel:
  """Returns a panel whose y axis is the metric."""
  values = [cell[metric.name] for cell in cells]
  return Panel(
    draw,
    title,
    axis,
    {arm: places for arm, places in crosses.items() if places},
    "bottom" if metric.goal == "max" else "top",
    metric.within(x for x in values if x is not None),
  )


class _Axis:
  """The x axis of a panel: a logarithm, numbers, names, or a single value.

  Args:
    values: Values of all points.
    name: Name of the axis, in words.
  """

  def __init__(self, values: Sequence[Any], name: str):
    self._name = name
    self._values = list(dict.fromkeys(values))
    self._numbers = all(map(groups.is_number, self._values))
    if self._numbers:
      self._values.sort()
    low, high = (self._values or [0])[0], (self._values or [0])[-1]
    self._log = self._numbers and low > 0
    self._one = len(self._values) == 1
    if self._log:
      self._span = math.log10(high / low)
    else:
      self._span = high - low if self._numbers else len(self._values) - 1

  def place(self, value: Any, away: float, number: int) -> float:
    """Returns where a value is, moved by a part of the axis.

    Args:
      value: Value of a point.
      away: Part of the axis.
      number: Number of its arm, the place if there is but one value.
    """
    if self._one:
      return number
    if self._log:
      return value * 10 ** (away * self._span)
    at = value if self._numbers else self._values.index(value)
    return at + away * self._span

  def finish(self, ax: "Axes", arms: Sequence[str]) -> None:
    """Puts the labels along the axis."""
    if self._one:
      long = sum(map(len, arms)) * _LETTER > 0.8 * _WIDTH
      ax.set_xticks(range(len(arms)), [*arms], **TURNED if long else {})
      ax.set_xlim(-0.6, len(arms) - 0.4)
      ax.set_xlabel(f"{self._name} {text(self._values[0])}")
      return
    ax.set_xlabel(self._name)
    if not self._values:
      ax.set_xticks([])
    elif self._log:
      ax.set_xscale("log")
      label_logarithm(ax, self._values)
    elif not self._numbers:
      names = [text(value) for value in self._values]
      ax.set_xticks(range(len(names)), names, **TURNED)


def label_logarithm(ax: "Axes", values: Sequence[float]) -> None:
  """Labels the values of a grid; of more, or of measured ones, round numbers.

  Labels that would touch are turned, or left out.

  Args:
    ax: Axes whose x axis is logarithmic.
    values: Values of the points, rising.
  """
  low, high = math.log10(values[0]), math.log10(values[-1])
  pad = 0.05 * (high - low) or 0.1
  ax.set_xlim(10 ** (low - pad), 10 ** (high + pad))
  shown = list(values)
  labels = [text(value) for value in shown]
  if len(shown) > _MANY_TICKS or max(map(len, labels)) > 6:
    shown = ticks.of_logarithm(low - pad, high + pad)
    labels = [f"{value:g}" for value in shown]
  scale = _WIDTH / (high - low + 2 * pad)
  places = [scale * (math.log10(value) - low) for value in shown]
  level = ticks.apart(places, [_LETTER * (len(x) + 1) for x in labels])
  kept = ticks.apart(places, [2 * _LETTER] * len(labels))
  labels = [label * keep for label, keep in zip(labels, kept, strict=True)]
  ax.set_xticks(shown, labels, **{} if all(level) else TURNED)
  ax.minorticks_off()


def _frame(ax: "Axes", ylabel: str) -> None:
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(axis="y", color="#dddddd", linewidth=0.8)
  ax.set_axisbelow(True)
  ax.set_ylabel("\n".join(textwrap.wrap(ylabel, 34)))


def _errorbar(ax, x, cells, metric, style) -> None:
  """Draws means with their deviations, cut where no value can be."""
  scale, name = metric.scale, metric.name
  y = scale * np.array([cell[name] for cell in cells], float)
  spread = [cell.get(f"{name}_std") or 0.0 for cell in cells]
  error = scale * np.array(spread, float)
  low, high = metric.within([cell[name] for cell in cells])
  down, up = np.minimum(error, y - low), np.minimum(error, high - y)
  # As lists: matplotlib 3.10 takes an array of one value for a number, which
  # NumPy 2.0 warns of.
  sides = [np.maximum(side, 0).tolist() for side in (down, up)]
  ax.errorbar(x, y, sides, capsize=3, **style)


def curves(
  runs: Sequence[Curve],
  metric: Metric,
  title: str = "",
  rates: Sequence[float] = (),
) -> Panel:
  """Returns a panel of the metric over steps, with one line for each run.

  A cross marks the step at which a run diverged.

  Args:
    runs: Curves of the runs of one setting.
    metric: Metric of the sweep.
    title: Title of the panel.
    rates: Learning rates that have dashes of their own; empty if there are too
      many.
  """
  every = looks(curve.arm for curve in runs)

  def draw(ax: "Axes") -> None:
    _frame(ax, metric.label)
    dashes = dict(zip(rates, _DASHES, strict=False))
    # Arms are drawn in the order of the legend.
    for curve in sorted(runs, key=lambda curve: [*every].index(curve.arm)):
      ax.plot(
        curve.steps,
        metric.scale * curve.values,
        **every[curve.arm] | {"markersize": 4},
        linestyle=dashes.get(curve.learning_rate, "-"),
        linewidth=1.2,
        label=curve.arm,
      )
    if len(rates) > 1:
      lines = [
        ax.plot([], [], linestyle=dash, color="black")[0]
        for dash in dashes.values()
      ]
      names = [f"learning rate {text(rate)}" for rate in dashes]
      ax.legend(lines, names, frameon=False)
    ax.set_xlabel("optimizer step")
    last = max(
      [
        *(c.diverged or 0 for c in runs),
        *(c.steps[-1] for c in runs if len(c.steps)),
      ]
    )
    ax.set_xlim(0, 1.03 * last)

  crosses: dict[str, list[float]] = {}
  for curve in runs:
    if curve.diverged is not None:
      crosses.setdefault(curve.arm, []).append(curve.diverged)
  values = [{metric.name: x} for curve in runs for x in curve.values]
  return _of_metric(draw, metric, title, crosses, values, "curve")


def against(
  best: Sequence[Cell],
  metric: Metric,
  key: str,
  name: str,
  what: str,
  title: str = "",
) -> Panel:
  """Returns a panel of what each arm reaches against a key that was varied.

  Args:
    best: Rows that `ws_jax.report.rates.best` returns.
    metric: Metric of the sweep.
    key: Config key for the x axis. An arm that has None there does not depend
      on it, and is drawn as a level line.
    name: Name of the key, in words.
    what: Value for the y axis: the `metric` at the best rate, the `width` of
      the range of usable rates, or its `edge`, the largest rate that learns.
    title: Title of the panel.
  """
  column, label = {
    "metric": (metric.name, f"{metric.label}, best rate"),
    "width": ("decades", "usable range (decades)"),
    "edge": ("largest_learning", "largest rate that learns"),
  }[what]
  # Other numbers than the metric are drawn as they are, and are not negative.
  own_metric = metric if what == "metric" else Metric(column, "max", "")
  values = dict.fromkeys(cell[key] for cell in best if cell[key] is not None)
  numbers = all(groups.is_number(v) and v > 0 for v in values)
  places = sorted(values) if numbers else list(values)

  def draw(ax: "Axes") -> None:
    _frame(ax, label)
    if what == "edge":
      ax.set_yscale("log")
    if what == "width":
      ax.update_datalim([(1, 0)], updatex=False)
    place = {v: v if numbers else i for i, v in enumerate(places)}
    for arm, look in looks(cell["arm"] for cell in best).items():
      own = [c for c in best if c["arm"] == arm and c[column] is not None]
      if level := [cell for cell in own if cell[key] is None]:
        own = [{**level[0], key: value} for value in places]
        look = look | {"linestyle": "--", "markersize": 0}
      own = sorted(own, key=lambda cell: place[cell[key]])
      at = [place[cell[key]] for cell in own]
      _errorbar(ax, at, own, own_metric, look | {"label": arm})
    if numbers:
      ax.set_xscale("log")
      label_logarithm(ax, places)
    else:
      names = [text(value) for value in places]
      ax.set_xticks(range(len(places)), names)
    ax.set_xlabel(name)

  return _of_metric(draw, own_metric, title, {}, best, what)
