"""What the page of a sweep says, and in which order."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ws_jax.report import figures, gallery, page, summary, tables
from ws_jax.sweep.arms import arm_of, in_order
from ws_jax.sweep.rows import Row

# What of metrics.jsonl is shown: its name, and what it is multiplied with.
METRICS = {
  summary.METRIC: ("test accuracy (%)", 100.0),
  "eval/loss": ("test loss", 1.0),
  "train/loss": ("training loss", 1.0),
}
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "9 3 2 3 2 3", "1 2", "12 3")
_POINTS = 100  # of a curve on the page, at most

# What all runs may have in common.
_FACTS = {
  "data": "data.name",
  "model": "model.name",
  "seeds": "seed",
  "steps": "step",
  "device": "device",
  "jax": "versions.jax",
  "commit": "commit",
}
_BEST = (
  "Mean and sample standard deviation over seeds. The best rate has the highest"
  " mean test accuracy among the rates at which no seed diverged. It is chosen"
  " on the test set that it is reported on, for every arm alike: these"
  " accuracies are a little too high, and are for comparing arms.",
)
_WIDTH = (
  "Usable: the rates around the best one whose mean accuracy is within one"
  " point of it; between two rates of the grid accuracy is taken as linear in"
  " the logarithm of the rate. ≤ and ≥: the grid ends first. Largest stable"
  " rate: below the lowest one at which a seed diverged (≥: none did). Learns"
  " up to: the last rate, going up from the best, with at least half of its"
  " accuracy.",
  "Sensitivity (Wortsman et al. 2023, section 2.2): the mean over the grid of"
  " min(test loss, loss at initialization), less the best; a run that diverged"
  " counts as the loss at initialization. Smaller is better. It is of the seeds"
  " that have every rate.",
)
_STEPS = (
  "A learning rate means another thing where weights are standardized. So the"
  " same over relative steps: ||update|| / ||kernel||, the mean over kernels,"
  " and over the run, as far as it went. The sensitivity is the mean over the"
  " logarithm of the step, between the steps that all arms reach.",
)
_DIFFERENCES = (
  "Each arm at its own best rate, less another at its own, paired by seed:"
  " mean, its standard error, and the 95 % interval of Student's t. No"
  " correction for the number of comparisons or for the choice of the rates.",
)


def tables_of(results: summary.Results) -> dict[str, tables.Lines]:
  """The tables, by the name of their file; without those that say nothing."""
  varied, best = results.varied, results.best
  found = {
    "summary": tables.cells(results.cells, varied),
    "best": tables.best(best, varied),
  }
  if len(results.rates) > 1:
    found["width"] = tables.width(best, varied)
    if any(entry["step_low"] is not None for entry in best):
      found["width_steps"] = tables.width(best, varied, "step_")
  if results.differences:
    found["differences"] = tables.differences(results.differences, varied)
  return found


def facts(results: summary.Results) -> list[str]:
  """How much has run, and what the runs have in common."""
  ended = collections.Counter(row["status"] for row in results.rows)
  counts = (f"{ended[end]} {end}" for end in summary.ENDS if ended[end])
  found = [f"{len(results.rows)} runs: {', '.join(counts)}"]
  done = [row for row in results.rows if row["status"] == "done"]
  for name, key in _FACTS.items():
    values = dict.fromkeys(tables.text(row.get(key)) for row in done)
    values.pop("None", None)
    if 0 < len(values) <= 8:
      found.append(f"{name}: {', '.join(values)}")
  return found


def warnings(results: summary.Results, planned: bool) -> list[str]:
  """What lacks, so that nobody takes a part for the whole."""
  left = collections.Counter(
    (row["status"], arm_of(row))
    for row in results.rows
    if row["status"] not in ("done", "diverged")
  )
  found = []
  for status in ("missing", "interrupted", "failed"):
    arms = {arm: n for (end, arm), n in left.items() if end == status}
    if arms:
      each = ", ".join(f"{arm} {arms[arm]}" for arm in in_order(arms))
      found.append(f"{sum(arms.values())} runs are {status}: {each}.")
  if found:
    found.insert(0, "This sweep is not finished; all below is of a part of it.")
  if not planned:
    found.append("There is no plan.json: runs that are missing are not known.")
  return found


def sections(
  results: summary.Results,
  texts: Mapping[str, tables.Lines],
  pictures: Mapping[str, page.Picture],
  links: Mapping[str, str],
) -> list[page.Section]:
  """The page, but for its curves.

  Args:
    results: as `summary.analyze` returns them.
    texts: as `tables_of` returns them.
    pictures: the figures, by name.
    links: to the folders of the runs, by name.
  """
  first = {
    "figure": "Accuracy against learning rate",
    "relative_step": "Accuracy against relative step",
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
  found = [
    *draw(first),
    *table("best", "Best learning rates", _BEST),
    *table("width", "Width of the range", _WIDTH),
    *table("width_steps", "In relative steps", _STEPS),
    *draw(named),
    *table("differences", "Differences between arms", _DIFFERENCES),
  ]
  every = [row for rows in _grids(results) for row in rows]
  return [
    *found,
    page.Section("All cells", lines=texts["summary"], folded=True),
    page.Section(
      "All runs",
      lines=_runs(results, every),
      links=[links.get(row["run"]) for row in every],
      folded=True,
    ),
  ]


def _title(name: str) -> str:
  kind, _, what = name.replace("_", " ").partition(" ")
  titles = {"heat": f"Learning rate and {what}", "by": f"Against {what}"}
  return titles.get(kind, "Curves at the best rates")


def _grids(results: summary.Results) -> list[list[Row]]:
  """The runs, cell by cell, in the order of the tables."""
  grids = results.grids.values()
  return [members for grid in grids for members in grid.values()]


def _values(results: summary.Results, row: Row) -> list[str]:
  """What tells a run from the others of its arm."""
  values = [row.get(results.rate_key)]
  values += [summary.value(row, key) for key in results.varied]
  return ["-" if v is None else tables.text(v) for v in [*values, row["seed"]]]


def _fields(results: summary.Results) -> list[str]:
  return ["learning rate", *map(tables.name_of, results.varied), "seed"]


def _runs(results: summary.Results, every: Sequence[Row]) -> tables.Lines:
  titles = ("run", "arm", *_fields(results), "status", "step")
  lines: tables.Lines = [(*titles, "test accuracy %", "test loss", "reason")]
  for row in every:
    accuracy, loss = row.get(summary.METRIC), row.get("eval/loss")
    lines.append(
      (
        row["run"] or "-",
        arm_of(row),
        *_values(results, row),
        row["status"],
        "-" if row["step"] is None else str(row["step"]),
        "-" if accuracy is None else f"{100 * accuracy:.2f}",
        "-" if loss is None else f"{loss:.3f}",
        row["reason"] or "",
      )
    )
  return lines


def curves(
  results: summary.Results,
  histories: Mapping[str, gallery.History],
  links: Mapping[str, str],
) -> dict[str, Any]:
  """The curves for the script of the page: see `ws_jax.report.page.render`."""
  runs: list[dict[str, Any]] = []
  for row in (row for rows in _grids(results) for row in rows):
    if history := histories.get(row["run"]):
      runs.append(
        {
          "run": row["run"],
          "arm": arm_of(row),
          "values": _values(results, row),
          "status": row["status"],
          "href": links.get(row["run"]),
          "best": results.is_best(row),
          "series": [
            _thin(history[metric], scale) if metric in history else None
            for metric, (_, scale) in METRICS.items()
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
    "metrics": [name for name, _ in METRICS.values()],
    "runs": runs,
  }


def _thin(points: np.ndarray, scale: float) -> list[list[float]]:
  """Steps and values of a curve, few enough for a page with hundreds."""
  n = points.shape[1]
  kept = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
  steps, values = points[:, kept]
  return [
    [int(step) for step in steps],
    [float(f"{scale * value:.5g}") for value in values],
  ]
