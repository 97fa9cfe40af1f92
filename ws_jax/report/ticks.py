"""Numbers to write along an axis: round ones, and none that touch another."""

import math
from collections.abc import Sequence

# Steps within a decade, from many to few.
_SUBS = ((1, 2, 5), (1, 3), (1,))
_MOST = 6


def of_numbers(low: float, high: float) -> list[float]:
  """Returns about five round numbers of a linear axis.

  Args:
    low: Start of the axis.
    high: End of the axis, above its start.

  Example:
    >>> of_numbers(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
  """
  rough = (high - low) / _MOST
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(x * power for x in (1, 2, 5, 10, 20) if x * power >= rough)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def of_logarithm(low: float, high: float) -> list[float]:
  """Returns at most six round numbers of a logarithmic axis.

  Args:
    low: Logarithm of its start, to base 10.
    high: Logarithm of its end, above its start.

  Example:
    >>> of_logarithm(-3.2, 0.1), of_logarithm(-1.1, -0.1)
    ([0.001, 0.01, 0.1, 1.0], [0.1, 0.2, 0.5])
  """
  decades = range(math.floor(low), math.ceil(high) + 1)
  inside = lambda x: low - 1e-9 <= math.log10(x) <= high + 1e-9
  for subs in _SUBS:
    found = [float(f"{sub}e{n}") for n in decades for sub in subs]
    found = [x for x in found if inside(x)]
    if len(found) <= _MOST:
      break
  # Within a part of a decade, numbers of a linear axis are the round ones.
  if len(found) < 2:
    return [x for x in of_numbers(10**low, 10**high) if x > 0]
  every = -(-len(found) // _MOST)
  return found[::every]


def apart(places: Sequence[float], sizes: Sequence[float]) -> list[bool]:
  """Returns which labels to write so that none touches the one before.

  Args:
    places: Places of the labels, rising, in any unit.
    sizes: Widths of the labels, in that unit.

  Example:
    >>> apart([0, 1, 5], [2, 2, 2])
    [True, False, True]
  """
  shown, end = [], -math.inf
  for place, size in zip(places, sizes, strict=True):
    shown.append(place - size / 2 >= end)
    if shown[-1]:
      end = place + size / 2
  return shown
