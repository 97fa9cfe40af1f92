"""Measurements of a network: its loss, its gradient and its activations.

They are pure functions over any loss and any pytree of parameters
(`activations` over any Flax Linen model), so that they can be tested on
problems whose answer is known, and used on networks that this package does not
train.
"""

from ws_jax.diagnostics.activations import (
  ChannelStats,
  activation_stats,
  capture,
  channel_stats,
  norm_layers,
)
from ws_jax.diagnostics.landscape import (
  AlongGradient,
  Sharpness,
  along_gradient,
  in_own_units,
  sharpness,
)
from ws_jax.diagnostics.removed import RemovedTerms, removed_terms

__all__ = [
  "AlongGradient",
  "ChannelStats",
  "RemovedTerms",
  "Sharpness",
  "activation_stats",
  "along_gradient",
  "capture",
  "channel_stats",
  "in_own_units",
  "norm_layers",
  "removed_terms",
  "sharpness",
]
