"""Weight Standardization for JAX and Flax.

    import ws_jax

    def loss(raw, batch):
      params = ws_jax.weight_standardize(raw)  # the effective parameters
      return objective(model.apply({"params": params}, batch))

The raw parameters are the only state. `ws_jax.linen` and `ws_jax.nnx` offer the
same as modules.

- The function: `standardize` for one array, `weight_standardize` for a tree.
- Definitions: `CONVENTIONS`, `Convention`, `get_convention`, `BIT`.
- Selectors of leaves (`Selector`; `Where` is one, or globs): `conv_kernels`,
  `dense_kernels`, `named_kernels`, `matching`, `matching_regex`,
  `all_but_last`.
- Rules for the fan-in axes (`Axes`): `fan_in_axes`, `all_but`, `axes_by_path`.
- Tools: `describe` shows what is done to each leaf, `fold` makes plain weights
  for deployment, `from_plain` starts from a model trained without WS, and
  `init_gains` makes the gains of the scaled conventions.
- For optax: `centralize_gradients`, `kernel_decay_mask`, and
  `monitor_effective_learning_rates`, whose `EffectiveLearningRates` are read by
  `effective_learning_rates`.
"""

from typing import TYPE_CHECKING

from ws_jax.base import lazy
from ws_jax.core.conventions import BIT, CONVENTIONS, Convention, get_convention
from ws_jax.core.describe import describe
from ws_jax.core.fold import fold
from ws_jax.core.from_plain import from_plain
from ws_jax.core.kernels import (
  Axes,
  Selector,
  Where,
  all_but,
  all_but_last,
  axes_by_path,
  conv_kernels,
  dense_kernels,
  fan_in_axes,
  matching,
  matching_regex,
  named_kernels,
)
from ws_jax.core.standardize import init_gains, standardize, weight_standardize

if TYPE_CHECKING:
  from ws_jax.gradients import (
    EffectiveLearningRates,
    centralize_gradients,
    effective_learning_rates,
    kernel_decay_mask,
    monitor_effective_learning_rates,
  )

__version__ = "0.1.0"

__all__ = [
  "BIT",
  "CONVENTIONS",
  "Axes",
  "Convention",
  "EffectiveLearningRates",
  "Selector",
  "Where",
  "all_but",
  "all_but_last",
  "axes_by_path",
  "centralize_gradients",
  "conv_kernels",
  "dense_kernels",
  "describe",
  "effective_learning_rates",
  "fan_in_axes",
  "fold",
  "from_plain",
  "get_convention",
  "init_gains",
  "kernel_decay_mask",
  "matching",
  "matching_regex",
  "monitor_effective_learning_rates",
  "named_kernels",
  "standardize",
  "weight_standardize",
]

# Importing this package imports jax and nothing heavier; what needs optax waits
# until it is asked for.
__getattr__, __dir__ = lazy.attributes(
  __name__,
  dict.fromkeys(
    (
      "EffectiveLearningRates",
      "centralize_gradients",
      "effective_learning_rates",
      "kernel_decay_mask",
      "monitor_effective_learning_rates",
    ),
    "ws_jax.gradients",
  ),
)
