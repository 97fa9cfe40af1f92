"""Says in one sentence which arm wins a sweep and by how much, if any does.

Start with `of`. The best arm is compared with the next one, which were picked
by the results themselves. So the interval is one of all pairs of arms, and few
seeds rarely have a winner.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ws_jax.report import analysis, tables
from ws_jax.report.analysis import Comparison
from ws_jax.report.groups import Setting
from ws_jax.report.metric import Metric
from ws_jax.report.summary import Results

# Seed -> value; setting -> arm -> seed -> value.
BySeed = Mapping[Any, float]
Scores = Mapping[Setting, Mapping[str, BySeed]]


class Headline(NamedTuple):
  """The finding of a sweep.

  Attributes:
    text: One sentence or two, the first of which says who wins.
    method: How that was found; empty if nothing was compared.
  """

  text: str
  method: str = ""


def of(results: Results) -> Headline:
  """Returns who wins a sweep, and by how much.

  Each arm counts at its own best rate. Of several settings the mean is taken,
  for each seed, so that a seed is one value whatever the number of settings.
  """
  metric, scores = results.metric, _known(results.scores)
  shared, arms = _to_compare(scores, metric)
  by_arm = {
    arm: mean_of([here[arm] for here in shared.values()]) for arm in arms
  }
  by_arm = {arm: by_seed for arm, by_seed in by_arm.items() if by_seed}
  if not by_arm:
    return Headline("No run has a result yet.")
  mean = lambda arm: metric.sign * float(np.mean([*by_arm[arm].values()]))
  first, *others = sorted(by_arm, key=mean, reverse=True)
  words = tables.Words(results)
  top = words.value(float(np.mean([*by_arm[first].values()])))
  where = _where(shared, results)
  if not others:
    has = f"{first} has the {metric.extreme} {metric.subject}"
    return Headline(f"{has}, {top}{where}.")
  second, pairs = others[0], len(by_arm) * (len(by_arm) - 1) // 2
  got = _difference(by_arm[first], by_arm[second], metric, pairs)
  text = _sentence(first, second, top, got, words, where)
  if len(shared) > 1:
    text += f" {_how_often(first, shared, arms, metric)}"
  if any(row["status"] in ("missing", "interrupted") for row in results.rows):
    text = f"So far: {text}"
  method = _method(got, len(by_arm), pairs, results)
  every = dict.fromkeys(arm for here in scores.values() for arm in here)
  if left := [arm for arm in every if arm not in by_arm]:
    where = "every setting" if len(shared) > 1 else "that setting"
    method += f" Not compared, without a result in {where}: {', '.join(left)}."
  return Headline(text, method)


def _known(scores: Scores) -> dict[Setting, dict[str, BySeed]]:
  """Returns the scores without the arms that have no value in a setting."""
  kept = {
    setting: {arm: by_seed for arm, by_seed in here.items() if by_seed}
    for setting, here in scores.items()
  }
  return {setting: here for setting, here in kept.items() if here}


def _to_compare(scores: Scores, metric: Metric) -> tuple[Scores, list[str]]:
  """Returns the settings and the arms that the headline is about.

  They are all settings, with the arms that have a result in each; or, if those
  are fewer than two or the best result is not one of theirs, its setting.
  """
  means = {
    (setting, arm): metric.sign * float(np.mean([*by_seed.values()]))
    for setting, here in scores.items()
    for arm, by_seed in here.items()
  }
  arms = list(dict.fromkeys(arm for _, arm in means))
  complete = [a for a in arms if all(a in here for here in scores.values())]
  if len(scores) < 2:
    return scores, complete
  # Several settings may show the same runs of the best arm: it is compared in
  # the one where the next arm comes nearest.
  in_order = lambda setting: sorted(
    (means[setting, arm] for arm in scores[setting]), reverse=True
  )
  setting, best = max(means, key=lambda at: (means[at], in_order(at[0])))
  if len(complete) > 1 and best in complete:
    return scores, complete
  return {setting: scores[setting]}, [*scores[setting]]


def mean_of(every: Sequence[BySeed]) -> dict[Any, float]:
  """Returns the mean over settings of each seed that has a value in all."""
  return {
    seed: float(np.mean([by_seed[seed] for by_seed in every]))
    for seed in (every[0] if every else ())
    if all(seed in by_seed for by_seed in every)
  }


def _difference(
  one: BySeed, other: BySeed, metric: Metric, pairs: int
) -> Comparison:
  """Returns by how much the first is better, paired by seed."""
  differences = [
    metric.sign * (one[seed] - other[seed]) for seed in one if seed in other
  ]
  return analysis.compare(differences, comparisons=pairs)


def _sentence(
  first: str,
  second: str,
  top: str,
  got: Comparison,
  words: tables.Words,
  where: str,
) -> str:
  metric = words.metric
  better = "above" if metric.goal == "max" else "below"
  if not got.n:
    return (
      f"No difference can be told: {first} has the {metric.extreme}"
      f" {metric.subject}, {top}{where}, and no seed in common with {second},"
      " the next."
    )
  by = f"{words.difference(abs(got.difference))} {better} {second}, the next"
  interval = f"{words.number(got.low)} to {words.number(got.high)}"
  if got.told:
    return (
      f"{first} wins: it has the {metric.extreme} {metric.subject},"
      f" {top}{where}, {by} (95 % interval {interval})."
    )
  seeds = "1 seed" if got.n == 1 else f"{got.n} seeds"
  reason = (
    f"the 95 % interval of that difference, {interval}, contains 0"
    if np.isfinite(got.low)
    else "one seed has no interval"
    if got.n == 1
    else "all seeds have the same difference, which gives no interval"
  )
  return (
    f"No difference can be told from {seeds}: {first} has the"
    f" {metric.extreme} {metric.subject}, {top}{where}, {by}, but {reason}."
  )


def _where(shared: Scores, results: Results) -> str:
  """Returns words for the settings that were compared."""
  if len(shared) > 1:
    return f" in the mean of {len(shared)} settings"
  ((setting, arms),) = shared.items()
  entries, parts = results.at(results.best, setting), []
  for key, value in zip(results.kept, setting, strict=True):
    if words := tables.setting_of([value], [key]):
      have = {entry["arm"] for entry in entries if entry[key] is not None}
      some = [arm for arm in arms if arm in have]
      # An arm without the key is compared beside each of its values.
      only = "" if len(some) == len(arms) else f" ({', '.join(some)})"
      parts.append(f"{words}{only}")
  return f" with {', '.join(parts)}" if parts else ""


def _how_often(
  first: str, shared: Scores, arms: Sequence[str], metric: Metric
) -> str:
  """Returns in how many settings the first arm has the best mean."""
  means = [
    {arm: metric.sign * float(np.mean([*here[arm].values()])) for arm in arms}
    for here in shared.values()
  ]
  count = sum(mean[first] == max(mean.values()) for mean in means)
  if count == len(shared):
    return f"It is ahead in all {count}."
  # A mean may come from one setting alone.
  rare = (
    "But it is ahead in only" if 2 * count < len(shared) else "It is ahead in"
  )
  return f"{rare} {count} of the {len(shared)}."


def _method(got: Comparison, arms: int, pairs: int, results: Results) -> str:
  """Returns how the headline was found, in one line."""
  best = "at its own best learning rate"
  if results.searched:
    best = "at the best of the points that were tried with it"
  lines = [f"Each arm {best}, paired by seed"]
  if got.n > 1:
    wider = (
      f", widened for all {pairs} pairs of the {arms} arms (Bonferroni), as"
      " the two were picked by these results"
      if pairs > 1
      else ""
    )
    degrees = "degree" if got.n == 2 else "degrees"
    lines.append(
      f"interval of Student's t with {got.n - 1} {degrees} of freedom{wider}"
    )
  lines.append(
    "the rates were picked on the split that they are reported on, for every"
    " arm alike, which the interval does not count"
  )
  return "; ".join(lines) + "."
