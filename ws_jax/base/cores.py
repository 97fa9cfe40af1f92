"""The cores of a processor that this process may use."""

import os


def count() -> int | None:
  """Returns the number of cores that this process may use; None if unknown."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()
