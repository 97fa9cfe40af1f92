"""Which figures a sweep calls for: what it varies decides, nothing else."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ws_jax import rows as rows_lib
from ws_jax.report import figures, summary, tables

if TYPE_CHECKING:
  from matplotlib.figure import Figure as Drawing

Row = rows_lib.Row
# Metric -> steps and values of one run, [2, n].
History = Mapping[str, np.ndarray]

# Learning rates that the lines of one panel can tell apart by their dashes.
_FEW_RATES = 4
# With fewer, a range of them and its end are no finding.
_ENOUGH_RATES = 3

_ACCURACY = (
  "Test accuracy against learning rate: mean and standard deviation over"
  " seeds. A cross on the axis: at least one seed diverged there. Points are"
  " moved apart a little."
)
_STEPS = (
  "Test accuracy against the relative step, ||update|| / ||kernel||, that each"
  " learning rate led to at the end of training: the axis on which arms with"
  " and without WS can be compared. Rates at which every seed diverged have"
  " none."
)
_CURVES = "Test accuracy over steps, one line a run{}; a cross: it diverged."
_HEAT = (
  "Test accuracy (%), mean over seeds, at each learning rate and {}. Framed:"
  " the best rate of the row. Hatched, ×: every seed diverged; ×1/3: one of"
  " three did. –: no result yet. Colours end 20 points below the best."
)
_AGAINST = (
  "At the best learning rate of each point, against {}: mean and standard"
  " deviation of test accuracy{}. A dashed line: an arm that does not depend"
  " on it."
)
_WIDTH = ", decades of usable rates, largest stable rate"


class Figure(NamedTuple):
  """A figure: the name of its files, what it shows, and its panels."""

  name: str
  caption: str
  panels: Sequence[figures.Panel]
  size: tuple[float, float] = (4.8, 3.6)

  def draw(self, columns: int = 3, title: str = "") -> "Drawing":
    """Lays it out in so many columns."""
    return figures.sheet(self.panels, columns, title, self.size)


def figures_of(
  results: summary.Results, histories: Mapping[str, History]
) -> list[Figure]:
  """The figures of a sweep.

  Accuracy against learning rate in each setting; for each thing that was
  varied besides, a heat map of it x learning rate for each arm, and what each
  arm reaches against it; and the curves, where they are known.

  Args:
    results: as `summary.analyze` returns them.
    histories: what the runs logged on the way, by name.
  """
  panels, steps, curves = [], [], []
  for setting in results.settings():
    here = results.at(results.cells, setting)
    title = tables.setting_of(setting, results.varied)
    panels.append(figures.accuracy(here, title))
    if len({cell["relative_step"] for cell in here} - {None}) > 1:
      steps.append(figures.accuracy(here, title, "relative_step"))
    if shown := _curves(results, setting, histories):
      rates = results.rates if _few(results) else ()
      curves.append(figures.curves(shown, title, rates))
  which = "" if _few(results) else ", at the best rate of its arm"
  found = [Figure("figure", _ACCURACY, panels)]
  if curves and len(panels) == 1:
    # Read together, as long as there is just one setting.
    caption = f"{_ACCURACY} {_CURVES.format(which)}"
    found = [Figure("figure", caption, panels + curves)]
  if steps:
    found.append(Figure("relative_step", _STEPS, steps))
  for key in results.varied:
    if len(results.rates) > 1:
      found.append(_heat_map(results, key))
    found.append(_against(results, key))
  if curves and len(panels) > 1:
    found.append(Figure("curves", _CURVES.format(which), curves))
  return found


def _few(results: summary.Results) -> bool:
  return len(results.rates) <= _FEW_RATES


def _curves(
  results: summary.Results,
  setting: summary.Setting,
  histories: Mapping[str, History],
) -> list[figures.Curve]:
  """At all rates if they are few, or else at the best one of each arm."""
  found = []
  for row in results.at(results.rows, setting):
    history = histories.get(row["run"], {})
    if summary.METRIC in history and (_few(results) or results.is_best(row)):
      steps, values = history[summary.METRIC]
      arm, lost = rows_lib.arm_of(row), row["status"] == "diverged"
      rate = row[results.rate_key]
      found.append(figures.Curve(arm, rate, lost, steps, values))
  return found


def _heat_map(results: summary.Results, key: str) -> Figure:
  """A panel for each arm, and each of the other things varied."""
  rest = [other for other in results.varied if other != key]
  groups: dict[tuple[Any, ...], list[Row]] = {}
  for cell in results.cells:
    own = (*(cell[other] for other in rest), cell["arm"])
    groups.setdefault(own, []).append(cell)
  name, limits = tables.name_of(key), figures.heat_limits(results.cells)
  panels = [
    figures.heat_map(
      cells, key, name, limits, _join(arm, tables.setting_of(setting, rest))
    )
    for (*setting, arm), cells in groups.items()
  ]
  size = (1.4 + 0.42 * len(results.rates), 2.9)
  caption = _HEAT.format(name)
  return Figure(_file("heat", name), caption, panels, size)


def _against(results: summary.Results, key: str) -> Figure:
  rest = [other for other in results.varied if other != key]
  name, panels = tables.name_of(key), []
  wide = len(results.rates) >= _ENOUGH_RATES
  values = lambda entry: tuple(entry[other] for other in rest)
  for setting in summary.settings(map(values, results.best)):
    here = [
      entry
      for entry in results.best
      if summary.compatible(values(entry), setting)
    ]
    title = tables.setting_of(setting, rest)
    for what in figures.AGAINST if wide else ["accuracy"]:
      panels.append(figures.against(here, key, name, what, title))
  caption = _AGAINST.format(name, _WIDTH if wide else "")
  return Figure(_file("by", name), caption, panels)


def _join(*words: str) -> str:
  return ", ".join(filter(None, words))


def _file(kind: str, name: str) -> str:
  return f"{kind}_{name}".replace(" ", "_").replace("-", "_")
