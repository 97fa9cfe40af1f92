"""Weight Standardization for JAX and Flax.

    import ws_jax

    def loss(raw, batch):
      params = ws_jax.weight_standardize(raw)  # the effective parameters
      return objective(model.apply({"params": params}, batch))

The raw parameters are the only state. `ws_jax.linen` and `ws_jax.nnx` have the
same as modules.
"""

from typing import TYPE_CHECKING, Any

from ws_jax.conventions import BIT, CONVENTIONS, Convention, get_convention
from ws_jax.describe import describe
from ws_jax.kernels import (
  Axes,
  Selector,
  all_but,
  all_but_last,
  axes_by_path,
  conv_kernels,
  dense_kernels,
  fan_in_axes,
  matching,
  matching_regex,
)
from ws_jax.plain import from_plain
from ws_jax.standardize import (
  fold,
  init_gains,
  standardize,
  weight_standardize,
)

if TYPE_CHECKING:
  from ws_jax.gradients import centralize_gradients, kernel_decay_mask

__version__ = "0.1.0"

__all__ = [
  "BIT",
  "CONVENTIONS",
  "Axes",
  "Convention",
  "Selector",
  "all_but",
  "all_but_last",
  "axes_by_path",
  "centralize_gradients",
  "conv_kernels",
  "dense_kernels",
  "describe",
  "fan_in_axes",
  "fold",
  "from_plain",
  "get_convention",
  "init_gains",
  "kernel_decay_mask",
  "matching",
  "matching_regex",
  "standardize",
  "weight_standardize",
]

_WITH_OPTAX = ("centralize_gradients", "kernel_decay_mask")


# Importing this package imports jax and nothing heavier; what needs optax waits
# until it is asked for.
def __getattr__(name: str) -> Any:
  if name not in _WITH_OPTAX:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from ws_jax import gradients

  return getattr(gradients, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_WITH_OPTAX})
