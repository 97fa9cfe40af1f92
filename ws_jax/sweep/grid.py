"""Plans the runs of a sweep: flat dicts of dotted overrides, put in order."""

import dataclasses
import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ws_jax import config

Overrides = Mapping[str, Any]


def product(
  *choices: Iterable[Overrides], **axes: Iterable[Any]
) -> Iterator[dict[str, Any]]:
  """Yields every combination of the axes, the last one varying fastest.

  Args:
    *choices: Axes whose points set several keys at once, e.g. the arms of a
      comparison, or another `product` or `zipped`.
    **axes: Values of one dotted key each: `**{"optim.momentum": [0, 0.9]}`.

  Yields:
    Flat dicts of dotted overrides.

  Raises:
    ValueError: One key is set by two axes.

  Example:
    >>> arms = [{"model.norm": "batch"}, {"model.norm": "group"}]
    >>> for overrides in product(arms, seed=[0, 1]):
    ...   print(overrides)
    {'model.norm': 'batch', 'seed': 0}
    {'model.norm': 'batch', 'seed': 1}
    {'model.norm': 'group', 'seed': 0}
    {'model.norm': 'group', 'seed': 1}
  """
  single = ([{key: value} for value in values] for key, values in axes.items())
  for parts in itertools.product(*choices, *single):
    point: dict[str, Any] = {}
    for part in parts:
      for key in part:
        if key in point:
          raise ValueError(f"{key!r} is set by two axes of one product")
      point.update(part)
    yield point


def zipped(**axes: Iterable[Any]) -> Iterator[dict[str, Any]]:
  """Yields the first values of all axes, then the second ones, and so on.

  Args:
    **axes: Values of one dotted key each.

  Raises:
    ValueError: The axes are not equally long.

  Example:
    >>> list(zipped(**{"data.batch_size": [64, 128], "seed": [0, 1]}))
    [{'data.batch_size': 64, 'seed': 0}, {'data.batch_size': 128, 'seed': 1}]
  """
  columns = {key: list(values) for key, values in axes.items()}
  lengths = {key: len(values) for key, values in columns.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"zipped needs axes of one length, got {lengths}")
  for values in zip(*columns.values(), strict=True):
    yield dict(zip(columns, values, strict=True))


def log_grid(low: float, high: float, num: int) -> list[float]:
  """Returns numbers in equal ratios, rounded to three digits.

  Args:
    low: First number.
    high: Last number.
    num: Number of numbers.

  Raises:
    ValueError: Not `0 < low < high` and `num >= 2`, or two of the numbers are
      equal when rounded.

  Example:
    >>> log_grid(0.01, 1, 5)
    [0.01, 0.0316, 0.1, 0.316, 1.0]
  """
  if not 0 < low < high or num < 2:
    raise ValueError(
      f"log_grid needs 0 < low < high and num >= 2, got {low}, {high}, {num}"
    )
  ratio = (high / low) ** (1 / (num - 1))
  grid = [float(f"{low * ratio**i:.3g}") for i in range(num)]
  if len(set(grid)) < num:
    raise ValueError(f"{num} points in [{low}, {high}] are equal to 3 digits")
  return grid


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep.

  Attributes:
    overrides: Values that the run changes in the config, by dotted key.
    key: Canonical JSON of the overrides, the identity of the run in `runs.csv`.
    name: Readable name of its folder: `norm=group,ws=true,learning_rate=0.4`.
    structure: Canonical JSON of the overrides that change the program. Runs of
      one structure share a compile.
  """

  overrides: dict[str, Any]
  key: str
  name: str
  structure: str


def plan(overrides: Iterable[Overrides], only: str = "") -> list[Run]:
  """Returns the runs of a sweep; runs that share a compile are neighbours.

  Args:
    overrides: Flat dicts of dotted overrides; equal ones count once.
    only: Comma-separated terms, e.g. `norm=group,learning_rate=0.*` (shell
      patterns). Runs whose name does not have all of them are left out.

  Returns:
    The runs, grouped by structure in the order of first appearance.

  Raises:
    ValueError: These are no dicts of overrides, two runs would share a folder,
      or `only` leaves none.
  """
  groups: dict[str, dict[str, Run]] = {}
  by_name: dict[str, Run] = {}
  for flat in points(overrides):
    fixed = {k: v for k, v in flat.items() if k not in config.TRACED}
    run = Run(flat, _canonical(flat), name_of(flat), _canonical(fixed))
    other = by_name.setdefault(run.name, run)
    if other.key != run.key:
      raise ValueError(
        f"{run.key} and {other.key} would share the folder {run.name!r}"
      )
    groups.setdefault(run.structure, {}).setdefault(run.key, run)
  runs = [run for group in groups.values() for run in group.values()]
  wanted = only.split(",") if only else []
  chosen = [
    run
    for run in runs
    if all(fnmatch.filter(run.name.split(","), term) for term in wanted)
  ]
  if runs and not chosen:
    terms = sorted({term for run in runs for term in run.name.split(",")})
    raise ValueError(f"no run has {only!r}; terms are: {', '.join(terms)}")
  return chosen


def by_structure(runs: Iterable[Run]) -> dict[str, list[Run]]:
  """Returns the runs of each program, in the order given."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.structure, []).append(run)
  return groups


