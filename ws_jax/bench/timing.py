"""Times contenders in turn, and compares them within rounds."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ws_jax.bench import Row, Table
from ws_jax.bench.worker import turn

# Does its work once, waits until it is done, and returns the seconds.
Contender = Callable[[], float]

# Seconds between contenders, because the threads of a library spin for a while
# after their work and would take a core from the next contender.
_PAUSE = 0.005


def timed(work: Callable[[], Any]) -> Contender:
  """Makes a contender of a function that returns JAX arrays."""

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
    contenders: Contenders by name.
    rounds: Number of times each is timed.
    warmup: Number of calls of each before that, which are not timed.

  Returns:
    A list of `rounds` times in seconds for each contender.

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
  """Returns medians, quartiles, and ratios to one contender within rounds.

  Args:
    seconds: Times that `interleave` returned.
    against: Name of the contender that all are compared with.
    examples: Number of examples that a call works on; 0 for no such column.

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
  """Formats the first and the third quartile; empty for a single value."""
  if len(values) < 2:
    return ""
  low, _, high = statistics.quantiles(values, n=4, method="inclusive")
  return f"{_text(low)} - {_text(high)}"


def markdown(table: Table) -> str:
  """Formats a table with its title, without the single times."""
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
