"""Weight Standardization for JAX and Flax.

    import ws_jax

    def loss(raw, batch):
      params = ws_jax.weight_standardize(raw)  # the effective parameters
      return objective(model.apply({"params": params}, batch))

The raw parameters are the only state. `ws_jax.linen` has the same as modules.
"""

from ws_jax.conventions import CONVENTIONS, Convention, get_convention
from ws_jax.kernels import conv_kernels, dense_kernels, fan_in_axes
from ws_jax.standardize import (
  fold,
  init_gains,
  standardize,
  weight_standardize,
)

__version__ = "0.1.0"

__all__ = [
  "CONVENTIONS",
  "Convention",
  "conv_kernels",
  "dense_kernels",
  "fan_in_axes",
  "fold",
  "get_convention",
  "init_gains",
  "standardize",
  "weight_standardize",
]
