"""Chooses the figures of a sweep from the keys it varies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ws_jax.report import figures, groups, heat, panels, tables
from ws_jax.report.figures import Panel
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

# Largest number of settings with a panel of their own in one figure, and with
# a panel for each arm.
_SETTINGS, _SETTINGS_OF_ARMS = 6, 2

_LOST = "Crosses in the grey band: a run diverged there{of}."
_SHARED = " The panels share one y axis."
_RATES = (
  "{Subject} against learning rate: mean and standard deviation over seeds"
  "{cut}. Points are moved apart a little.{lost}"
)
_STEPS = (
  "{Subject} against the relative step, ||update|| / ||kernel||, that each"
  " learning rate led to (mean over the run): the axis on which arms with and"
  " without WS can be compared.{lost}"
)
_SEARCH = (
  "{Subject} of each point of the search, against each key that was searched:"
  " mean over seeds.{lost}"
)
_CURVES = "{Subject} over steps, one line for each run{rates}.{lost}"
_HEAT = (
  "{label}, mean over seeds, at each learning rate and {name}. Framed: the best"
  " rate of the row. Hatched, ×: every seed diverged; ×1/3: one of three did."
  " –: no result yet. Colour: how far it is behind the best of any arm in that"
  " setting, up to {far}."
)
_AGAINST = (
  "At the best learning rate of each point, against {name}: mean and standard"
  " deviation of {subject}{more}. A dashed line: an arm that does not depend"
  " on it."
)
_FEWER = " {shown} of the {every} settings: those nearest to the best one."


class Figure(NamedTuple):
  """A figure of a report.

  Attributes:
    name: Name of its files, without the ending.
    caption: Text below it.
    panels: Panels, as `panels` and `heat` of `ws_jax.report` make them.
    size: Width and height of a panel, in inches.
    columns: Largest number of panels in a row; with more, or wider ones, they
      could not be read on printed paper.
  """

  name: str
  caption: str
  panels: Sequence[Panel]
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

  They are the metric against learning rate in each setting, and against all
  that was searched; for each other key that was varied a heat map of it x
  learning rate for each arm, and what each arm reaches against it; and the
  curves, where they are known. Of very many settings, they show those that are
  nearest to the best one.

  Args:
    results: Results of the sweep.
    histories: Values that each run logged, by the name of the run.
  """
  metric = results.metric
  every = results.settings()
  settings = _nearest(every, results.kept, results)
  steps, curves = [], []
  for setting in settings:
    here = results.at(results.cells, setting)
    title = tables.setting_of(setting, results.kept)
    if len({cell["relative_step"] for cell in here} - {None}) > 1:
      lines = not results.searched
      steps.append(
        panels.against_rate(
          here, metric, title, "relative_step", "relative step", lines
        )
      )
    if shown := _curves(results, setting, histories):
      rates = results.rates if _few(results) else ()
      curves.append(panels.curves(shown, metric, title, rates))
  fewer = ""
  if len(settings) < len(every):
    fewer = _FEWER.format(shown=len(settings), every=len(every))
  best = "" if _few(results) else ", at the best rate of its arm"
  over_steps = _caption(_CURVES, metric, curves, rates=best) + fewer
  first = _first(results, settings)
  result = [first._replace(caption=first.caption + fewer)]
  if curves and len(first.panels) == 1:
    # With a single panel both are read together.
    both = f"{first.caption} {over_steps}"
    result = [first._replace(caption=both, panels=[*first.panels, *curves])]
  if steps:
    result.append(
      Figure("relative_step", _caption(_STEPS, metric, steps) + fewer, steps)
    )
  for key in results.kept:
    maps = [] if results.searched else [_heat_map(results, key)]
    maps = maps if len(results.rates) > 1 else []
    # A key that never varies while all others stand still has no panels.
    result += [f for f in (*maps, _against(results, key)) if f.panels]
  if curves and len(first.panels) > 1:
    result.append(Figure("curves", over_steps, curves))
  return result


def _caption(
  text: str, metric: Metric, shown: Sequence[Panel], **words: str
) -> str:
  """Returns a caption that names what the panels have."""
  subject = metric.subject
  lost = any(panel.crosses for panel in shown)
  several = len(shown) > 1
  of = ", at least one seed of the point" if "mean" in text else ""
  return text.format(
    Subject=subject[:1].upper() + subject[1:],
    cut=", cut at 0 and 100 %" if metric.unit == "%" else "",
    lost=f" {_LOST.format(of=of)}" * lost + _SHARED * several,
    **words,
  )


def _first(results: Results, settings: Sequence[groups.Setting]) -> Figure:
  """Returns the figure against the learning rate, or all that was searched."""
  metric, shown = results.metric, []
  keys = [key for key in results.searched if _several(results, key)]
  if not results.searched or len(results.rates) > 1:
    keys.insert(0, "learning_rate")
  for setting in settings:
    here = results.at(results.cells, setting)
    title = tables.setting_of(setting, results.kept)
    for key in keys:
      name = "" if key == "learning_rate" else tables.name_of(key)
      shown.append(
        panels.against_rate(
          here, metric, title, key, name, lines=not results.searched
        )
      )
  text = _SEARCH if results.searched else _RATES
  return Figure("figure", _caption(text, metric, shown), shown)


