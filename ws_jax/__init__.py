"""Weight Standardization for JAX and Flax.

    import ws_jax

    def loss(raw, batch):
      params = ws_jax.weight_standardize(raw)  # the effective parameters
      return objective(model.apply({"params": params}, batch))

The raw parameters are the only state. `ws_jax.linen` has the same as modules.
"""

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
  "conv_kernels",
  "dense_kernels",
  "describe",
  "fan_in_axes",
  "fold",
  "from_plain",
  "get_convention",
  "init_gains",
  "matching",
  "matching_regex",
  "standardize",
  "weight_standardize",
]
