"""The metric by which the runs of a task are compared."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
  """The metric of a task that decides which run is better.

  Attributes:
    name: Name of the entry of `sums`, as "accuracy".
    goal: "max" if more is better, "min" if less is.
    unit: Unit for tables and figures; "%" for fractions, shown times 100.

  Raises:
    ValueError: another goal.

  Example:
    >>> Metric("bits_per_byte", "min", "bits per byte").goal
    'min'
  """

  name: str
  goal: str = "max"
  unit: str = ""

  def __post_init__(self):
    if self.goal not in ("max", "min"):
      raise ValueError(f"goal {self.goal!r} of a metric: must be max or min")
