"""Groups the runs of a sweep into cells, and averages each over its seeds.

A setting is what a sweep varies beside arm, learning rate and seed: batches,
budgets, anything. A cell is a setting, an arm and a learning rate; its runs
differ in their seed alone. Where values were drawn at random, no two settings
have enough in common to be compared: those keys are searched, like the rate.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ws_jax.report import analysis
from ws_jax.report.metric import Metric
from ws_jax.sweep.arms import arm_of, in_order
from ws_jax.sweep.rows import OVER_BATCH, Row, seconds

# A search draws at least this many values of a key.
_SEARCHED = 8
# More values than this are an axis, and no panel each.
_AXIS = 12

# The runs of one arm in one setting, by learning rate.
Grid = dict[Any, list[Row]]
# The values of the keys that the sweep varies, in their order.
Setting = tuple[Any, ...]
Grids = dict[tuple[Setting, str], Grid]

ENDS = ("done", "diverged", "failed", "interrupted", "missing")

_RATE, _BASE_RATE = "optim.learning_rate", "optim.base_learning_rate"
_NORM_BATCH = "model.norm_batch_size"
# The key of the name of a sweep, where two stand side by side.
SWEEP = "sweep"
_OF_WS = {
  f"model.ws_{x}" for x in ("convention", "depthwise", "where", "axes", "gains")
}
_NOT_VARIED = {"model.norm", "model.ws", _RATE, _BASE_RATE, "seed"}
# Columns that hold the number which a run resolved such an override to.
_COLUMNS = {
  "data.batch_size": "optimizer_batch",
  "optim.micro_batch_size": "micro_batch",
  _NORM_BATCH: "normalization_batch",
}


def overridden(rows: Iterable[Row]) -> list[str]:
  """Returns the keys that any run overrides, in order of appearance."""
  return list(dict.fromkeys(key for r in rows for key in json.loads(r["key"])))


def rate_key(rows: Sequence[Row]) -> str:
  """Returns the key of the learning rate that was varied.

  It is the rate itself, or else the rate for each 256 examples.
  """
  keys = overridden(rows)
  return _BASE_RATE if _BASE_RATE in keys and _RATE not in keys else _RATE


def value(row: Row, key: str) -> Any:
  """Returns the value of a key in a run.

  It is None where the key means nothing to the arm of the run.
  """
  over_batch = row["model.norm"] in OVER_BATCH
  if key == _NORM_BATCH and not over_batch:
    return None
  if key in _OF_WS and not row["model.ws"]:
    return None
  found = row.get(_COLUMNS.get(key, key))
  return ", ".join(map(str, found)) if isinstance(found, list) else found


def varied_keys(rows: Sequence[Row]) -> list[str]:
  """Returns the keys, other than rate and seed, that vary within an arm.

  A key that differs between arms alone, such as a number of groups, belongs to
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
  found = [key for key in keys if key in several and key != SWEEP]
  # Two sweeps always stand apart, and side by side: last, in each setting.
  return [*found, *(key for key in keys if key == SWEEP)]


