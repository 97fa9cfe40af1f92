"""Sweeps: which runs there are, what trains them, and the row of each."""

from typing import TYPE_CHECKING

from ws_jax.base import lazy
from ws_jax.sweep.grid import Run, log_grid, plan, product, zipped

if TYPE_CHECKING:
  from ws_jax.sweep.runner import run_sweep

__all__ = ["Run", "log_grid", "plan", "product", "run_sweep", "zipped"]

# Plans and reports train nothing: only this name needs the training stack.
__getattr__, __dir__ = lazy.attributes(
  __name__, {"run_sweep": "ws_jax.sweep.runner"}, extra="train"
)
