"""Contenders in turn, and what their times say."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ws_jax.bench import Row, Table
from ws_jax.bench.worker import turn

# Does its work once, to the end; returns the seconds that it took.
Contender = Callable[[], float]

# What a library's threads may go on spinning after their work is done.
_PAUSE = 0.005


def timed(work: Callable[[], Any]) -> Contender:
  """A contender out of a function that returns JAX arrays."""

  def once() -> float:
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began

  return functools.partial(turn, once)


def interleave(
  contenders: Mapping[str, Contender], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
  """Times each contender once a round, so that a drift meets all of them.

  Args:
    contenders: by name.
    rounds: how often each is timed.
    warmup: how often each is called before, untimed.

  Returns:
    The seconds of each contender, `rounds` of them.

  Example:
    >>> interleave({"a": lambda: 0.5, "b": lambda: 1.0}, rounds=2)
    {'a': [0.5, 0.5], 'b': [1.0, 1.0]}
  """
  names = list(contenders)
  for name in names * warmup:
    contenders[name]()
  seconds: dict[str, list[float]] = {name: [] for name in names}
  for number in range(rounds):
    # Rotated, so that no one always runs behind the same neighbour.
    first = number % len(names)
    for name in names[first:] + names[:first]:
      time.sleep(_PAUSE)
      seconds[name].append(contenders[name]())
  return seconds


def rows(
  seconds: Mapping[str, Sequence[float]], against: str, examples: int = 0
) -> list[Row]:
  """Medians, quartiles, and ratios to one contender round by round.

  Args:
    seconds: as `interleave` returns them.
    against: the contender that all are compared with.
    examples: how many one call works on; 0 for no such column.

  Example:
    >>> times = {"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]}
    >>> rows(times, against="a")[1]["time / a"]
    2.0
  """
  result = []
  for name, times in seconds.items():
    ratios = [a / b for a, b in zip(times, seconds[against], strict=True)]
    row: Row = {"contender": name, "median ms": 1e3 * statistics.median(times)}
    row["quartiles"] = spread([1e3 * x for x in times])
    if examples:
      row["examples/s"] = examples / statistics.median(times)
    row[f"time / {against}"] = statistics.median(ratios)
    row["ratio quartiles"] = spread(ratios)
    row["seconds"] = list(times)
    result.append(row)
  return result


def spread(values: Sequence[float]) -> str:
  """The first and the third quartile, as text; empty for a single value."""
  if len(values) < 2:
    return ""
  low, _, high = statistics.quantiles(values, n=4, method="inclusive")
  return f"{_text(low)} - {_text(high)}"


def markdown(table: Table) -> str:
  """The table with its title, without the single times."""
  columns = dict.fromkeys(key for row in table.rows for key in row)
  columns.pop("seconds", None)
  lines = [list(columns)]
  lines += [[_text(row.get(key, "")) for key in columns] for row in table.rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  padded = [
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  ]
  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
  rounds = len(table.rows[0].get("seconds", ()))
  title = f"{table.title} ({rounds} rounds)" if rounds else table.title
  return "\n".join([title, "", padded[0], rule, *padded[1:]]) + "\n"


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
  return str(value)
