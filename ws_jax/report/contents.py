"""Puts together what the page of a sweep shows, in its order."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ws_jax.base import numerics
from ws_jax.report import figures, gallery, groups, mistakes, page, tables
from ws_jax.report.metric import Metric
from ws_jax.report.mistakes import Mistakes
from ws_jax.report.summary import Results
from ws_jax.sweep.arms import arm_of, in_order
from ws_jax.sweep.rows import Row

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "9 3 2 3 2 3", "1 2", "12 3")
# Largest number of points of a curve on the page, and of all curves of a
# metric, but that each curve has a few.
_POINTS, _ALL_POINTS, _FEW_POINTS = 100, 100_000, 20

# Facts that the page states if all runs agree, and the columns with them.
_FACTS = {
  "data": "data.name",
  "evaluated on": "data.eval_split",
  "model": "model.name",
  "seeds": "seed",
  "steps": "step",
  "device": "device",
  "jax": "versions.jax",
  "commit": "commit",
}
_SENSITIVITY = (
  "Sensitivity (Wortsman et al. 2023, section 2.2): the mean over the grid of"
  " min({loss}, loss at initialization), less the best; a run that diverged"
  " counts as the loss at initialization. Smaller is better. It is over the"
  " seeds that have a run at every rate."
)
_STEPS = (
  "A learning rate means another thing where weights are standardized. So this"
  " table has relative steps instead: ||update|| / ||kernel||, the mean over"
  " kernels and over the run, as far as it went. The sensitivity is the mean"
  " over the logarithm of the step, between the steps that all arms reach."
)


def logged(metric: Metric) -> dict[str, tuple[str, float]]:
  """Returns the curves that the page shows.

  Args:
    metric: Metric of the sweep.

  Returns:
    Name in `metrics.jsonl` -> name on the page, and the number that values are
    multiplied with to be shown.
  """
  shown = {metric.column: (metric.label, metric.scale)}
  others = {"eval/loss": metric.loss, "train/loss": "training loss"}
  return shown | {
    name: (title, 1.0) for name, title in others.items() if name not in shown
  }


def _about_best(results: Results) -> list[str]:
  """Returns notes on the table of the best rates."""
  metric, names = results.metric, map(tables.name_of, results.searched)
  search = (
    f" Searched like the rate: {', '.join(names)}." if results.searched else ""
  )
  return [
    "Mean and sample standard deviation over seeds. The best rate has the"
    f" {metric.extreme} mean {metric.subject} among the rates at which no"
    " seed diverged. It is chosen on the split that it is reported on, for"
    " every arm alike: these values are a little too good, and are for"
    f" comparing arms.{search}"
  ]


def _about_width(metric: Metric) -> list[str]:
  """Returns notes on the table of the usable ranges."""
  words = metric.words
  learns = (
    f" Learns up to: the last rate, going up from the best, with at least half"
    f" of its {words}."
    if metric.learns
    else ""
  )
  return [
    f"Usable: the rates around the best one whose mean {words} is worse by"
    f" at most {metric.points()}; between two rates of the grid {words} is"
    " taken as linear in the logarithm of the rate. ≤ and ≥: the grid ends"
    " first. Largest stable rate: below the lowest one at which a seed"
    f" diverged (≥: none did).{learns}",
    _SENSITIVITY.format(loss=metric.loss),
  ]


def _about_differences(results: Results) -> list[str]:
  """Returns notes on the table of the differences."""
  metric, rows = results.metric, len(results.differences)
  better = "above" if metric.goal == "max" else "below"
  return [
    f"{_capital(metric.subject)} of each arm at its own best rate, less that of"
    f" another at its own, paired by seed: the first is better {better} 0."
    " Mean, its standard error, and the 95 % interval of Student's t of this"
    " comparison alone. p is corrected for the number of rows of the table,"
    f" {rows} (Holm): a difference is a finding where it is below 0.05, and"
    " with few seeds it hardly ever is. The choice of the rates is not counted."
  ]


def _about_changes(results: Results) -> list[str]:
  """Returns notes on the table of the differences between two sweeps."""
  better = "above" if results.metric.goal == "max" else "below"
  return [
    f"{_capital(results.metric.subject)} of each arm in one sweep less that in"
    " the other, at its own best rate in each, paired by seed: the first is"
    f" better {better} 0. Interval and p are those of the table below."
  ]


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


def tables_of(results: Results) -> dict[str, tables.Lines]:
  """Returns the tables that say something, by the name of their file."""
  result = {"summary": tables.cells(results), "best": tables.best(results)}
  if len(results.rates) > 1 and not results.searched:
    result["width"] = tables.width(results)
    if any(entry["step_low"] is not None for entry in results.best):
      result["width_steps"] = tables.width(results, "step_")
  if results.differences:
    result["differences"] = tables.differences(results)
  return result


def facts(results: Results) -> list[str]:
  """Returns how many runs there are, and what they have in common."""
  ended = collections.Counter(row["status"] for row in results.rows)
  counts = (f"{ended[end]} {end}" for end in groups.ENDS if ended[end])
  lines = [f"{len(results.rows)} runs: {', '.join(counts)}"]
  done = [row for row in results.rows if row["status"] == "done"]
  for name, key in _FACTS.items():
    values = dict.fromkeys(tables.text(row.get(key)) for row in done)
    values.pop("None", None)
    if 0 < len(values) <= 8:
      lines.append(f"{name}: {', '.join(values)}")
  return lines


def warnings(
  results: Results, planned: bool, incomplete: Sequence[str] = ()
) -> list[str]:
  """Returns warnings about missing, interrupted and failed runs.

  Args:
    results: Results of the sweep.
    planned: Whether the folder says which runs the sweep has.
    incomplete: Names of the rows of `runs.csv` that are cut short.
  """
  left = collections.Counter(
    (row["status"], arm_of(row))
    for row in results.rows
    if row["status"] not in ("done", "diverged")
  )
  lines = []
  for status in ("missing", "interrupted", "failed"):
    arms = {arm: n for (end, arm), n in left.items() if end == status}
    if arms:
      each = ", ".join(f"{arm} {arms[arm]}" for arm in in_order(arms))
      lines.append(f"{sum(arms.values())} runs are {status}: {each}.")
  if incomplete:
    lines.append(
      f"Incomplete in runs.csv, and left out: {', '.join(incomplete)}. The"
      " command that ran the sweep adds them again."
    )
  if lines:
    lines.insert(
      0, "This sweep is not finished; what follows is about a part of it."
    )
  if not planned:
    lines.append("There is no plan.json: runs that are missing are not known.")
  return lines + _machines(results.rows)


def _machines(rows: Sequence[Row]) -> list[str]:
  """Returns warnings about runs whose last bits others would not get."""
  lines = numerics.mixed(rows)
  names = [row["run"] for row in rows if row.get("mixed")]
  if names:
    lines.append(
      f"Stopped in one place and continued in another: {', '.join(names)}."
    )
  if lines:
    lines.append("The same config and seed give other bits there.")
  return lines


def sections(
  results: Results,
  texts: Mapping[str, tables.Lines],
  pictures: Mapping[str, page.Picture],
  links: Mapping[str, str],
  wrong: Mistakes | None = None,
) -> list[page.Section]:
  """Returns the sections of the page, except for the curves.

  Args:
    results: Results of the sweep.
    texts: Tables, as `tables_of` returns them.
    pictures: Figures, by their names.
    links: Links to the folders of the runs, by the names of the runs.
    wrong: Answers of the runs at the best rates; None if none were kept.
  """
  metric = results.metric
  words = _capital(metric.words)
  first = {
    "figure": f"{words} against"
    f" {'what was searched' if results.searched else 'learning rate'}",
    "relative_step": f"{words} against relative step",
  }
  first = {name: title for name, title in first.items() if name in pictures}
  named = {name: _title(name) for name in pictures if name not in first}
  draw = lambda titles: [
    page.Section(title, pictures=[pictures[name]])
    for name, title in titles.items()
  ]
  table = lambda name, title, notes: (
    [page.Section(title, notes, lines=texts[name])] if name in texts else []
  )
  shown = [
    *draw(first),
    *table("best", "Best learning rates", _about_best(results)),
    *table("width", "Width of the range", _about_width(metric)),
    *table("width_steps", "In relative steps", [_STEPS]),
    *draw(named),
    *table(
      "changes", "Differences between the sweeps", _about_changes(results)
    ),
    *table(
      "differences", "Differences between arms", _about_differences(results)
    ),
    *(mistakes.sections(wrong, texts) if wrong else ()),
  ]
  every = _in_order(results)
  return [
    *shown,
    page.Section("All cells", lines=texts["summary"], folded=True),
    page.Section(
      "All runs",
      lines=_runs(results, every),
      links=[links.get(row["run"]) for row in every],
      folded=True,
    ),
  ]


def _title(name: str) -> str:
  """Returns the title of the section with the figure of that name."""
  kind, _, what = name.replace("_", " ").partition(" ")
  titles = {"heat": f"Learning rate and {what}", "by": f"Against {what}"}
  return titles.get(kind, "Curves at the best rates")


def _in_order(results: Results) -> list[Row]:
  """Returns the runs in the order of the tables."""
  cells = (cell for grid in results.grids.values() for cell in grid.values())
  return [row for cell in cells for row in cell]


def _values(results: Results, row: Row) -> list[str]:
  """Returns the values of the `_fields` of a run."""
  values = [row[results.rate_key]]
  values += [groups.value(row, key) for key in results.varied]
  return ["-" if v is None else tables.text(v) for v in [*values, row["seed"]]]


def _fields(results: Results) -> list[str]:
  """Returns the names of what distinguishes a run from others of its arm."""
  return ["learning rate", *map(tables.name_of, results.varied), "seed"]


def _runs(results: Results, every: Sequence[Row]) -> tables.Lines:
  measured = tables.measured(results)
  titles = ["run", "arm", *_fields(results), "status", "step"]
  titles += [column.title for column in measured]
  lines: tables.Lines = [(*titles, "reason")]
  for row in every:
    words = [row["run"] or "-", arm_of(row), *_values(results, row)]
    words += [row["status"], "-" if row["step"] is None else str(row["step"])]
    for column in measured:
      x = row.get(f"eval/{column.name}")
      scaled = "-" if x is None else f"{column.scale * x:.{column.digits}f}"
      words.append(scaled)
    lines.append((*words, row["reason"] or ""))
  return lines


def curves(
  results: Results,
  histories: Mapping[str, gallery.History],
  links: Mapping[str, str],
) -> dict[str, Any]:
  """Returns the curves for the page's script, as `page.render` takes them.

  Args:
    results: Results of the sweep.
    histories: Values that each run logged, by the name of the run.
    links: Links to the folders of the runs, by the names of the runs.
  """
  shown, best = logged(results.metric), results.best_runs()
  runs: list[dict[str, Any]] = []
  steps: dict[tuple[int, ...], int] = {}  # Most runs are logged at equal steps.
  share = _ALL_POINTS // max(len(histories), 1)
  most = min(_POINTS, max(_FEW_POINTS, share))

  def series(points: np.ndarray, scale: float) -> list[Any]:
    at, values = _thin(points, scale, most)
    return [steps.setdefault(at, len(steps)), values]

  for row in _in_order(results):
    if history := histories.get(row["run"]):
      runs.append(
        {
          "run": row["run"],
          "arm": arm_of(row),
          "values": _values(results, row),
          "status": row["status"],
          "href": links.get(row["run"]),
          "best": row["key"] in best,
          "series": [
            series(history[name], scale) if name in history else None
            for name, (_, scale) in shown.items()
          ],
        }
      )
  arms = figures.looks(run["arm"] for run in runs)
  return {
    "arms": {
      arm: {"color": look["color"], "dash": _DASHES[i % len(_DASHES)]}
      for i, (arm, look) in enumerate(arms.items())
    },
    "fields": _fields(results),
    "metrics": [title for title, _ in shown.values()],
    "steps": [list(at) for at in steps],
    "runs": runs,
  }


def _thin(
  points: np.ndarray, scale: float, most: int
) -> tuple[tuple[int, ...], list[float]]:
  """Returns steps and values of a curve, at most that many of them."""
  n = points.shape[1]
  kept = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
  steps, values = points[:, kept]
  return (
    tuple(int(step) for step in steps),
    [float(f"{scale * value:.5g}") for value in values],
  )
