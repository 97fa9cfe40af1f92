"""Finds the best learning rate of each arm, and compares arms at theirs.

All of it is done within each setting: see `ws_jax.report.groups`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ws_jax.report import analysis
from ws_jax.report.groups import (
  Grid,
  Grids,
  Setting,
  by_seed,
  compatible,
  known,
  measured,
  number,
  settings,
  spread,
  step,
)
from ws_jax.report.metric import Metric
from ws_jax.sweep.arms import in_order
from ws_jax.sweep.rows import Row

# A rate whose accuracy is below this part of the best one learns little.
LEARNS = 0.5


def best(found: Grids, varied: Sequence[str], metric: Metric) -> list[Row]:
  """Returns the best rate of each arm in each setting, and the range around it.

  The best rate has the best mean of the metric over seeds, among the rates at
  which no seed diverged.

  Args:
    found: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.
    metric: Metric of the sweep.

  Returns:
    One row for each setting and arm, with `arm`, the `varied` keys, and

    - `rates`: number of rates in the grid.
    - `learning_rate`: the best one, and `edge`, its place: `inside` the grid,
      its `lowest`, `highest` or `only` one; `open` if a neighbour has not run.
    - the metric, under its own name, and `loss` at that rate, each with its
      `_std`, over `n` seeds.
    - `low`, `high`, `decades`, `open_low`, `open_high`: the range of
      `analysis.usable_range`.
    - `largest_stable`: the largest rate below every rate at which a seed
      diverged; `stable_open` if none diverged.
    - `largest_learning`: going up from the best rate, the last one that keeps
      the part `LEARNS` of the best value; `learning_open` if that is the
      highest rate. Only for a metric that `learns`.
    - `sensitivity`: a mean over `sensitivity_n` seeds, with its `_std`.

    Columns with `step_` in front say the same of relative steps instead of
    rates. That sensitivity is over `step_from` to `step_to`, the range that all
    arms of the setting cover.
  """
  result = []
  for (setting, arm), grid in found.items():
    grid = {rate: members for rate, members in grid.items() if rate is not None}
    entry: Row = {"arm": arm} | dict(zip(varied, setting, strict=True))
    others = [
      other for (at, _), other in found.items() if compatible(at, setting)
    ]
    scores = _scores(grid, metric)
    entry |= _best_rate(grid, scores, metric) | _stable(grid, scores)
    if metric.learns:
      entry |= _learning(grid, scores)
    entry |= _relative(grid, scores, metric, entry["largest_stable"])
    result.append(entry | _sensitivities(grid, others))
  return result


def _scores(grid: Grid, metric: Metric) -> np.ndarray:
  """Returns the mean score of each rate, of which more is better.

  It is NaN where a seed diverged or none is done.
  """
  return metric.sign * np.array(
    [
      float("nan")
      if any(row["status"] == "diverged" for row in members)
      else analysis.estimate([*by_seed(members, metric.column).values()]).mean
      for members in grid.values()
    ]
  )


def _best_rate(grid: Grid, scores: np.ndarray, metric: Metric) -> Row:
  rates = list(grid)
  entry: Row = {"rates": len(rates)}
  width = _usable(rates, scores, metric)
  if width is None:
    nothing = ["learning_rate", "edge"]
    for name in measured(metric):
      nothing += [name, f"{name}_std"]
    nothing += analysis.Range._fields
    return entry | dict.fromkeys(nothing) | {"n": 0}
  i = int(np.nanargmax(scores))
  entry |= {"learning_rate": rates[i], "edge": _edge(grid, i)}
  for name, column in measured(metric).items():
    entry |= spread(name, by_seed(grid[rates[i]], column).values())
  seeds = by_seed(grid[rates[i]], metric.column).values()
  n = analysis.estimate([*seeds]).n
  return entry | {"n": n, **width._asdict()}


def _usable(
  x: Sequence[float] | np.ndarray, scores: np.ndarray, metric: Metric
) -> analysis.Range | None:
  """Returns the usable range of rates or steps; None if there is no score."""
  if not np.isfinite(scores).any():
    return None
  tolerance = metric.tolerance(float(np.nanmax(scores)))
  return analysis.usable_range(x, scores, tolerance)


def _edge(grid: Grid, i: int) -> str:
  """Returns where in the grid its rate number `i` lies."""
  if len(grid) == 1:
    return "only"
  if i in (0, len(grid) - 1):
    return "highest" if i else "lowest"
  ended = [
    any(row["status"] in ("done", "diverged") for row in members)
    for members in grid.values()
  ]
  return "inside" if ended[i - 1] and ended[i + 1] else "open"


def _stable(grid: Grid, scores: np.ndarray) -> Row:
  rates = list(grid)
  diverged = [
    any(row["status"] == "diverged" for row in members)
    for members in grid.values()
  ]
  first = diverged.index(True) if any(diverged) else len(rates)
  stable = [i for i in range(first) if np.isfinite(scores[i])]
  return {
    "largest_stable": rates[stable[-1]] if stable else None,
    "stable_open": not any(diverged),
  }


def _learning(grid: Grid, scores: np.ndarray) -> Row:
  rates, learning = list(grid), None
  if np.isfinite(scores).any():
    i = int(np.nanargmax(scores))
    floor = LEARNS * scores[i]
    while i + 1 < len(rates) and scores[i + 1] >= floor:
      i += 1
    learning = rates[i]
  return {
    "largest_learning": learning,
    "learning_open": learning is not None and learning == rates[-1],
  }


def _relative(
  grid: Grid, scores: np.ndarray, metric: Metric, largest_stable: float | None
) -> Row:
  """Returns the usable range and its end as relative steps, where known."""
  steps = np.array(_steps(grid))
  order = [i for i in np.argsort(steps) if np.isfinite(steps[i])]
  width = _usable(steps[order], scores[order], metric)
  values = width or [None] * len(analysis.Range._fields)
  names = [f"step_{name}" for name in analysis.Range._fields]
  at = None if largest_stable is None else [*grid].index(largest_stable)
  stable = None if at is None else number(float(steps[at]))
  return dict(zip(names, values, strict=True)) | {"step_largest_stable": stable}


def _sensitivities(grid: Grid, others: Sequence[Grid]) -> Row:
  """Returns both sensitivities, over the seeds with a result at every rate."""
  low, high = analysis.common_range([_steps(other) for other in others])
  raw, relative = [], []
  seeds = {row["seed"]: None for members in grid.values() for row in members}
  for seed in seeds:
    runs = [
      next(
        (
          row
          for row in members
          if row["seed"] == seed and row["status"] in ("done", "diverged")
        ),
        None,
      )
      for members in grid.values()
    ]
    if len(runs) < 2 or None in runs:
      continue
    own = [row for row in runs if row is not None]
    losses = [
      known(row, "eval/loss") if row["status"] == "done" else float("nan")
      for row in own
    ]
    first = analysis.estimate([known(r, "train/first_loss") for r in own]).mean
    steps = [known(row, "relative_step") for row in own]
    raw.append(analysis.sensitivity(losses, first))
    relative.append(
      analysis.relative_sensitivity(steps, losses, first, low, high)
    )
  entry: Row = {"step_from": number(low), "step_to": number(high)}
  for name, values in (("sensitivity", raw), ("step_sensitivity", relative)):
    entry |= spread(name, values)
    entry[f"{name}_n"] = int(np.isfinite(values).sum())
  return entry


def _steps(grid: Grid) -> list[float]:
  return [step(members) for members in grid.values()]


def pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
  """Returns the arms to compare: each with its parent, and each with BN.

  The parent of an arm is the arm without its last part.

  Example:
    >>> pairs(["BN", "GN", "GN+WS"])
    [('GN', 'BN'), ('GN+WS', 'GN'), ('GN+WS', 'BN')]
  """
  found = []
  for arm in arms:
    parent = "no norm" if arm == "WS" else arm.rpartition("+")[0]
    for other in dict.fromkeys([parent, "BN"]):
      if other in arms and other != arm:
        found.append((arm, other))
  return found


def differences(
  found: Grids,
  varied: Sequence[str],
  metric: Metric,
  at_best: Sequence[Row],
) -> list[Row]:
  """Returns the metric of an arm less that of another, both at their best rate.

  The seeds are paired.

  Args:
    found: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.
    metric: Metric of the sweep.
    at_best: Rows that `best` returns for the same runs.

  Returns:
    One row for each setting and each of `pairs` with a seed in common. It has
    `arm`, `against`, the `varied` keys, `n` seeds, `difference`, `stderr`, and
    the 95 % t interval from `low` to `high`; None where that needs two seeds.
  """
  scores: dict[tuple[Setting, str], Mapping[Any, float]] = {}
  for ((setting, arm), grid), entry in zip(found.items(), at_best, strict=True):
    rate = entry["learning_rate"]
    scores[setting, arm] = (
      {} if rate is None else by_seed(grid[rate], metric.column)
    )
  result = []
  for setting in settings(at for at, _ in found):
    here = {
      arm: by for (at, arm), by in scores.items() if compatible(at, setting)
    }
    for arm, other in pairs(in_order(here)):
      common = [seed for seed in here[arm] if seed in here[other]]
      if common:
        got = analysis.estimate([here[arm][s] - here[other][s] for s in common])
        row: Row = {"arm": arm, "against": other}
        row |= dict(zip(varied, setting, strict=True))
        row |= {"n": got.n, "difference": got.mean}
        for name in ("stderr", "low", "high"):
          row[name] = number(getattr(got, name))
        result.append(row)
  return result
