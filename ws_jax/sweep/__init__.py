"""Sweeps: which runs there are, what trains them, and the row of each."""

from typing import TYPE_CHECKING, Any

from ws_jax.sweep.grid import Run, log_grid, plan, product, zipped

if TYPE_CHECKING:
  from ws_jax.sweep.runner import run_sweep

__all__ = ["Run", "log_grid", "plan", "product", "run_sweep", "zipped"]


def __getattr__(name: str) -> Any:
  # Reports and plans train nothing: only this name needs the training stack.
  if name != "run_sweep":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from ws_jax.sweep import runner

  return runner.run_sweep
