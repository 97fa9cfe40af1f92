"""Which figures a sweep calls for: what it varies decides, nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ws_jax.report import figures, summary, tables
from ws_jax.sweep.arms import arm_of, in_order
from ws_jax.sweep.rows import Row

if TYPE_CHECKING:
  from matplotlib.figure import Figure as Drawing

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
  " learning rate led to (mean over the run): the axis on which arms with and"
  " without WS can be compared. A cross: at least one seed diverged there."
)
_CURVES = "Test accuracy over steps, one line a run{}; a cross: it diverged."
_HEAT = (
  "Test accuracy (%), mean over seeds, at each learning rate and {}. Framed:"
  " the best rate of the row. Hatched, ×: every seed diverged; ×1/3: one of"
  " three did. –: no result yet. Colour: how far it is below the best of"
  " any arm in that setting, up to 20 points."
)
_AGAINST = (
  "At the best learning rate of each point, against {}: mean and standard"
  " deviation of test accuracy{}. A dashed line: an arm that does not depend"
  " on it."
)
_WIDTH = (
  ", decades of usable rates, and the largest rate that learns (to half of the"
  " best accuracy)"
)


class Figure(NamedTuple):
  """A figure: the name of its files, what it shows, and its panels.

  Not more `columns` of them, nor wider, than can be read on printed paper.
  """

  name: str
  caption: str
  panels: Sequence[figures.Panel]
  size: tuple[float, float] = (4.8, 3.6)
  columns: int = 2

  def draw(self, columns: int | None = None, title: str = "") -> "Drawing":
    """Lays it out, in its own number of columns or another one."""
    columns = columns or self.columns
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
    maps = [_heat_map(results, key)] if len(results.rates) > 1 else []
    # Two things that never vary apart have no panels.
    found += [f for f in (*maps, _against(results, key)) if f.panels]
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
      arm, lost = arm_of(row), row["status"] == "diverged"
      rate = row[results.rate_key]
      found.append(figures.Curve(arm, rate, lost, steps, values))
  return found


def _heat_map(results: summary.Results, key: str) -> Figure:
  """A panel for each arm, and each of the other things varied."""
  name, panels = tables.name_of(key), []
  for title, here in _around(results, key, _below(results)):
    for arm in in_order(cell["arm"] for cell in here):
      own = [cell for cell in here if cell["arm"] == arm]
      panels.append(figures.heat_map(own, key, name, _join(arm, title)))
  size = (1.2 + 0.38 * len(results.rates), 2.7)
  return Figure(_file("heat", name), _HEAT.format(name), panels, size)


def _below(results: summary.Results) -> list[Row]:
  """The cells, and how far each is below the best of its setting."""
  found = []
  for cell in results.cells:
    own = tuple(cell[key] for key in results.varied)
    best = [
      other["accuracy"]
      for other in results.at(results.cells, own)
      if other["accuracy"] is not None
    ]
    accuracy = cell["accuracy"]
    below = None if accuracy is None else max(best) - accuracy
    found.append(cell | {"below": below})
  return found


def _against(results: summary.Results, key: str) -> Figure:
  wide = len(results.rates) >= _ENOUGH_RATES
  name = tables.name_of(key)
  panels = [
    figures.against(here, key, name, what, title)
    for title, here in _around(results, key, results.best)
    for what in (figures.AGAINST if wide else ["accuracy"])
  ]
  caption = _AGAINST.format(name, _WIDTH if wide else "")
  return Figure(_file("by", name), caption, panels, (3.6, 3.2), 3)


def _around(
  results: summary.Results, key: str, entries: Sequence[Row]
) -> Iterator[tuple[str, list[Row]]]:
  """Entries for each value of all else that was varied, and its title.

  Where that left no two values of the key, there is nothing to see.
  """
  rest = [other for other in results.varied if other != key]
  values = lambda entry: tuple(entry[other] for other in rest)
  for setting in summary.settings(map(values, entries)):
    here = [e for e in entries if summary.compatible(values(e), setting)]
    if len({entry[key] for entry in here} - {None}) > 1:
      yield tables.setting_of(setting, rest), here


def _join(*words: str) -> str:
  return ", ".join(filter(None, words))


def _file(kind: str, name: str) -> str:
  return f"{kind}_{name}".replace(" ", "_").replace("-", "_")
