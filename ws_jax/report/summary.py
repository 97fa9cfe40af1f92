"""Rows of a sweep -> its cells, the best rate of each arm, and differences.

A setting is what a sweep varies beside arm, learning rate and seed: batches,
budgets, anything. All that is said of an arm is said in each setting.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ws_jax.report import analysis
from ws_jax.sweep.arms import arm_of, in_order
from ws_jax.sweep.rows import Row, seconds

# The runs of one arm in one setting, by learning rate.
Grid = dict[Any, list[Row]]
Setting = tuple[Any, ...]
Grids = dict[tuple[Setting, str], Grid]

METRIC = "eval/accuracy"
ENDS = ("done", "diverged", "failed", "interrupted", "missing")
# Within a point of the best is usable; below half of it little is learnt.
TOLERANCE, LEARNS = 0.01, 0.5

_RATE, _BASE_RATE = "optim.learning_rate", "optim.base_learning_rate"
_NORM_BATCH = "model.norm_batch_size"
_NOT_VARIED = {"model.norm", "model.ws", _RATE, _BASE_RATE, "seed"}
# Where a row tells the number that the run resolved such an override to.
_COLUMNS = {
  "data.batch_size": "optimizer_batch",
  "optim.micro_batch_size": "micro_batch",
  _NORM_BATCH: "normalization_batch",
}


class Results(NamedTuple):
  """What `analyze` finds: see `summarize`, `best` and `differences`."""

  rows: Sequence[Row]
  rate_key: str
  varied: list[str]
  grids: Grids
  cells: list[Row]
  best: list[Row]
  differences: list[Row]

  @property
  def rates(self) -> list[float]:
    """All learning rates, in order."""
    found = {cell["learning_rate"] for cell in self.cells}
    return sorted(rate for rate in found if rate is not None)

  def settings(self) -> list[Setting]:
    """Those that deserve a panel of their own."""
    return settings(self._setting(cell) for cell in self.cells)

  def at(self, entries: Sequence[Row], setting: Setting) -> list[Row]:
    """The rows, cells or the like that belong to a setting."""
    return [e for e in entries if compatible(self._setting(e), setting)]

  def is_best(self, row: Row) -> bool:
    """Whether a run is at the best rate of its arm in its setting."""
    return any(
      entry["learning_rate"] == row[self.rate_key]
      and entry["arm"] == arm_of(row)
      and self._setting(entry) == self._setting(row)
      for entry in self.best
    )

  def _setting(self, entry: Row) -> Setting:
    read = value if "key" in entry else dict.get
    return tuple(read(entry, key) for key in self.varied)


def analyze(rows: Sequence[Row]) -> Results:
  """Returns everything that a report says about a sweep.

  Args:
    rows: Rows of the sweep, as `ws_jax.report.read` returns them.
  """
  varied = varied_keys(rows)
  found = grids(rows, varied)
  at_best = best(found, varied)
  return Results(
    rows,
    rate_key(rows),
    varied,
    found,
    summarize(found, varied),
    at_best,
    differences(found, varied, at_best),
  )


def overridden(rows: Iterable[Row]) -> list[str]:
  """The keys that any run overrides, in order of appearance."""
  return list(dict.fromkeys(key for r in rows for key in json.loads(r["key"])))


def rate_key(rows: Sequence[Row]) -> str:
  """The learning rate that was varied: as such, or for each 256 examples."""
  keys = overridden(rows)
  return _BASE_RATE if _BASE_RATE in keys and _RATE not in keys else _RATE


def value(row: Row, key: str) -> Any:
  """What a run has for a key; None where the key means nothing to its arm."""
  if key == _NORM_BATCH and row["model.norm"] != "batch":
    return None
  return row.get(_COLUMNS.get(key, key))


def varied_keys(rows: Sequence[Row]) -> list[str]:
  """Overrides that take several values within one arm, but for rate and seed.

  What differs between the arms alone, such as a number of groups, belongs to
  the arm.
  """
  several = set()
  keys = [key for key in overridden(rows) if key not in _NOT_VARIED]
  first: dict[tuple[str, str], Any] = {}
  for row in rows:
    for key in keys:
      seen = first.setdefault((key, arm_of(row)), value(row, key))
      if seen != value(row, key):
        several.add(key)
  return [key for key in keys if key in several]


def grids(rows: Sequence[Row], varied: Sequence[str]) -> Grids:
  """The runs of each setting and arm, all three in the order of a table."""
  key = rate_key(rows)
  arms = in_order({arm_of(row) for row in rows})
  found: Grids = {}
  for row in sorted(
    rows,
    key=lambda row: (
      [_sortable(value(row, key)) for key in varied],
      arms.index(arm_of(row)),
      _sortable(row.get(key)),
    ),
  ):
    setting = tuple(value(row, key) for key in varied)
    grid = found.setdefault((setting, arm_of(row)), {})
    grid.setdefault(row.get(key), []).append(row)
  return found


def _sortable(x: Any) -> tuple[bool, bool, Any]:
  return x is None, isinstance(x, str), 0 if x is None else x


def compatible(one: Setting, other: Setting) -> bool:
  """Whether two settings differ in nothing that means something to both."""
  pairs = zip(one, other, strict=True)
  return all(a == b or a is None or b is None for a, b in pairs)


def settings(found: Iterable[Setting]) -> list[Setting]:
  """Those to show: one that fits into more special ones is shown with them.

  Example:
    >>> settings([(8, None), (8, 2), (8, 4)])
    [(8, 2), (8, 4)]
  """
  unique = list(dict.fromkeys(found))
  return [
    one
    for one in unique
    if not any(
      compatible(one, other) and one.count(None) > other.count(None)
      for other in unique
    )
  ]


def summarize(found: Grids, varied: Sequence[str]) -> list[Row]:
  """Returns one row for each cell: the runs that differ in their seed alone.

  Args:
    found: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.

  Returns:
    A cell for each value of the `varied_keys`, arm and learning rate, with
    `arm`, `learning_rate`, those keys, `runs`, how many ended as each of
    `ENDS`, the mean and the sample standard deviation over seeds (`_std`; None
    for one) of `accuracy` and `loss` (test; over the runs that are done) and of
    `seconds` (compiling, training and evaluating), and the mean
    `relative_step`.
  """
  result = []
  for (setting, arm), grid in found.items():
    for rate, members in grid.items():
      entry: Row = {"arm": arm, "learning_rate": rate}
      entry |= dict(zip(varied, setting, strict=True)) | {"runs": len(members)}
      for end in ENDS:
        entry[end] = sum(row["status"] == end for row in members)
      for name, column in (("accuracy", METRIC), ("loss", "eval/loss")):
        entry |= _spread(name, by_seed(members, column).values())
      entry["relative_step"] = number(_step(members))
      started = [row for row in members if row["status"] != "missing"]
      entry |= _spread("seconds", map(seconds, started))
      result.append(entry)
  return result


def by_seed(members: Sequence[Row], column: str) -> dict[Any, float]:
  """A number of each run that is done, by seed.

  Runs that differ in nothing that means something to their arm are one run
  made twice, and count as one.
  """
  return {
    row["seed"]: row[column]
    for row in members
    if row["status"] == "done" and row.get(column) is not None
  }


def _spread(name: str, values: Iterable[float]) -> Row:
  got = analysis.estimate(list(values))
  return {name: number(got.mean), f"{name}_std": number(got.std)}


def number(x: float) -> float | None:
  """None for what is not known, as tables have it."""
  return x if math.isfinite(x) else None


def best(found: Grids, varied: Sequence[str]) -> list[Row]:
  """What each arm makes of its learning rates, in each setting.

  The best rate is the one with the highest mean accuracy over seeds, among
  those at which no seed diverged.

  Args:
    found: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.

  Returns:
    One row for each setting and arm: `arm`, the `varied_keys`,
    `rates` (how many are in the grid), `learning_rate` and `edge` (whether it
    is `inside` the grid, or its `lowest`, `highest` or `only` one; `open` if a
    neighbour has not run), `accuracy`, `loss` and their `_std` there, over `n`
    seeds; `low`, `high`, `decades`, `open_low` and `open_high` of the
    `analysis.usable_range`; `largest_stable`: below the lowest rate at which
    a seed diverged (`stable_open`: none did); `largest_learning`: the last
    one, going up from the best, that keeps `LEARNS` of the best accuracy
    (`learning_open`: so does the highest); and the mean, `_std` and `_n` of
    `sensitivity`. The same with `step_` in front: of relative steps in the
    place of rates, the sensitivity over `step_from` to `step_to`, which all
    arms of the setting cover.
  """
  result = []
  for (setting, arm), grid in found.items():
    grid = {rate: members for rate, members in grid.items() if rate is not None}
    entry: Row = {"arm": arm} | dict(zip(varied, setting, strict=True))
    others = [
      other for (at, _), other in found.items() if compatible(at, setting)
    ]
    entry |= _best_rate(grid) | _stability(grid)
    entry |= _relative(grid, entry["largest_stable"])
    result.append(entry | _sensitivities(grid, others))
  return result


def _scores(grid: Grid) -> np.ndarray:
  """Mean accuracy of each rate; NaN where a seed diverged, or none is done."""
  return np.array(
    [
      float("nan")
      if any(row["status"] == "diverged" for row in members)
      else analysis.estimate([*by_seed(members, METRIC).values()]).mean
      for members in grid.values()
    ]
  )


def _best_rate(grid: Grid) -> Row:
  rates, scores = list(grid), _scores(grid)
  entry: Row = {"rates": len(rates)}
  width = analysis.usable_range(rates, scores, TOLERANCE) if rates else None
  if width is None:
    nothing = ("learning_rate", "edge", "accuracy", "accuracy_std")
    nothing += ("loss", "loss_std", *analysis.Range._fields)
    return entry | dict.fromkeys(nothing) | {"n": 0}
  i = int(np.nanargmax(scores))
  accuracy = analysis.estimate([*by_seed(grid[rates[i]], METRIC).values()])
  loss = analysis.estimate([*by_seed(grid[rates[i]], "eval/loss").values()])
  return entry | {
    "learning_rate": rates[i],
    "edge": _edge(grid, i),
    "accuracy": accuracy.mean,
    "accuracy_std": number(accuracy.std),
    "loss": number(loss.mean),
    "loss_std": number(loss.std),
    "n": accuracy.n,
    **width._asdict(),
  }


def _edge(grid: Grid, i: int) -> str:
  if len(grid) == 1:
    return "only"
  if i in (0, len(grid) - 1):
    return "highest" if i else "lowest"
  ended = [
    any(row["status"] in ("done", "diverged") for row in members)
    for members in grid.values()
  ]
  return "inside" if ended[i - 1] and ended[i + 1] else "open"


def _stability(grid: Grid) -> Row:
  rates, scores = list(grid), _scores(grid)
  diverged = [
    any(row["status"] == "diverged" for row in members)
    for members in grid.values()
  ]
  first = diverged.index(True) if any(diverged) else len(rates)
  stable = [i for i in range(first) if np.isfinite(scores[i])]
  learning = None
  if np.isfinite(scores).any():
    i = int(np.nanargmax(scores))
    floor = LEARNS * scores[i]
    while i + 1 < len(rates) and scores[i + 1] >= floor:
      i += 1
    learning = rates[i]
  return {
    "largest_stable": rates[stable[-1]] if stable else None,
    "stable_open": not any(diverged),
    "largest_learning": learning,
    "learning_open": learning is not None and learning == rates[-1],
  }


def _relative(grid: Grid, largest_stable: float | None) -> Row:
  """The usable range and its end as relative steps, where they are known."""
  steps, scores = np.array(_steps(grid)), _scores(grid)
  order = [i for i in np.argsort(steps) if np.isfinite(steps[i])]
  width = analysis.usable_range(steps[order], scores[order], TOLERANCE)
  values = width or [None] * len(analysis.Range._fields)
  names = [f"step_{name}" for name in analysis.Range._fields]
  at = None if largest_stable is None else [*grid].index(largest_stable)
  stable = None if at is None else number(float(steps[at]))
  return dict(zip(names, values, strict=True)) | {"step_largest_stable": stable}


def _sensitivities(grid: Grid, others: Sequence[Grid]) -> Row:
  """Both sensitivities, of every seed that has a result at every rate."""
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
      _float(row, "eval/loss") if row["status"] == "done" else float("nan")
      for row in own
    ]
    first = analysis.estimate([_float(r, "train/first_loss") for r in own]).mean
    steps = [_float(row, "relative_step") for row in own]
    raw.append(analysis.sensitivity(losses, first))
    relative.append(
      analysis.relative_sensitivity(steps, losses, first, low, high)
    )
  entry: Row = {"step_from": number(low), "step_to": number(high)}
  for name, values in (
    ("sensitivity", raw),
    ("step_sensitivity", relative),
  ):
    entry |= _spread(name, values)
    entry[f"{name}_n"] = int(np.isfinite(values).sum())
  return entry


def _steps(grid: Grid) -> list[float]:
  return [_step(members) for members in grid.values()]


def _step(members: Sequence[Row]) -> float:
  """Mean relative step, also of runs that diverged later; NaN if not known."""
  steps = [_float(row, "relative_step") for row in members]
  return analysis.estimate(steps).mean


def _float(row: Row, name: str) -> float:
  return float("nan") if row.get(name) is None else float(row[name])


def pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
  """What to compare: each arm with itself less its last part, and with BN.

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
  found: Grids, varied: Sequence[str], at_best: Sequence[Row]
) -> list[Row]:
  """Accuracy of one arm less another's, each at its best rate, by seed.

  Args:
    found: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.
    at_best: Rows that `best` returns for the same runs.

  Returns:
    One row for each setting and each of `pairs` with a seed in common:
    `arm`, `against`, the `varied_keys`, `n` seeds, `difference`, `stderr`, and
    the 95 % t interval from `low` to `high`; None where one seed cannot tell.
  """
  scores: dict[tuple[Setting, str], Mapping[Any, float]] = {}
  for ((setting, arm), grid), entry in zip(found.items(), at_best, strict=True):
    rate = entry["learning_rate"]
    scores[setting, arm] = {} if rate is None else by_seed(grid[rate], METRIC)
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
