"""Chooses the figures of a sweep from the keys it varies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ws_jax.report import figures, groups, tables
from ws_jax.report.metric import Metric
from ws_jax.report.summary import Results
from ws_jax.sweep.arms import arm_of, in_order
from ws_jax.sweep.rows import Row

if TYPE_CHECKING:
  from matplotlib.figure import Figure as Drawing

# Name of a metric -> steps and values of one run, [2, n].
History = Mapping[str, np.ndarray]

# Largest number of learning rates that have dashes of their own in one panel.
_FEW_RATES = 4
# With fewer rates, a range of them and its end are no finding.
_ENOUGH_RATES = 3
# Cells of a heat map that are further behind the best than this many points
# share one colour, which leaves the contrast for the rest.
_FAR = 20

_RATES = (
  "Test {words} against learning rate: mean and standard deviation over"
  " seeds. A cross at the {end}: at least one seed diverged there. Points are"
  " moved apart a little."
)
_STEPS = (
  "Test {words} against the relative step, ||update|| / ||kernel||, that each"
  " learning rate led to (mean over the run): the axis on which arms with and"
  " without WS can be compared. A cross: at least one seed diverged there."
)
_CURVES = (
  "Test {words} over steps, one line for each run{rates}; a cross: it diverged."
)
_HEAT = (
  "{label}, mean over seeds, at each learning rate and {name}. Framed: the best"
  " rate of the row. Hatched, ×: every seed diverged; ×1/3: one of three did."
  " –: no result yet. Colour: how far it is behind the best of any arm in that"
  " setting, up to {far}."
)
_AGAINST = (
  "At the best learning rate of each point, against {name}: mean and standard"
  " deviation of test {words}{more}. A dashed line: an arm that does not depend"
  " on it."
)


class Figure(NamedTuple):
  """A figure of a report.

  Attributes:
    name: Name of its files, without the ending.
    caption: Text below it.
    panels: Panels, as `ws_jax.report.figures` makes them.
    size: Width and height of a panel, in inches.
    columns: Largest number of panels in a row; with more, or wider ones, they
      could not be read on printed paper.
  """

  name: str
  caption: str
  panels: Sequence[figures.Panel]
  size: tuple[float, float] = (4.8, 3.6)
  columns: int = 2

  def draw(self, columns: int | None = None, title: str = "") -> "Drawing":
    """Lays the panels out, in `columns` instead of the figure's own number."""
    columns = columns or self.columns
    return figures.sheet(self.panels, columns, title, self.size)


def figures_of(
  results: Results, histories: Mapping[str, History]
) -> list[Figure]:
  """Returns the figures of a sweep.

  They are the metric against learning rate in each setting; for each other key
  that was varied a heat map of it x learning rate for each arm, and what each
  arm reaches against it; and the curves, where they are known.

  Args:
    results: Results of the sweep.
    histories: Values that each run logged, by the name of the run.
  """
  metric, panels, steps, curves = results.metric, [], [], []
  for setting in results.settings():
    here = results.at(results.cells, setting)
    title = tables.setting_of(setting, results.varied)
    panels.append(figures.against_rate(here, metric, title))
    if len({cell["relative_step"] for cell in here} - {None}) > 1:
      steps.append(figures.against_rate(here, metric, title, "relative_step"))
    if shown := _curves(results, setting, histories):
      rates = results.rates if _few(results) else ()
      curves.append(figures.curves(shown, metric, title, rates))
  best = "" if _few(results) else ", at the best rate of its arm"
  over_steps = _CURVES.format(words=metric.words, rates=best)
  end = "bottom" if metric.goal == "max" else "top"
  caption = _RATES.format(words=metric.words, end=end)
  found = [Figure("figure", caption, panels)]
  if curves and len(panels) == 1:
    # With a single setting both are read together.
    found = [Figure("figure", f"{caption} {over_steps}", panels + curves)]
  if steps:
    caption = _STEPS.format(words=metric.words)
    found.append(Figure("relative_step", caption, steps))
  for key in results.varied:
    maps = [_heat_map(results, key)] if len(results.rates) > 1 else []
    # A key that never varies while all others stand still has no panels.
    found += [f for f in (*maps, _against(results, key)) if f.panels]
  if curves and len(panels) > 1:
    found.append(Figure("curves", over_steps, curves))
  return found


