"""Finds the best learning rate of each arm, and compares arms at theirs.

All of it is done within each setting: see `ws_jax.report.groups`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ws_jax.report import analysis, groups
from ws_jax.report.groups import (
  Grid,
  Grids,
  Setting,
  by_seed,
  known,
  measured,
  number,
  spread,
  step,
)
from ws_jax.report.metric import Metric
from ws_jax.sweep.arms import in_order
from ws_jax.sweep.rows import Row

# A rate whose accuracy is below this part of the best one learns little.
LEARNS = 0.5


def best(
  runs: Grids,
  varied: Sequence[str],
  metric: Metric,
  searched: Sequence[str] = (),
) -> list[Row]:
  """Returns the best rate of each arm in each setting, and the range around it.

  The best rate has the best mean of the metric over seeds, among the rates at
  which no seed diverged.

  Args:
    runs: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.
    metric: Metric of the sweep.
    searched: Those of the keys that were searched: the best of all their values
      is taken, as of all rates.

  Returns:
    One row for each setting and arm, with `arm`, the `varied` keys, and

    - `rates`: number of rates in the grid.
    - `learning_rate`: the best one, and `edge`, its place: `inside` the grid,
      its `lowest`, `highest` or `only` one; `open` if a neighbour has not run.
      In a search it is `searched`, and `points` the number that was tried.
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
  near = groups.beside(setting for setting, _ in runs)
  by_setting: dict[Setting, list[Grid]] = {}
  for (setting, _), grid in runs.items():
    by_setting.setdefault(setting, []).append(grid)
  for (setting, arm), grid in runs.items():
    grid = {rate: members for rate, members in grid.items() if rate is not None}
    entry: Row = {"arm": arm} | dict(zip(varied, setting, strict=True))
    others = [grid for at in near[setting] for grid in by_setting[at]]
    scores = _scores(grid, metric)
    entry |= _best_rate(grid, scores, metric) | _stable(grid, scores)
    if metric.learns:
      entry |= _learning(grid, scores)
    entry |= _relative(grid, scores, metric, entry["largest_stable"])
    result.append(entry | _sensitivities(grid, others))
  if searched:
    return _of_search(result, [k for k in varied if k not in searched], metric)
  return result


def _of_search(
  entries: Sequence[Row], kept: Sequence[str], metric: Metric
) -> list[Row]:
  """Returns the best entry of each arm and each setting of the kept keys."""
  found: dict[tuple[Any, ...], list[Row]] = {}
  for entry in entries:
    at = entry["arm"], *(entry[key] for key in kept)
    found.setdefault(at, []).append(entry)
  result = []
  for own in found.values():
    known = [entry for entry in own if entry[metric.name] is not None]
    key = lambda entry: metric.sign * entry[metric.name]
    first = max(known, key=key) if known else own[0]
    points = sum(entry["rates"] for entry in own)
    result.append(first | {"edge": "searched", "points": points})
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
  result = []
  for arm in arms:
    parent = "no norm" if arm == "WS" else arm.rpartition("+")[0]
    for other in dict.fromkeys([parent, "BN"]):
      if other in arms and other != arm:
        result.append((arm, other))
  return result


def at_best_rate(
  runs: Grids,
  varied: Sequence[str],
  metric: Metric,
  at_best: Sequence[Row],
  searched: Sequence[str] = (),
) -> dict[Setting, dict[str, Mapping[Any, float]]]:
  """Returns the metric of each seed, of every arm at its own best rate.

  Args:
    runs: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.
    metric: Metric of the sweep.
    at_best: Rows that `best` returns for the same runs.
    searched: Those of the keys that were searched.

  Returns:
    Setting to show -> arm -> seed -> value. A setting has the values of the
    varied keys that were not searched.
  """
  kept = [key for key in varied if key not in searched]
  scores: dict[Setting, dict[str, Mapping[Any, float]]] = {}
  for entry in at_best:
    grid = runs[tuple(entry[key] for key in varied), entry["arm"]]
    rate = entry["learning_rate"]
    own = {} if rate is None else by_seed(grid[rate], metric.column)
    setting = tuple(entry[key] for key in kept)
    scores.setdefault(setting, {})[entry["arm"]] = own
  near = groups.beside(scores)
  result = {}
  for setting in groups.settings(scores):
    here = {arm: by for at in near[setting] for arm, by in scores[at].items()}
    result[setting] = {arm: here[arm] for arm in in_order(here)}
  return result


def differences(
  scores: Mapping[Setting, Mapping[str, Mapping[Any, float]]],
  kept: Sequence[str],
) -> list[Row]:
  """Returns the metric of an arm less that of another, both at their best rate.

  The seeds are paired.

  Args:
    scores: Values that `at_best_rate` returns.
    kept: Keys of the settings.

  Returns:
    One row for each setting and each of `pairs` with a seed in common. It has
    `arm`, `against`, the `kept` keys, `n` seeds, `difference`, `stderr`, the
    95 % t interval from `low` to `high`, `p`, and `p_holm`, which is corrected
    for the number of rows; None where that needs two seeds that differ.
  """
  result = []
  for setting, here in scores.items():
    for arm, other in pairs(in_order(here)):
      row: Row = {"arm": arm, "against": other}
      row |= dict(zip(kept, setting, strict=True))
      if found := paired(here[arm], here[other]):
        result.append(row | found)
  return corrected(result)


def paired(one: Mapping[Any, float], other: Mapping[Any, float]) -> Row:
  """Returns one less the other, paired by seed; empty without a common seed."""
  common = [seed for seed in one if seed in other]
  if not common:
    return {}
  got = analysis.compare([one[seed] - other[seed] for seed in common])
  numbers = {name: number(x) for name, x in got._asdict().items()}
  return numbers | {"n": got.n}


def corrected(entries: Sequence[Row]) -> list[Row]:
  """Returns the rows with `p_holm`, the `p` that is corrected for all rows."""
  ps = analysis.holm(
    [float("nan") if row["p"] is None else row["p"] for row in entries]
  )
  return [
    row | {"p_holm": number(p)} for row, p in zip(entries, ps, strict=True)
  ]
