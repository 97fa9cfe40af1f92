"""Batch-channel normalization, with real and with estimated statistics.

Qiao et al., 2019 (arXiv:1911.09738; in arXiv:1903.10520 v2 for micro-batches).
Each channel is normalized over the batch, then each group of channels of each
example. The first has a scale and a bias for each channel, the second for each
group.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ws_jax.layers.normalize import normalize


class BatchChannelNorm(nn.Module):
  """Batch normalization, then normalization of groups of channels.

  The statistics of the batch are its own (`estimate=False`), and those of
  evaluation a running average; or they are that average in training, too, moved
  towards the batch first, and then taken for constants: no gradient goes
  through them. So a batch as small as one example will do. On inputs whose
  distribution stands still, the average converges to its mean and variance, and
  the second form to the first.

  As in the authors' code, the running variance moves towards the squared
  distance from the old running mean, which is larger than the variance of the
  batch as long as the mean is still on its way.

  Attributes:
    estimate: Whether training uses the running statistics.
    num_groups: Number of groups of channels; None for 8.
    channels_per_group: Number of channels in a group, instead of `num_groups`.
    batch_size: Number of consecutive examples that share statistics; None for
      all. Not used with `estimate`, which sees all examples at once.
    momentum: Part of the old running statistics in the new ones.
    epsilon: Number that is added to both variances.
    dtype: Dtype of the result; statistics and parameters are float32.
    scale_init: Initializer of `group_scale`, the last factor.

  Raises:
    ValueError: the channels cannot be divided as asked, or the normalization
      batch does not divide the batch.

  Example:
    >>> layer, x = BatchChannelNorm(num_groups=2), jnp.ones((4, 5, 5, 8))
    >>> variables = layer.init(jax.random.key(0), x, train=False)
    >>> params = variables["params"]
    >>> {name: value.shape for name, value in sorted(params.items())}
    {'bias': (8,), 'group_bias': (2,), 'group_scale': (2,), 'scale': (8,)}
  """

  estimate: bool = False
  num_groups: int | None = None
  channels_per_group: int | None = None
  batch_size: int | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalizes `[B, ..., C]`; with `train`, updates `batch_stats`."""
    channels = x.shape[-1]
    groups = self._groups(channels)
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    scale = self.param("scale", ones, (channels,), jnp.float32)
    bias = self.param("bias", zeros, (channels,), jnp.float32)
    group_scale = self.param(
      "group_scale", self.scale_init, (groups,), jnp.float32
    )
    group_bias = self.param("group_bias", zeros, (groups,), jnp.float32)
    x = x.astype(jnp.promote_types(x.dtype, self.dtype))
    y = self._batch_norm(x, scale, bias, train)
    spread = lambda value: jnp.repeat(value, channels // groups)
    y, _, _ = normalize(
      y, spread(group_scale), spread(group_bias), 1, groups, self.epsilon
    )
    return y.astype(self.dtype)

  def _batch_norm(self, x, scale, bias, train):
    shape = (x.shape[-1],)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
    moves = train and not self.is_initializing()
    if moves and not self.estimate:
      examples = self._examples(x.shape[0])
      y, *stats = normalize(x, scale, bias, examples, shape[0], self.epsilon)
      self._move(mean, lax.stop_gradient(stats[0]).mean(0))
      self._move(var, lax.stop_gradient(stats[1]).mean(0))
      return y
    over = lambda value: value.reshape((1,) * (x.ndim - 1) + shape)
    if moves:
      seen = lax.stop_gradient(x).astype(
        jnp.promote_types(x.dtype, jnp.float32)
      )
      axes = tuple(range(x.ndim - 1))
      squares = jnp.square(seen - over(mean.value)).mean(axes)
      self._move(mean, seen.mean(axes))
      self._move(var, squares)
    factor = lax.rsqrt(var.value + self.epsilon) * scale
    y = (x - over(mean.value)) * over(factor) + over(bias)
    return y.astype(x.dtype)

  def _move(self, running: Any, new: jax.Array) -> None:
    running.value += (1 - self.momentum) * (new - running.value)

  def _examples(self, batch: int) -> int:
    examples = batch if self.batch_size is None else self.batch_size
    if batch % examples:
      raise ValueError(
        f"a normalization batch of {examples} does not divide the batch of"
        f" {batch} examples"
      )
    return examples

  def _groups(self, channels: int) -> int:
    per_group = self.channels_per_group
    groups = self.num_groups or 8
    if channels % (groups if per_group is None else per_group):
      asked = f"{groups} groups"
      if per_group is not None:
        asked = f"groups of {per_group} channels"
      raise ValueError(f"{channels} channels cannot form {asked}")
    return groups if per_group is None else channels // per_group


class EstimatedBatchChannelNorm(BatchChannelNorm):
  """`BatchChannelNorm` with running statistics in training, too."""

  estimate: bool = True
