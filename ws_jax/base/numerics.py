"""Facts of a machine that decide the last bits of what a run computes."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

# Each as it is named in `status.json` and `runs.csv`, and in words. The same
# config and seed give the same bits where all of them are equal.
FACTS = {
  "backend": "backend",
  "device": "devices",
  "cpu_count": "CPU cores",
  "native": "native code",
  "xla_flags": "XLA_FLAGS",
  "stack": "runs in one program",
  "versions.jax": "jax",
  "versions.jaxlib": "jaxlib",
}


def of(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns the facts that a status, or a row of a sweep, states.

  Args:
    record: Content of `status.json`, or a row of `runs.csv`.

  Example:
    >>> of({"cpu_count": 2, "versions": {"jax": "0.10.2"}, "status": "done"})
    {'cpu_count': '2', 'versions.jax': '0.10.2'}
  """
  versions = record.get("versions")
  versions = versions if isinstance(versions, Mapping) else {}
  flat = {**record, **{f"versions.{k}": x for k, x in versions.items()}}
  found = {key: flat[key] for key in FACTS if flat.get(key) is not None}
  return {key: _text(value) for key, value in found.items()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns in words what a run that goes on finds different.

  Args:
    before: Facts of the earlier part, as `of` returns them.
    now: Facts of this process.

  Example:
    >>> changes({"cpu_count": "2"}, {"cpu_count": "1", "backend": "cpu"})
    ['CPU cores 2, now 1']
  """
  return [
    f"{FACTS[key]} {before[key] or 'none'}, now {now[key] or 'none'}"
    for key in FACTS
    if key in before and key in now and before[key] != now[key]
  ]


def mixed(records: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns a line for each fact in which the runs of a sweep differ.

  Example:
    >>> mixed([{"cpu_count": 1}, {"cpu_count": 2}, {"cpu_count": 2}])
    ['The runs differ in CPU cores: 1 (1 run), 2 (2 runs).']
  """
  counts: dict[str, collections.Counter[str]] = {}
  for record in records:
    for key, value in of(record).items():
      counts.setdefault(key, collections.Counter())[value] += 1
  lines = []
  for key, name in FACTS.items():
    seen = counts.get(key, {})
    if len(seen) > 1:
      each = ", ".join(
        f"{value or 'none'} ({n} run{'s' * (n > 1)})"
        for value, n in sorted(seen.items())
      )
      lines.append(f"The runs differ in {name}: {each}.")
  return lines


def _text(value: Any) -> str:
  return (
    " ".join(map(str, value))
    if isinstance(value, (list, tuple))
    else str(value)
  )
