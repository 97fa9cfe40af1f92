"""Holds statistics to numbers worked out by hand, and to float64 NumPy."""

import numpy as np
import pytest

from ws_jax.report import analysis

NAN = float("nan")


def test_estimate_has_the_interval_of_the_tables():
  # Two-sided, 95 %, as in every table of Student's t.
  for n, t in ((2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)):
    values = np.random.default_rng(n).normal(size=n)
    got = analysis.estimate([*values, NAN])
    half = t * values.std(ddof=1) / np.sqrt(n)
    assert got.n == n
    np.testing.assert_allclose(got.mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(got.std, values.std(ddof=1), rtol=1e-12)
    np.testing.assert_allclose(got.high - got.mean, half, rtol=2e-4)
    np.testing.assert_allclose(got.mean - got.low, half, rtol=2e-4)


def test_estimate_of_one_value_or_none_claims_no_spread():
  one = analysis.estimate([0.5])
  assert (one.n, one.mean) == (1, 0.5) and np.isnan(one[2:]).all()
  none = analysis.estimate([NAN])
  assert none.n == 0 and np.isnan(none[1:]).all()


def test_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(2000):
    got = analysis.estimate(rng.normal(3.0, 2.0, size=3))
    hits += got.low < 3.0 < got.high
  assert 0.93 < hits / 2000 < 0.97  # 4 sigma


def test_usable_range_ends_where_a_line_in_the_logarithm_crosses():
  # Best 0.90 at 0.1, so the floor is 0.89: halfway to 0.88 at 1.0, and a
  # fifth of the way to 0.85 at 0.01.
  got = analysis.usable_range([0.01, 0.1, 1.0], [0.85, 0.90, 0.88])
  assert got is not None
  np.testing.assert_allclose(got.high, 10**-0.5, rtol=1e-12)
  np.testing.assert_allclose(got.low, 10**-1.2, rtol=1e-12)
  np.testing.assert_allclose(got.decades, 0.7, rtol=1e-12)
  assert not got.open_low and not got.open_high


def test_usable_range_is_open_at_the_ends_of_the_grid():
  got = analysis.usable_range([0.1, 1.0], [0.9, 0.895])
  assert got == analysis.Range(0.1, 1.0, 1.0, True, True)
  got = analysis.usable_range([0.1], [0.9])
  assert got == analysis.Range(0.1, 0.1, 0.0, True, True)


def test_usable_range_stops_at_what_has_no_score():
  got = analysis.usable_range([0.1, 1.0, 10.0], [0.9, 0.9, NAN])
  assert got == analysis.Range(0.1, 1.0, 1.0, True, False)
  # A second hill beyond a valley is not a part of it.
  got = analysis.usable_range([0.1, 1, 10, 100], [0.9, 0.895, NAN, 0.9])
  assert got is not None and got.high == 1.0
  assert analysis.usable_range([0.1, 1.0], [NAN, NAN]) is None


def test_sensitivity_is_the_formula_of_the_paper():
  # (0.5 + 0.3 + 2.3 + 2.3) / 4 - 0.3: one above the first, one diverged.
  got = analysis.sensitivity([0.5, 0.3, 7.0, NAN], 2.3)
  np.testing.assert_allclose(got, 1.05, rtol=1e-12)
  # A rate that changes nothing has no sensitivity.
  assert analysis.sensitivity([0.4, 0.4, 0.4], 2.3) == 0.0
  rng = np.random.default_rng(0)
  losses = rng.uniform(0, 3, size=9)
  expected = np.mean(np.minimum(losses, 2.3)) - losses.min()
  got = analysis.sensitivity(losses, 2.3)
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_sensitivity_is_not_guessed():
  assert np.isnan(analysis.sensitivity([0.5, NAN], NAN))
  np.testing.assert_allclose(analysis.sensitivity([0.5, 0.3], NAN), 0.1)
  # If no rate learns anything, 0 would look perfect.
  assert np.isnan(analysis.sensitivity([NAN, NAN], 2.3))
  assert np.isnan(analysis.sensitivity([2.5, 2.4], 2.3))
  assert np.isnan(analysis.sensitivity([], 2.3))


def test_relative_sensitivity_is_an_integral_over_the_logarithm():
  steps, losses = [1e-1, 1e-3, 1e-2], [2.0, 0.5, 0.3]  # in any order
  got = analysis.relative_sensitivity(steps, losses, 2.3, 1e-3, 1e-1)
  # Two decades, trapezoids: (0.5 + 0.3) / 2 and (0.3 + 2.0) / 2.
  np.testing.assert_allclose(got, (0.4 + 1.15) / 2 - 0.3, rtol=1e-12)
  # Half of the upper decade is left out: up to (0.3 + 2.0) / 2 = 1.15.
  got = analysis.relative_sensitivity(steps, losses, 2.3, 1e-3, 10**-1.5)
  expected = (0.4 + 0.5 * (0.3 + 1.15) / 2) / 1.5 - 0.3
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_relative_sensitivity_does_not_depend_on_the_unit_of_the_step():
  steps, losses = np.array([1e-3, 1e-2, 2e-2, 1e-1]), [0.5, 0.3, 0.4, NAN]
  one = analysis.relative_sensitivity(steps, losses, 2.3, 2e-3, 5e-2)
  two = analysis.relative_sensitivity(7 * steps, losses, 2.3, 14e-3, 35e-2)
  np.testing.assert_allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize(
  ("steps", "low", "high"),
  [
    ([NAN, 0.1], 0.01, 1.0),
    ([0.01, 0.1], 1.0, 0.5),
    ([0.01, 0.1], NAN, NAN),
  ],
)
def test_relative_sensitivity_is_not_guessed(steps, low, high):
  got = analysis.relative_sensitivity(steps, [0.5, 0.3], 2.3, low, high)
  assert np.isnan(got)


def test_common_range_is_what_all_cover():
  assert analysis.common_range([[1, 5], [NAN, 8, 2], [NAN]]) == (2.0, 5.0)
  assert np.isnan(analysis.common_range([])).all()
