"""Holds the headline of a report to formulas and to simulated sweeps."""

import math

import numpy as np
import pytest

from tests import test_figures
from ws_jax.report import analysis, headline, summary, tables

ARMS = ("BN", "BN+WS", "GN", "GN+WS")


def quantile(p):
  """Returns the quantile of Student's t with two degrees of freedom."""
  return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))


def tail(t):
  """Returns the two-sided probability of t with two degrees of freedom."""
  return 1 - t / math.sqrt(2 + t * t)


def sweep(values, rate=0.1, **more):
  """Returns the rows of a sweep with one rate, from arm -> values of seeds."""
  return [
    test_figures.make(arm, {"optim.learning_rate": rate, **more}, seed, value)
    for arm, own in values.items()
    for seed, value in enumerate(own)
  ]


def said(rows):
  return headline.of(summary.analyze(rows))


def test_comparison_is_students_in_float64():
  rng = np.random.default_rng(0)
  for comparisons in (1, 6):
    values = rng.normal(0.5, 1.0, 3)
    got = analysis.compare(values, comparisons)
    stderr = math.sqrt(sum((x - values.mean()) ** 2 for x in values) / 2 / 3)
    half = quantile(1 - 0.025 / comparisons) * stderr
    np.testing.assert_allclose(got.low, values.mean() - half, rtol=1e-10)
    np.testing.assert_allclose(got.high, values.mean() + half, rtol=1e-10)
    t = abs(values.mean()) / stderr
    np.testing.assert_allclose(got.p, tail(t), rtol=1e-10)
  assert abs(quantile(0.975) - 4.303) < 1e-3  # as in every table


def test_interval_excludes_zero_exactly_where_p_is_small():
  rng = np.random.default_rng(0)
  for _ in range(200):
    got = analysis.compare(rng.normal(2.0, 1.0, 3), 3)
    assert got.told == (3 * got.p < 0.05)


def test_seeds_that_agree_to_the_last_digit_give_no_interval():
  for values in ([0.01, 0.01, 0.01], [0.3 - 0.2, 0.1, 0.4 - 0.3], [0.0, 0.0]):
    got = analysis.compare(values)
    assert not got.told and math.isnan(got.p) and math.isnan(got.low)


def test_holm_is_the_procedure_of_the_paper():
  rng = np.random.default_rng(0)
  for _ in range(50):
    ps = rng.uniform(0, 0.1, 5)
    got = analysis.holm([*ps, math.nan])
    # Sorted, each is held to 0.05 over the number that is left, until one is
    # not below it.
    rejected, order = set(), np.argsort(ps)
    for rank, i in enumerate(order):
      if ps[i] * (5 - rank) >= 0.05:
        break
      rejected.add(i)
    assert {i for i in range(5) if got[i] < 0.05} == rejected
    assert math.isnan(got[5])
  assert analysis.holm([0.5, 0.6]) == [1.0, 1.0]


def test_three_seeds_of_equal_arms_rarely_have_a_winner():
  """Regression: a paired interval from three seeds looked like a discovery."""
  rng = np.random.default_rng(0)
  wins = 0
  for _ in range(1000):
    values = rng.normal(size=(4, 3))
    first, second = np.argsort(-values.mean(1))[:2]
    got = analysis.compare(values[first] - values[second], comparisons=6)
    wins += got.told
  assert wins < 50


def test_winner_is_named_with_an_interval_for_all_pairs():
  values = {
    "BN": [0.80, 0.81, 0.79],
    "GN": [0.700, 0.712, 0.690],
    "GN+WS": [0.850, 0.861, 0.841],
  }
  got = said(sweep(values))
  apart = np.array([0.05, 0.051, 0.051])
  half = quantile(1 - 0.025 / 3) * apart.std(ddof=1) / math.sqrt(3)
  low, high = 100 * (apart.mean() - half), 100 * (apart.mean() + half)
  assert got.text == (
    "GN+WS wins: it has the highest test accuracy, 85.07 %, 5.07 points above"
    " BN, the next"
    f" (95 % interval {low:.2f} to {high:.2f})."
  )
  assert "2 degrees of freedom" in got.method
  assert "all 3 pairs of the 3 arms (Bonferroni)" in got.method


def test_no_difference_is_said_plainly():
  values = {"BN": [0.80, 0.81, 0.79], "GN": [0.80, 0.84, 0.80]}
  got = said(sweep(values))
  assert got.text.startswith(
    "No difference can be told from 3 seeds: GN has the highest test accuracy,"
    " 81.33 %, 1.33 points above BN, the next, but the 95 % interval"
  )
  assert got.text.endswith("contains 0.")
  got = said(sweep({"BN": [0.8], "GN": [0.7]}))
  assert "from 1 seed:" in got.text and "one seed has no interval" in got.text
  got = said(sweep({"BN": [0.8, 0.7], "GN": [0.7, 0.6]}))
  assert "all seeds have the same difference" in got.text
  assert (
    said(sweep({"BN": [0.8, 0.7]})).text
    == "BN has the highest test accuracy, 75.00 %."
  )
  assert said(sweep({"BN": [None]})).text == "No run has a result yet."


