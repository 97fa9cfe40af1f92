"""Squeeze-and-excitation: a factor for each channel, from the whole image."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# Variance 2 / fan-out, as the 1x1 convolutions that others write this with.
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class SqueezeExcite(nn.Module):
  """Multiplies each channel by a number between 0 and `gain`.

  Hu et al., 2017 (arXiv:1709.01507). Both layers are dense, so Weight
  Standardization does not take them: what they make is not normalized.

  Attributes:
    hidden: Number of units between the two dense layers.
    activation: Function between them.
    gain: Factor on the result; 2 keeps the variance at initialization.

  Example:
    >>> layer, images = SqueezeExcite(hidden=4), jnp.ones((2, 5, 5, 8))
    >>> y, variables = layer.init_with_output(jax.random.key(0), images)
    >>> y.shape, variables["params"]["squeeze"]["kernel"].shape
    ((2, 5, 5, 8), (8, 4))
  """

  hidden: int
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  gain: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns `x` `[B, ..., C]` with its channels scaled.

    The mean and the factors are float32, or the dtype of `x` if that is wider.
    """
    inner = tuple(range(1, x.ndim - 1))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = x.mean(inner, dtype=wide, keepdims=True)
    dense = lambda units, name: nn.Dense(
      units, kernel_init=_he_fan_out, name=name
    )
    y = self.activation(dense(self.hidden, "squeeze")(y))
    y = dense(x.shape[-1], "excite")(y)
    return x * (self.gain * nn.sigmoid(y)).astype(x.dtype)