def _few(results: Results) -> bool:
  return len(results.rates) <= _FEW_RATES


def _curves(
  results: Results,
  setting: groups.Setting,
  histories: Mapping[str, History],
) -> list[figures.Curve]:
  """Returns the curves of a setting.

  They are of all rates if those are few, or else of the best one of each arm.
  """
  found, column = [], results.metric.column
  for row in results.at(results.rows, setting):
    history = histories.get(row["run"], {})
    if column in history and (_few(results) or results.is_best(row)):
      steps, values = history[column]
      arm, diverged = arm_of(row), row["status"] == "diverged"
      rate = row[results.rate_key]
      found.append(figures.Curve(arm, rate, diverged, steps, values))
  return found


def _heat_map(results: Results, key: str) -> Figure:
  """Returns a panel for each arm and each value of the other varied keys."""
  metric, name, panels = results.metric, tables.name_of(key), []
  for title, here in _around(results, key, _colored(results)):
    for arm in in_order(cell["arm"] for cell in here):
      own = [cell for cell in here if cell["arm"] == arm]
      title_of_arm = ", ".join(filter(None, [arm, title]))
      panels.append(figures.heat_map(own, metric, key, name, title_of_arm))
  label, far = metric.label, metric.points(_FAR)
  caption = _HEAT.format(label=label[0].upper() + label[1:], name=name, far=far)
  size = (1.2 + 0.38 * len(results.rates), 2.7)
  return Figure(_file("heat", name), caption, panels, size)


def _colored(results: Results) -> list[Row]:
  """Returns the cells with their value in words and how far behind they are.

  A cell is behind the best that any arm reaches in its setting: 1 stands for
  `_FAR` points and more.
  """
  metric, found = results.metric, []
  digits = max(metric.decimals(results.top) - 1, 0)
  for cell in results.cells:
    value, behind, words = cell[metric.name], None, ""
    if value is not None:
      own = tuple(cell[key] for key in results.varied)
      here = (other[metric.name] for other in results.at(results.cells, own))
      best = max(metric.sign * x for x in here if x is not None)
      behind = best - metric.sign * value
      far = _FAR * metric.tolerance(best)
      behind = min(behind / far, 1.0) if far else float(behind > 0)
      words = f"{metric.scale * value:.{digits}f}"
    found.append(cell | {"behind": behind, "words": words})
  return found


def _against(results: Results, key: str) -> Figure:
  """Returns a panel for each value to compare, and each of the other keys."""
  metric, name = results.metric, tables.name_of(key)
  shown, more = _to_compare(metric, len(results.rates) >= _ENOUGH_RATES)
  panels = [
    figures.against(here, metric, key, name, what, title)
    for title, here in _around(results, key, results.best)
    for what in shown
  ]
  caption = _AGAINST.format(name=name, words=metric.words, more=more)
  return Figure(_file("by", name), caption, panels, (3.6, 3.2), 3)


def _to_compare(metric: Metric, ranges: bool) -> tuple[list[str], str]:
  """Returns what the panels of `_against` show, and words for the caption.

  Args:
    metric: Metric of the sweep.
    ranges: Whether there are enough rates for ranges of them.
  """
  if not ranges:
    return ["metric"], ""
  if not metric.learns:
    return ["metric", "width"], ", and decades of usable rates"
  return ["metric", "width", "edge"], (
    ", decades of usable rates, and the largest rate that learns (to half of"
    f" the best {metric.words})"
  )


def _around(
  results: Results, key: str, entries: Sequence[Row]
) -> Iterator[tuple[str, list[Row]]]:
  """Yields the title and the entries of each panel that has `key` as an axis.

  Each panel holds the other varied keys fixed. One in which the key has fewer
  than two values would show nothing, and is left out.
  """
  rest = [other for other in results.varied if other != key]
  values = lambda entry: tuple(entry[other] for other in rest)
  for setting in groups.settings(map(values, entries)):
    here = [e for e in entries if groups.compatible(values(e), setting)]
    if len({entry[key] for entry in here} - {None}) > 1:
      yield tables.setting_of(setting, rest), here


def _file(kind: str, name: str) -> str:
  return f"{kind}_{name}".replace(" ", "_").replace("-", "_")