def points(given: Any) -> list[dict[str, Any]]:
  """Returns the points of a sweep, after it has checked each of them.

  Args:
    given: What an experiment's `sweep()` returned: an iterable of flat dicts.

  Returns:
    The dicts, with Python numbers in the place of NumPy scalars.

  Raises:
    ValueError: A dict is something else, or a value is nothing that a config
      can hold; the message says what was given.

  Example:
    >>> points(None)
    Traceback (most recent call last):
    ValueError: a sweep is an iterable of dicts of overrides, ... not None
  """
  wanted = (
    "a sweep is an iterable of dicts of overrides, such as"
    ' {"optim.learning_rate": 0.1}, not'
  )
  if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
    raise ValueError(f"{wanted} {kind(given)}")
  result = []
  for number, point in enumerate(given, start=1):
    if not isinstance(point, Mapping):
      nested = isinstance(point, Iterable) and not isinstance(point, str)
      hint = "; write `yield from` to yield what is in it" if nested else ""
      raise ValueError(f"{wanted} of {kind(point)} (point {number}){hint}")
    result.append({key: _plain(key, value) for key, value in point.items()})
  return result


def _plain(key: Any, value: Any) -> Any:
  """Returns the value of an override as JSON can hold it."""
  if not isinstance(key, str):
    raise ValueError(f"{key!r} is {kind(key)}, and no dotted key of a config")
  if isinstance(value, (list, tuple)):
    parts = [_plain(key, part) for part in value]
    return parts if isinstance(value, list) else tuple(parts)
  if getattr(value, "shape", ()) == () and hasattr(value, "item"):
    value = value.item()  # a NumPy scalar
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise ValueError(
    f"override {key!r} is {kind(value)}: it must be a number, a text, a truth"
    " value, None, or a list of these"
  )


def kind(value: Any) -> str:
  """Returns what a value is, in words: `None`, `a generator`."""
  shape = getattr(value, "shape", ())
  of_shape = f" of shape {shape}" if shape else ""
  name = type(value).__name__
  article = "an" if name[:1].lower() in "aeiou" else "a"
  return "None" if value is None else f"{article} {name}{of_shape}"


def _canonical(overrides: Overrides) -> str:
  return json.dumps(overrides, sort_keys=True, separators=(",", ":"))


def name_of(overrides: Overrides) -> str:
  """Returns the name of a folder: short keys, and a digest if need be.

  The digest is added where characters had to be replaced or left out.

  Example:
    >>> name_of({"model.norm": "group", "seed": 1})
    'norm=group,seed=1'
  """
  short = [short_name(key) for key in overrides]
  terms = []
  for (key, value), label in zip(overrides.items(), short, strict=True):
    text = value if isinstance(value, str) else json.dumps(value)
    terms.append(f"{label if short.count(label) == 1 else key}={text}")
  name = ",".join(terms) or "base"
  safe = re.sub(r"[^\w.,=+-]", "-", name, flags=re.ASCII)[:150]
  if safe == name:
    return name
  return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def short_name(key: str) -> str:
  """Returns the part of a dotted key that says what it is about.

  Example:
    >>> short_name("model.norm"), short_name("model.name")
    ('norm', 'model')
  """
  *parents, last = key.split(".")
  return parents[-1] if last == "name" and parents else last
