"""What a sweep over learning rates says, as numbers: pure functions.

A score is an accuracy or the like, more being better; what has none, because
it diverged or has not run, is NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Numbers = Sequence[float] | np.ndarray


class Estimate(NamedTuple):
  """A mean over `n` seeds, its sample standard deviation and 95 % interval.

  What needs two seeds is NaN for one, and all of it for none.
  """

  n: int
  mean: float
  std: float
  stderr: float
  low: float
  high: float


def estimate(values: Numbers, confidence: float = 0.95) -> Estimate:
  """Mean, spread, and the interval of Student's t for the mean.

  Args:
    values: one a seed; NaN is left out.
    confidence: of the interval.

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


class Range(NamedTuple):
  """Learning rates from `low` to `high`, `decades` wide.

  `open_low` and `open_high` say that the grid ended before the range did, so
  that it is at least so wide.
  """

  low: float
  high: float
  decades: float
  open_low: bool
  open_high: bool


def usable_range(
  rates: Numbers, scores: Numbers, tolerance: float = 0.01
) -> Range | None:
  """The rates around the best one that score within `tolerance` of it.

  Between two points of the grid the score is taken as linear in the logarithm
  of the rate; towards a point without a score the range ends where it is.

  Args:
    rates: increasing [n].
    scores: their scores [n].
    tolerance: in units of the score; 0.01 is one point of accuracy.

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
  """Where scores, going up from the first, fall below the floor."""
  for i, score in enumerate(scores):
    if not score >= floor:  # also NaN
      if not np.isfinite(score):
        return float(logs[i - 1]), False
      part = (scores[i - 1] - floor) / (scores[i - 1] - score)
      return float(logs[i - 1] + part * (logs[i] - logs[i - 1])), False
  return float(logs[-1]), True


def sensitivity(losses: Numbers, first_loss: float) -> float:
  """Learning-rate sensitivity of Wortsman et al. (2023), section 2.2.

  The mean over the grid of min(loss, loss at initialization), less the best
  loss (https://arxiv.org/abs/2309.14322).

  Args:
    losses: one a rate, of a grid with equal ratios; NaN for a run that
      diverged, which counts as the loss at initialization.
    first_loss: the loss at initialization; NaN if it is not known, which is
      good enough while nothing diverged.

  Returns:
    0 is no sensitivity; NaN if it cannot be told, or nothing learnt.

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
  """`sensitivity`, with relative steps in the place of learning rates.

  A learning rate means another thing where weights are standardized, so arms
  are compared over one range of relative steps, ||update|| / ||weights||. The
  mean is over the logarithm of the step, the loss linear between the points.

  Args:
    steps: relative step of each run, in any order; a run where it is not
      known is left out.
    losses: as in `sensitivity`, and of the same runs.
    first_loss: as in `sensitivity`.
    low: start of the range; the arms compared share it.
    high: end of the range.

  Returns:
    NaN where it cannot be told: fewer than two steps, or an empty range.
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
  """Losses, none above the first; empty if that leaves the measure unknown."""
  losses = np.asarray(losses, float)
  finite, learnt = np.isfinite(losses), losses < first_loss
  known = learnt.any() if np.isfinite(first_loss) else finite.all()
  # fmin: of a number and a NaN, the number.
  return np.fmin(losses, first_loss) if known else losses[:0]


def common_range(steps: Sequence[Numbers]) -> tuple[float, float]:
  """The range that every series of relative steps covers; NaN if none does."""
  known = [np.asarray(series, float) for series in steps]
  known = [series[np.isfinite(series)] for series in known]
  known = [series for series in known if len(series)]
  if not known:
    return float("nan"), float("nan")
  return (
    float(max(series.min() for series in known)),
    float(min(series.max() for series in known)),
  )
