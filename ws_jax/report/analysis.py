"""Statistics of sweeps over learning rates, as pure functions.

A score is a number of which more is better, such as an accuracy. A run that has
diverged or has not ended has no score, which is NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Numbers = Sequence[float] | np.ndarray


class Estimate(NamedTuple):
  """A mean over seeds, with its spread and its confidence interval.

  Attributes:
    n: Number of seeds.
    mean: Mean; NaN without a seed.
    std: Sample standard deviation; NaN with fewer than two seeds, as all below.
    stderr: Standard error of the mean.
    low: Start of the interval.
    high: End of the interval.
  """

  n: int
  mean: float
  std: float
  stderr: float
  low: float
  high: float


def estimate(values: Numbers, confidence: float = 0.95) -> Estimate:
  """Returns mean, spread, and the interval of Student's t for the mean.

  Args:
    values: Value of each seed; NaN is left out.
    confidence: Probability that the interval covers the true mean.

  Example:
    >>> estimate([1.0, 2.0, 3.0]).high  # 2 + 4.303 / sqrt(3)
    4.484...
  """
  known = np.asarray(values, float)
  known = known[np.isfinite(known)]
  n, nan = len(known), float("nan")
  if n < 2:
    return Estimate(n, float(known[0]) if n else nan, *[nan] * 4)
  from scipy import special

  mean, std = float(known.mean()), float(known.std(ddof=1))
  stderr = std / n**0.5
  half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * stderr
  return Estimate(n, mean, std, stderr, mean - half, mean + half)


class Comparison(NamedTuple):
  """A mean difference, and what can be said of it.

  Attributes:
    n: Number of pairs.
    difference: Mean difference; NaN without a pair.
    stderr: Its standard error; NaN with fewer than two pairs.
    low: Start of the interval; NaN where there is none.
    high: End of the interval.
    p: Probability of a difference at least as large if there is none; NaN
      where there is no interval.
  """

  n: int
  difference: float
  stderr: float
  low: float
  high: float
  p: float

  @property
  def told(self) -> bool:
    """Returns whether the interval excludes zero."""
    return self.low > 0 or self.high < 0


def compare(
  differences: Numbers, comparisons: int = 1, confidence: float = 0.95
) -> Comparison:
  """Returns the mean of paired differences, by Student's t.

  Pairs that all have the same difference give no interval: a few seeds that
  agree to the last digit do not show that there is no spread.

  Args:
    differences: Difference of each pair; NaN is left out.
    comparisons: Number of comparisons of which this is one. The interval is
      wider for it (Bonferroni), so that all of them hold together with the
      confidence that is asked for; `p` is not changed.
    confidence: Probability that the interval covers the true difference.

  Example:
    >>> compare([1.0, 2.0, 3.0]).told, compare([1.9, 2.0, 2.1]).told
    (False, True)
    >>> compare([1.9, 2.0, 2.1], comparisons=100).told
    False
  """
  got = estimate(differences, 1 - (1 - confidence) / comparisons)
  nan = float("nan")
  if not got.stderr > 1e-9 * abs(got.mean):
    return Comparison(got.n, got.mean, got.stderr, nan, nan, nan)
  from scipy import special

  t = abs(got.mean) / got.stderr
  p = 2 * float(special.stdtr(got.n - 1, -t))
  return Comparison(got.n, got.mean, got.stderr, got.low, got.high, p)


def holm(ps: Numbers) -> list[float]:
  """Returns the probabilities of several comparisons, corrected by Holm.

  Where a result is below 0.05, the chance that any of them is below it by luck
  is at most 0.05 (Holm 1979).

  Args:
    ps: Probability of each comparison; NaN is left out and stays.

  Example:
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
  """
  result, least = [float("nan")] * len(ps), 0.0
  known = [i for i in np.argsort(ps, kind="stable") if np.isfinite(ps[i])]
  for rank, i in enumerate(known):
    least = max(least, min(1.0, (len(known) - rank) * float(ps[i])))
    result[i] = least
  return result


class Range(NamedTuple):
  """A range of learning rates.

  Attributes:
    low: Start of the range.
    high: End of the range.
    decades: Width of the range, as a base-10 logarithm.
    open_low: Whether the grid ends before the range does, below.
    open_high: Whether the grid ends before the range does, above.
  """

  low: float
  high: float
  decades: float
  open_low: bool
  open_high: bool


def usable_range(
  rates: Numbers, scores: Numbers, tolerance: float = 0.01
) -> Range | None:
  """Returns the range of rates around the best one that score nearly as well.

  Between two points of the grid the score is taken as linear in the logarithm
  of the rate. Next to a point without a score the range ends at the grid point.

  Args:
    rates: Learning rates, increasing [n].
    scores: Scores of the rates [n].
    tolerance: Largest distance to the best score; 0.01 is one point of
      accuracy.

  Returns:
    The range, or None if no rate has a score.

  Example:
    >>> usable_range([0.01, 0.1, 1.0], [0.70, 0.90, 0.88]).high  # halfway
    0.316...
  """
  logs, scores = np.log10(np.asarray(rates, float)), np.asarray(scores, float)
  if not np.isfinite(scores).any():
    return None
  best = int(np.nanargmax(scores))
  floor = scores[best] - tolerance
  low, open_low = _edge(-logs[best::-1], scores[best::-1], floor)
  high, open_high = _edge(logs[best:], scores[best:], floor)
  return Range(10**-low, 10**high, high + low, open_low, open_high)


def _edge(
  logs: np.ndarray, scores: np.ndarray, floor: float
) -> tuple[float, bool]:
  """Returns where the scores fall below the floor, and whether they do not.

  Without such a place it is the last point, and the second value is True.
  """
  for i, score in enumerate(scores):
    if not score >= floor:  # true of NaN too
      if not np.isfinite(score):
        return float(logs[i - 1]), False
      part = (scores[i - 1] - floor) / (scores[i - 1] - score)
      return float(logs[i - 1] + part * (logs[i] - logs[i - 1])), False
  return float(logs[-1]), True


def sensitivity(losses: Numbers, first_loss: float) -> float:
  """Returns the learning-rate sensitivity of Wortsman et al. (2023).

  It is the mean over the grid of min(loss, loss at initialization), less the
  best loss (https://arxiv.org/abs/2309.14322, section 2.2).

  Args:
    losses: Loss at each rate of a grid with equal ratios; NaN for a run that
      diverged, which counts as the loss at initialization.
    first_loss: Loss at initialization; NaN if it is not known, which is enough
      if no run diverged.

  Returns:
    A number from 0, which is no sensitivity; NaN if it cannot be computed or no
    run has learnt.

  Example:
    >>> sensitivity([0.5, 0.3, float("nan")], first_loss=2.3)
    0.7333...
  """
  capped = _capped(losses, first_loss)
  return float((capped - capped.min()).mean()) if len(capped) else float("nan")


def relative_sensitivity(
  steps: Numbers,
  losses: Numbers,
  first_loss: float,
  low: float,
  high: float,
) -> float:
  """Returns `sensitivity` with relative steps instead of learning rates.

  A learning rate means another thing where weights are standardized, so arms
  are compared over one range of relative steps, ||update|| / ||weights||. The
  mean is over the logarithm of the step, the loss linear between the points.

  Args:
    steps: Relative step of each run, in any order; a run whose step is not
      known is left out.
    losses: Losses of the same runs, as in `sensitivity`.
    first_loss: Loss at initialization, as in `sensitivity`.
    low: Start of the range, which is the same for all arms compared.
    high: End of the range.

  Returns:
    The sensitivity; NaN with fewer than two steps, or for an empty range.
  """
  steps = np.asarray(steps, float)
  capped = _capped(losses, first_loss)
  known = np.isfinite(steps) & (steps > 0)
  if not len(capped) or known.sum() < 2 or not low < high:
    return float("nan")
  order = np.argsort(steps[known])
  x, y = np.log(steps[known][order]), capped[known][order]
  ends = np.log([low, high])
  inside = x[(x > ends[0]) & (x < ends[1])]
  at = np.concatenate([ends[:1], inside, ends[1:]])
  mean = np.trapezoid(np.interp(at, x, y), at) / (ends[1] - ends[0])
  return float(mean - capped.min())


def _capped(losses: Numbers, first_loss: float) -> np.ndarray:
  """Returns the losses, none above the first; empty if that is not known.

  It is also empty if no run has learnt.
  """
  losses = np.asarray(losses, float)
  finite, learnt = np.isfinite(losses), losses < first_loss
  known = learnt.any() if np.isfinite(first_loss) else finite.all()
  # Of a number and a NaN, fmin takes the number.
  return np.fmin(losses, first_loss) if known else losses[:0]


def common_range(steps: Sequence[Numbers]) -> tuple[float, float]:
  """Returns the range that every series of relative steps covers.

  Both ends are NaN if no series has a step.
  """
  known = [np.asarray(series, float) for series in steps]
  known = [series[np.isfinite(series)] for series in known]
  known = [series for series in known if len(series)]
  if not known:
    return float("nan"), float("nan")
  return (
    float(max(series.min() for series in known)),
    float(min(series.max() for series in known)),
  )