def searched_keys(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
  """Returns the varied keys that were searched, and are no grid.

  In a grid every value of a key meets every value of the others. Where two keys
  or more, the rate among them if it varies, have many numbers that meet one
  partner each, those were drawn at random. Splits and data that change together
  are no search, as the best of them means nothing. A key with very many numbers
  counts as well.

  Args:
    rows: Rows of the sweep.
    varied: Keys that `varied_keys` returns.
  """
  rate = rate_key(rows)
  axes = [rate, *varied]
  points = {tuple(_point(row, key) for key in axes) for row in rows}
  alone, drawn, long = set(), set(), set()
  for i, key in enumerate(axes):
    values = {point[i] for point in points} - {None}
    partners = {point[:i] + point[i + 1 :] for point in points}
    numbers = all(map(is_number, values))
    if key == SWEEP or (key.startswith("data.") and not numbers):
      continue
    if len(points) < 1.5 * len(partners):
      alone.add(key)
      if numbers and len(values) >= _SEARCHED:
        drawn.add(key)
    if numbers and len(values) > _AXIS:
      long.add(key)
  one_rate = len({point[0] for point in points}) == 1
  search = len(drawn) > 1 and (one_rate or rate in drawn)
  searched = long | (alone if search else set())
  return [key for key in varied if key in searched]


def _point(row: Row, key: str) -> Any:
  return row.get(key) if key in (_RATE, _BASE_RATE) else value(row, key)


def is_number(x: Any) -> bool:
  """Returns whether a value has a place on an axis of numbers."""
  return isinstance(x, (int, float)) and not isinstance(x, bool)


def grids(rows: Sequence[Row], varied: Sequence[str]) -> Grids:
  """Returns the runs of each setting and arm, by learning rate.

  Settings, arms and rates are in the order of a table, and two sweeps in that
  of their rows.
  """
  key = rate_key(rows)
  sweeps = list(dict.fromkeys(row.get(SWEEP) for row in rows))
  place = lambda row, key: (
    (False, False, sweeps.index(row.get(SWEEP)))
    if key == SWEEP
    else _sortable(value(row, key))
  )
  arms = in_order({arm_of(row) for row in rows})
  result: Grids = {}
  for row in sorted(
    rows,
    key=lambda row: (
      [place(row, key) for key in varied],
      arms.index(arm_of(row)),
      _sortable(row.get(key)),
    ),
  ):
    setting = tuple(value(row, key) for key in varied)
    grid = result.setdefault((setting, arm_of(row)), {})
    grid.setdefault(row.get(key), []).append(row)
  return result


def _sortable(x: Any) -> tuple[bool, bool, Any]:
  return x is None, isinstance(x, str), 0 if x is None else x


def compatible(one: Setting, other: Setting) -> bool:
  """Returns whether two settings agree in every key that both of them have."""
  pairs = zip(one, other, strict=True)
  return all(a == b or a is None or b is None for a, b in pairs)


def beside(every: Iterable[Setting]) -> dict[Setting, list[Setting]]:
  """Returns the settings that are compatible with each, itself among them.

  It compares only settings that leave a key open, as of thousands of settings
  most do not.

  Example:
    >>> beside([(8, None), (8, 2), (4, 2)])[8, 2]
    [(8, None), (8, 2)]
  """
  unique = list(dict.fromkeys(every))
  some = [one for one in unique if None in one]
  result = {}
  for one in unique:
    others = unique if None in one else [*some, one]
    result[one] = [other for other in others if compatible(one, other)]
  return result


def settings(every: Iterable[Setting]) -> list[Setting]:
  """Returns the settings to show.

  A setting that leaves a key open is shown within those that do not.

  Example:
    >>> settings([(8, None), (8, 2), (8, 4)])
    [(8, 2), (8, 4)]
  """
  return [
    one
    for one, others in beside(every).items()
    if not any(one.count(None) > other.count(None) for other in others)
  ]


def summarize(runs: Grids, varied: Sequence[str], metric: Metric) -> list[Row]:
  """Returns one row for each cell: the runs that differ in their seed alone.

  Args:
    runs: Runs of each setting and arm, as `grids` returns them.
    varied: Keys that make a setting, as `varied_keys` returns them.
    metric: Metric of the sweep.

  Returns:
    A cell for each setting, arm and learning rate. It has `arm`,
    `learning_rate`, the `varied` keys, the number of `runs` and how many of
    them ended as each of `ENDS`. The mean over seeds and the sample standard
    deviation (`_std`; None for one seed) are given of the metric, under its
    own name, and of the test `loss`, both over the runs that are done, and of
    `seconds` (compiling, training and evaluating). `relative_step` is a mean.
  """
  result = []
  for (setting, arm), grid in runs.items():
    for rate, members in grid.items():
      entry: Row = {"arm": arm, "learning_rate": rate}
      entry |= dict(zip(varied, setting, strict=True)) | {"runs": len(members)}
      for end in ENDS:
        entry[end] = sum(row["status"] == end for row in members)
      for name, column in measured(metric).items():
        entry |= spread(name, by_seed(members, column).values())
      entry["relative_step"] = number(step(members))
      started = [row for row in members if row["status"] != "missing"]
      entry |= spread("seconds", map(seconds, started))
      result.append(entry)
  return result


def measured(metric: Metric) -> dict[str, str]:
  """Returns the columns of a row that are averaged, by the name of the mean."""
  return {metric.name: metric.column, "loss": "eval/loss"}


def by_seed(members: Sequence[Row], column: str) -> dict[Any, float]:
  """Returns the value of a column for each seed whose run is done.

  Runs that differ only in keys that mean nothing to their arm are one run made
  twice, and count as one.
  """
  return {
    row["seed"]: row[column]
    for row in members
    if row["status"] == "done" and row.get(column) is not None
  }


def spread(name: str, values: Iterable[float]) -> Row:
  """Returns mean and standard deviation, as the columns of that name."""
  got = analysis.estimate(list(values))
  return {name: number(got.mean), f"{name}_std": number(got.std)}


def number(x: float) -> float | None:
  """Returns the number, or None if it is not finite, as tables have it."""
  return x if math.isfinite(x) else None


def step(members: Sequence[Row]) -> float:
  """Returns the mean relative step of runs, also of those that diverged later.

  It is NaN if none is known.
  """
  steps = [known(row, "relative_step") for row in members]
  return analysis.estimate(steps).mean


def known(row: Row, name: str) -> float:
  """Returns the value of a column, or NaN if the row has none."""
  return float("nan") if row.get(name) is None else float(row[name])
