"""Which runs a sweep has: flat dicts of dotted overrides, put in order."""

import dataclasses
import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Overrides = Mapping[str, Any]

# Leaves of the train state, not constants of the program: runs that differ in
# these alone share one compile, so they are run one after the other.
TRACED = (
  "optim.learning_rate",
  "optim.base_learning_rate",
  "optim.weight_decay",
  "optim.momentum",
  "seed",
)


def product(
  *choices: Iterable[Overrides], **axes: Iterable[Any]
) -> Iterator[dict[str, Any]]:
  """Every combination of its axes, the last one varying fastest.

  Args:
    *choices: axes whose points set several keys at once, e.g. the arms of a
      comparison, or another `product` or `zipped`.
    **axes: the values of one dotted key each; `**{"optim.momentum": [0, 0.9]}`.

  Yields:
    Flat dicts of dotted overrides.

  Raises:
    ValueError: one key is set by two axes.

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
  """Takes the axes in step: all first values, then all second ones, ...

  Raises:
    ValueError: the axes are not equally long.

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
  """`num` numbers from `low` to `high` in equal ratios, to three digits.

  Raises:
    ValueError: not `0 < low < high` and `num >= 2`, or so many points that
      two are equal when rounded.

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
    overrides: what it changes in the config.
    key: canonical JSON of the overrides: its identity in `runs.csv`.
    name: its folder, readable: `norm=group,ws=true,learning_rate=0.4`.
    structure: canonical JSON of the overrides that change the program; runs
      of one structure share a compile.
  """

  overrides: dict[str, Any]
  key: str
  name: str
  structure: str


def plan(overrides: Iterable[Overrides], only: str = "") -> list[Run]:
  """The runs of a sweep, those that share a compile being neighbours.

  Args:
    overrides: flat dicts of dotted overrides; equal ones count once.
    only: keeps the runs whose name has all of these comma-separated terms,
      e.g. `norm=group,learning_rate=0.*` (shell patterns).

  Returns:
    The runs, grouped by structure in the order of first appearance.

  Raises:
    ValueError: two runs would share a folder, or `only` leaves none.
  """
  groups: dict[str, dict[str, Run]] = {}
  by_name: dict[str, Run] = {}
  for given in overrides:
    flat = {key: _plain(value) for key, value in given.items()}
    fixed = {k: v for k, v in flat.items() if k not in TRACED}
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
  """The runs of each program, in the order given."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(run.structure, []).append(run)
  return groups


def _plain(value: Any) -> Any:
  """A NumPy scalar as the Python number it is, so that JSON can hold it."""
  return value.item() if hasattr(value, "item") else value


def _canonical(overrides: Overrides) -> str:
  return json.dumps(overrides, sort_keys=True, separators=(",", ":"))


def name_of(overrides: Overrides) -> str:
  """A folder name: short keys, and a digest where it had to be changed.

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