def _several(results: Results, key: str) -> bool:
  return len({cell[key] for cell in results.cells} - {None}) > 1


def _nearest(
  settings: Sequence[groups.Setting],
  keys: Sequence[str],
  results: Results,
  most: int = _SETTINGS,
) -> list[groups.Setting]:
  """Returns the settings that differ in fewest keys from the best result.

  Args:
    settings: Settings, in their order, in which they are returned.
    keys: Their keys.
    results: Results of the sweep.
    most: Largest number of them.
  """
  metric = results.metric
  known = [cell for cell in results.cells if cell[metric.name] is not None]
  if len(settings) <= most or not known:
    return list(settings)[:most]
  best = max(known, key=lambda cell: metric.sign * cell[metric.name])
  at = [best[key] for key in keys]
  apart = lambda one: sum(a != b for a, b in zip(one, at, strict=True))
  near = set(sorted(settings, key=apart)[:most])
  return [one for one in settings if one in near]


def _ranges(results: Results) -> bool:
  return len(results.rates) >= _ENOUGH_RATES and not results.searched


def _few(results: Results) -> bool:
  return len(results.rates) <= _FEW_RATES


def _curves(
  results: Results,
  setting: groups.Setting,
  histories: Mapping[str, History],
) -> list[panels.Curve]:
  """Returns the curves of a setting.

  They are of all rates if those are few, or else of the best one of each arm.
  """
  result, column = [], results.metric.column
  best = results.best_runs()
  for row in results.at(results.rows, setting):
    history = histories.get(row["run"], {})
    if history and (_few(results) or row["key"] in best):
      steps, values = history.get(column, np.empty((2, 0)))
      end = row["step"] if row["status"] == "diverged" else None
      rate = row[results.rate_key]
      if rate is not None and (len(steps) or end is not None):
        result.append(panels.Curve(arm_of(row), rate, end, steps, values))
  return result


def _heat_map(results: Results, key: str) -> Figure:
  """Returns a panel for each arm and each value of the other varied keys."""
  metric, name, maps = results.metric, tables.name_of(key), []
  for title, here in _around(results, key, _colored(results)):
    for arm in in_order(cell["arm"] for cell in here):
      own = [cell for cell in here if cell["arm"] == arm]
      title_of_arm = ", ".join(filter(None, [arm, title]))
      maps.append(heat.heat_map(own, metric, key, name, title_of_arm))
  label, far = metric.label, metric.points(_FAR)
  caption = _HEAT.format(label=label[0].upper() + label[1:], name=name, far=far)
  size = (1.2 + 0.38 * len(results.rates), 2.7)
  return Figure(_file("heat", name), caption, maps, size)


def _colored(results: Results) -> list[Row]:
  """Returns the cells with their value in words and how far behind they are.

  A cell is behind the best that any arm reaches in its setting: 1 stands for
  `_FAR` points and more.
  """
  metric, result = results.metric, []
  digits = max(metric.decimals(results.top) - 1, 0)
  best: dict[groups.Setting, float] = {}
  scored = [c for c in results.cells if c[metric.name] is not None]
  near = groups.beside(results.setting(cell) for cell in results.cells)
  for cell in scored:
    score = metric.sign * cell[metric.name]
    for other in near[results.setting(cell)]:
      best[other] = max(score, best.get(other, score))
  for cell in results.cells:
    value, behind, words = cell[metric.name], None, ""
    if value is not None:
      top = best[results.setting(cell)]
      behind = top - metric.sign * value
      far = _FAR * metric.tolerance(top)
      behind = min(behind / far, 1.0) if far else float(behind > 0)
      words = f"{metric.scale * value:.{digits}f}"
    result.append(cell | {"behind": behind, "words": words})
  return result


def _against(results: Results, key: str) -> Figure:
  """Returns a panel for each value to compare, and each of the other keys."""
  metric, name = results.metric, tables.name_of(key)
  shown, more = _to_compare(metric, _ranges(results))
  drawn = [
    panels.against(here, metric, key, name, what, title)
    for title, here in _around(results, key, results.best)
    for what in shown
  ]
  caption = _AGAINST.format(name=name, subject=metric.subject, more=more)
  return Figure(_file("by", name), caption, drawn, (3.6, 3.2), 3)


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
  rest = [other for other in results.kept if other != key]
  values = lambda entry: tuple(entry[other] for other in rest)
  every = groups.settings(map(values, entries))
  for setting in _nearest(every, rest, results, _SETTINGS_OF_ARMS):
    here = [e for e in entries if groups.compatible(values(e), setting)]
    if len({entry[key] for entry in here} - {None}) > 1:
      yield tables.setting_of(setting, rest), here


def _file(kind: str, name: str) -> str:
  # A name of a file, whatever a user has called a key.
  return re.sub(r"\W+", "_", f"{kind}_{name}")
