"""Training: one step, the loop around it, and what a run leaves on disk."""

from typing import TYPE_CHECKING

from ws_jax.base import lazy

if TYPE_CHECKING:
  from ws_jax.train.loop import Diverged, Interrupted, train_and_evaluate

__all__ = ["Diverged", "Interrupted", "train_and_evaluate"]

# A report reads what a run left, and needs no training stack for it.
__getattr__, __dir__ = lazy.attributes(
  __name__, dict.fromkeys(__all__, "ws_jax.train.loop"), extra="train"
)
