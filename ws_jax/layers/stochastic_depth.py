"""Stochastic depth: residual branches that are left out at random."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class StochasticDepth(nn.Module):
  """Leaves a residual branch out of a training step, for each example.

  Huang et al., 2016 (arXiv:1603.09382). The random numbers are those of the
  "dropout" stream; evaluation needs none.

  Attributes:
    rate: Part of the examples that lose the branch, from 0 to below 1.
    rescale: Whether the branches that stay are divided by `1 - rate`, so that
      the mean is that of evaluation. EfficientNet does it, NFNet does not.

  Raises:
    ValueError: the rate is out of range.

  Example:
    >>> layer = StochasticDepth(0.5)
    >>> branch = jnp.ones((4, 2, 2, 3))
    >>> rngs = {"dropout": jax.random.key(0)}
    >>> y = layer.apply({}, branch, train=True, rngs=rngs)
    >>> sorted(set(y.mean((1, 2, 3)).tolist()))
    [0.0, 2.0]
  """

  rate: float
  rescale: bool = True

  def __post_init__(self):
    if not 0 <= self.rate < 1:
      raise ValueError(
        f"a rate of stochastic depth must be at least 0 and below 1, not"
        f" {self.rate}"
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns the branch `[B, ...]`; zero for the examples that lose it."""
    if not train or not self.rate:
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    key = self.make_rng("dropout")
    kept = jax.random.bernoulli(key, jnp.float32(1 - self.rate), shape)
    if self.rescale:
      x = x / (1 - self.rate)
    return jnp.where(kept, x, jnp.zeros((), x.dtype))
