"""Compares two sweeps that stand side by side, arm by arm.

Both are one sweep that varies the key `groups.SWEEP`, as
`ws_jax.report.reading.read_two` makes it.
"""

from typing import Any

import numpy as np

from ws_jax.report import analysis, groups, headline, rates, tables
from ws_jax.report.headline import Headline
from ws_jax.report.summary import Results
from ws_jax.sweep.rows import Row

# Rest of the setting and arm -> sweep -> seed -> value.
_Matched = dict[tuple[Any, ...], dict[str, headline.BySeed]]


def between_sweeps(results: Results) -> list[Row]:
  """Returns what each arm has gained from the first sweep to the second.

  Args:
    results: Results of the sweeps.

  Returns:
    One row for each arm and setting that both have, with `arm`, `sweep`,
    `against`, the keys of the setting, and what `rates.paired` and
    `rates.corrected` add; none for a single sweep.
  """
  if groups.SWEEP not in results.kept:
    return []
  first, second = _sweeps(results)
  keys = _rest(results)
  entries = []
  for (arm, *setting), by_sweep in _matched(results).items():
    row: Row = {"arm": arm, groups.SWEEP: second, "against": first}
    row |= dict(zip(keys, setting, strict=True))
    if found := rates.paired(by_sweep[second], by_sweep[first]):
      entries.append(row | found)
  return rates.corrected(entries)


def table(results: Results, entries: list[Row]) -> tables.Lines:
  """Returns the table of the rows that `between_sweeps` returns."""
  heads = {"arm": "arm", groups.SWEEP: "sweep", "against": "less"}
  return tables.paired(results, entries, heads, _rest(results))


def headline_of(results: Results) -> Headline:
  """Returns which of two sweeps is better, in the mean of all they share."""
  metric, words = results.metric, tables.Words(results)
  first, second = _sweeps(results)
  cells = list(_matched(results).values())
  values = {
    sweep: headline.mean_of([cell[sweep] for cell in cells])
    for sweep in (first, second)
  }
  common = [seed for seed in values[first] if seed in values[second]]
  if not common:
    return Headline(
      f"{first} and {second} have no arm with a result in one setting and of"
      " one seed, and are not compared."
    )
  got = analysis.compare(
    [values[second][seed] - values[first][seed] for seed in common]
  )
  mean = float(np.mean([values[second][seed] for seed in common]))
  side = "above" if got.difference > 0 else "below"
  interval = f"{words.number(got.low, '+')} to {words.number(got.high, '+')}"
  by = f"{words.difference(abs(got.difference))} {side} that of {first}"
  what = f"the {metric.subject} of {second}, {words.value(mean)}, is {by}"
  seeds = "1 seed" if got.n == 1 else f"{got.n} seeds"
  method = (
    f"Mean of the {len(cells)} arms and settings that both have, each at its"
    " own best learning rate in each sweep, paired by seed; interval of"
    f" Student's t with {max(got.n - 1, 0)} degrees of freedom."
  )
  if got.told:
    better = second if got.difference * metric.sign > 0 else first
    worse = first if better == second else second
    text = (
      f"{better} is better than {worse}: {what} (95 % interval {interval})."
    )
  elif not np.isfinite(got.low):
    reason = (
      "one seed has no interval" if got.n == 1 else "all seeds agree on that"
    )
    text = f"No difference can be told from {seeds}: {what}, and {reason}."
  else:
    text = (
      f"No difference can be told from {seeds}: {what}, but the 95 % interval"
      f" of that difference, {interval}, contains 0."
    )
  return Headline(text, method)


def _sweeps(results: Results) -> list[str]:
  """Returns the names of both sweeps, in the order of their rows."""
  return list(dict.fromkeys(row[groups.SWEEP] for row in results.rows))


def _rest(results: Results) -> list[str]:
  return [key for key in results.kept if key != groups.SWEEP]


def _matched(results: Results) -> _Matched:
  """Returns the values of each arm and setting that both sweeps have."""
  at = results.kept.index(groups.SWEEP)
  found: _Matched = {}
  for setting, here in results.scores.items():
    for arm, by_seed in here.items():
      if by_seed:
        key = arm, *setting[:at], *setting[at + 1 :]
        found.setdefault(key, {})[setting[at]] = by_seed
  return {key: both for key, both in found.items() if len(both) == 2}
