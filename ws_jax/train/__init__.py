"""Training: one step, the loop around it, and what a run leaves on disk."""

from typing import TYPE_CHECKING

from ws_jax.base import lazy

if TYPE_CHECKING:
  from ws_jax.train.loop import Diverged, Interrupted, train_and_evaluate
  from ws_jax.train.trained import Trained, load_run

__all__ = [
  "Diverged",
  "Interrupted",
  "Trained",
  "load_run",
  "train_and_evaluate",
]

# A report reads what a run left, and needs no training stack for it.
__getattr__, __dir__ = lazy.attributes(
  __name__,
  {
    "Diverged": "ws_jax.train.loop",
    "Interrupted": "ws_jax.train.loop",
    "Trained": "ws_jax.train.trained",
    "load_run": "ws_jax.train.trained",
    "train_and_evaluate": "ws_jax.train.loop",
  },
  extra="train",
)