def test_seeds_that_are_not_shared_are_not_compared():
  rows = sweep({"BN": [0.8, 0.7]})
  rows += [row | {"seed": 7} for row in sweep({"GN": [0.9]})]
  assert "no seed in common with BN" in said(rows).text


def test_settings_are_averaged_for_each_seed():
  rng = np.random.default_rng(0)
  rows, means = [], np.zeros((2, 3))
  for batch, shift in ((32, 0.0), (256, -0.1)):
    values = rng.normal(0.8 + shift, 0.001, (2, 3))
    values[1] += 0.02 if batch == 32 else -0.001
    means += values / 2
    own = dict(zip(("BN", "GN"), values.tolist(), strict=True))
    more = {"data.batch_size": batch}
    rows += [r | {"optimizer_batch": batch} for r in sweep(own, **more)]
  got = said(rows)
  apart = means[1] - means[0]
  assert "in the mean of 2 settings" in got.text
  assert f"{100 * apart.mean():.2f} points above BN" in got.text
  assert got.text.endswith(" It is ahead in 1 of the 2.")


def test_best_result_is_not_left_out_of_the_headline():
  """Regression: an arm that was not in all settings could not win."""
  rows = []
  for batch, own in (
    (32, {"BN": [0.8, 0.81], "GN": [0.7, 0.72], "LN": [0.9, 0.92]}),
    (256, {"BN": [0.7, 0.71], "GN": [0.6, 0.62]}),
  ):
    more = {"data.batch_size": batch}
    rows += [r | {"optimizer_batch": batch} for r in sweep(own, **more)]
  assert "LN" in said(rows).text.split(",")[0]
  assert "optimizer batch 32" in said(rows).text
  for row in rows:
    if row["model.norm"] == "layer":
      row["eval/accuracy"] -= 0.5
  got = said(rows)
  assert "in the mean of 2 settings" in got.text
  assert got.method.endswith("without a result in every setting: LN.")


def test_less_is_better_where_the_metric_says_so():
  rows = sweep({"BN": [0.8, 0.81], "GN": [0.7, 0.72]})
  for row in rows:
    row |= {"metric": "loss", "metric_goal": "min", "metric_unit": "nats"}
    row["eval/loss"] = row.pop("eval/accuracy")
  got = said(rows)
  assert "the lowest test loss, 0.7100 nats, 0.0950 nats below BN" in got.text


def test_unfinished_sweep_says_so_far():
  rows = sweep({"BN": [0.8], "GN": [0.7]})
  assert said([*rows, rows[0] | {"status": "missing"}]).text.startswith(
    "So far:"
  )


def test_every_number_names_its_split():
  """Regression: columns said "test" of sweeps judged on a validation split."""
  rows = sweep({"BN": [0.8, 0.81], "GN": [0.7, 0.72]})
  for row in rows:
    row |= {"data.eval_split": "validation", "eval/loss": 1.0}
  results = summary.analyze(rows)
  lines = tables.cells(results)
  assert lines[0][2:4] == ("validation accuracy %", "validation loss")
  assert "validation accuracy" in headline.of(results).text
  rows[0]["data.eval_split"] = "val"
  assert summary.analyze(rows).metric.title == "held-out accuracy %"


@pytest.mark.parametrize("arms", [2, 4])
def test_differences_are_corrected_for_their_number(arms):
  rng = np.random.default_rng(arms)
  values = {arm: rng.normal(0.8, 0.01, 3).tolist() for arm in ARMS[:arms]}
  results = summary.analyze(sweep(values))
  entries = results.differences
  ps = []
  for entry in entries:
    one, other = values[entry["arm"]], values[entry["against"]]
    apart = np.subtract(one, other)
    t = abs(apart.mean()) / (apart.std(ddof=1) / math.sqrt(3))
    ps.append(tail(t))
    np.testing.assert_allclose(entry["p"], ps[-1], rtol=1e-9)
  least = 0.0
  for rank, i in enumerate(np.argsort(ps)):
    least = max(least, min(1.0, ps[i] * (len(ps) - rank)))
    np.testing.assert_allclose(entries[i]["p_holm"], least, rtol=1e-9)
  column = tables.differences(results)[0].index("p (Holm)")
  shown = [
    float(line[column].strip("< ")) for line in tables.differences(results)[1:]
  ]
  np.testing.assert_allclose(shown, [e["p_holm"] for e in entries], atol=1e-3)


def test_a_key_is_said_of_the_arms_that_have_it():
  """Regression: it was said of the winner, which did not have it."""
  rows = sweep({"BN": [0.90, 0.91, 0.92]}, **{"data.batch_size": 32})
  for batch in (32, 64):
    rows += sweep({"GN": [0.1, 0.1, 0.1]}, **{"data.batch_size": batch})
  for clip, value in ((0.02, 0.5), (0.08, 0.8), (0.1, 0.6)):
    more = {"data.batch_size": 32, "optim.adaptive_clip": clip}
    rows += sweep({"GN+WS": [value, value + 0.01, value]}, **more)
  text = said(rows).text
  # And the next arm is at its best setting, not at its first.
  assert " with optimizer batch 32, adaptive clip 0.08 (GN+WS+AGC), " in text
  assert "10.67 points above GN+WS+AGC, the next" in text
