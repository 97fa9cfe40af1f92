"""Counts seconds by what they went into, with compiling kept apart."""

import contextlib
import functools
import time
import types
from collections.abc import Iterator
from typing import Any

import jax

# Tracing is left out: its events nest, so that their sum counts twice.
_COMPILE_EVENTS = (
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)


class Clock:
  """Seconds by what they went into, with compiling kept apart.

  Args:
    runs: Number of runs of one program that share the seconds.

  Example:
    >>> clock = Clock()
    >>> with clock("train"):
    ...   pass
    >>> sorted(clock.seconds)
    ['compile', 'eval', 'train']
  """

  def __init__(self, runs: int = 1):
    self._runs = runs
    self.seconds = {"compile": 0.0, "train": 0.0, "eval": 0.0}

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Counts a `with` block as `name`, less what was compiled in it."""
    _listen()
    began, compiled = time.monotonic(), _compiled.seconds
    try:
      yield
    finally:
      compiling = _compiled.seconds - compiled
      spent = time.monotonic() - began - compiling
      self.seconds["compile"] += compiling / self._runs
      self.seconds[name] += spent / self._runs


# JAX tells of each compilation, and has no way to stop listening.
_compiled = types.SimpleNamespace(seconds=0.0)


@functools.cache
def _listen() -> None:
  def add(event: str, duration_secs: float, **_: Any) -> None:
    if event in _COMPILE_EVENTS:
      _compiled.seconds += duration_secs

  jax.monitoring.register_event_duration_secs_listener(add)
