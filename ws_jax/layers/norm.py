"""Normalization layers that share one float32 core.

Every layer here subtracts a mean and divides by a standard deviation. They
differ only in which values share both, and `normalize` takes that as two
numbers: how many consecutive examples, and how many groups of channels. On an
input `[B, ..., C]`:

=========  ===================  ==================
layer      examples together    groups of channels
=========  ===================  ==================
batch      B, or a ghost batch  C
group      1                    `num_groups`
layer      1                    1
instance   1                    C
=========  ===================  ==================

`batch_channel` is the first of these and then the second, see
`ws_jax.layers.batch_channel`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.base.names import lookup
from ws_jax.layers.batch_channel import (
  BatchChannelNorm,
  EstimatedBatchChannelNorm,
)
from ws_jax.layers.normalize import normalize


class BatchNorm(nn.Module):
  """Batch normalization with a normalization batch of its own.

  `batch_size` consecutive examples (a "ghost" batch) share statistics, so that
  the batch of the optimizer and that of the normalization are two numbers. The
  running mean and biased variance, averaged over the ghost batches, are in the
  collection `batch_stats`. They are used when `train` is false, and do not
  change during `init`.

  Ioffe and Szegedy, 2015 (arXiv:1502.03167); ghost batches: Hoffer et al.,
  2017 (arXiv:1705.08741).

  Attributes:
    batch_size: Number of examples that share statistics; None for all.
    momentum: Share of the old running statistics in the new ones.
    epsilon: Number added to the variance.
    dtype: Dtype of the result; statistics and parameters are float32.
    scale_init: Initializer of `scale`.

  Example:
    >>> x = jnp.arange(8.0).reshape(4, 2)
    >>> layer = BatchNorm(batch_size=2)
    >>> variables = layer.init(jax.random.key(0), x, train=False)
    >>> y, _ = layer.apply(variables, x, train=True, mutable="batch_stats")
    >>> y.round(2)[:, 0]
    Array([-1.,  1., -1.,  1.], dtype=float32)
  """

  batch_size: int | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalizes `[B, ..., C]`; with `train`, updates `batch_stats`.

    Raises:
      ValueError: The normalization batch does not divide B.
    """
    scale, bias = _affine_params(self, x)
    shape = (x.shape[-1],)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
    if not train or self.is_initializing():
      factor = jax.lax.rsqrt(var.value + self.epsilon) * scale
      y = _channelwise(x, mean.value, factor, bias)
      return y.astype(self.dtype)
    examples = x.shape[0] if self.batch_size is None else self.batch_size
    if examples < 1 or x.shape[0] % examples:
      raise ValueError(
        f"a normalization batch of {examples} does not divide the batch of"
        f" {x.shape[0]} examples"
      )
    x = x.astype(jnp.promote_types(x.dtype, self.dtype))
    y, *stats = normalize(x, scale, bias, examples, shape[0], self.epsilon)
    for running, new in zip((mean, var), stats, strict=True):
      new = jax.lax.stop_gradient(new).mean(0)
      running.value += (1 - self.momentum) * (new - running.value)
    return y.astype(self.dtype)


class GroupNorm(nn.Module):
  """Group normalization: statistics per example and group of channels.

  Wu and He, 2018 (arXiv:1803.08494).

  Attributes:
    num_groups: Number of groups that the channels form.
    channels_per_group: Number of channels in a group, instead of `num_groups`.
      With neither there are 8 groups, which fits the 16 channels where CIFAR
      ResNets begin; ImageNet models use 32.
    epsilon: Number added to the variance.
    dtype: Dtype of the result; statistics and parameters are float32.
    scale_init: Initializer of `scale`.

  Example:
    >>> layer = GroupNorm(channels_per_group=4)
    >>> y, _ = layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 8)))
    >>> y.shape
    (2, 5, 8)
  """

  num_groups: int | None = None
  channels_per_group: int | None = None
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Normalizes `[B, ..., C]`, in training and evaluation alike.

    Raises:
      ValueError: The channels cannot form these groups, or both ways to say
        them are given.
    """
    scale, bias = _affine_params(self, x)
    groups = _count_groups(
      x.shape[-1], self.num_groups, self.channels_per_group
    )
    x = x.astype(jnp.promote_types(x.dtype, self.dtype))
    y, _, _ = normalize(x, scale, bias, 1, groups, self.epsilon)
    return y.astype(self.dtype)


class LayerNorm(GroupNorm):
  """Group normalization with one group: statistics per example.

  Not `flax.linen.LayerNorm`, which normalizes every position by itself.
  Ba et al., 2016 (arXiv:1607.06450); for convolutions as in Wu and He, 2018.
  """

  num_groups: int | None = 1


class InstanceNorm(GroupNorm):
  """Group normalization with one channel in a group: statistics per channel.

  Ulyanov et al., 2016 (arXiv:1607.08022).
  """

  channels_per_group: int | None = 1


class Affine(nn.Module):
  """A norm layer without normalization: a scale and a bias per channel.

  A model thus has the same parameters with and without normalization, its
  convolutions need no bias of their own, and a scale that starts at zero
  switches a residual branch off either way.

  Attributes:
    epsilon: Number that the other layers take; not used.
    dtype: Dtype of the result; parameters are float32.
    scale_init: Initializer of `scale`.
  """

  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Scales and shifts the channels of `[B, ..., C]`."""
    scale, bias = _affine_params(self, x)
    y = _channelwise(x, jnp.zeros_like(bias), scale, bias)
    return y.astype(self.dtype)


NORMS = {
  "batch": BatchNorm,
  "batch_channel": BatchChannelNorm,
  "batch_channel_estimated": EstimatedBatchChannelNorm,
  "group": GroupNorm,
  "instance": InstanceNorm,
  "layer": LayerNorm,
  "none": Affine,
}


# The kinds with a normalization batch, and those with groups of channels.
_BATCHED = ("batch", "batch_channel", "batch_channel_estimated")
_GROUPED = ("group", "batch_channel", "batch_channel_estimated")


@dataclasses.dataclass(frozen=True)
class NormSpec:
  """The settings of a norm, as a hashable value.

  A setting that a kind does not have is ignored, so that a sweep over kinds can
  leave the others as they are.

  Attributes:
    kind: Name of `NORMS`.
    num_groups: Number of groups of `group` and `batch_channel`; see `GroupNorm`
      for the default.
    channels_per_group: Number of channels in a group of them, instead of
      `num_groups`.
    batch_size: Normalization batch of `batch` and `batch_channel`; None for the
      whole batch.
    momentum: Share of the old running statistics in the new ones, of all kinds
      that have some.
    epsilon: Number added to the variance.

  Raises:
    ValueError: The kind is unknown, a number is out of range, or both
      `num_groups` and `channels_per_group` are given.

  Example:
    >>> NormSpec("group", num_groups=32).check(16)
    Traceback (most recent call last):
    ValueError: 16 channels cannot form 32 groups; possible: 1, 2, 4, 8, 16
  """

  kind: str = "group"
  num_groups: int | None = None
  channels_per_group: int | None = None
  batch_size: int | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5

  def __post_init__(self):
    lookup(NORMS, self.kind, "norm")
    for name in ("num_groups", "channels_per_group", "batch_size"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 <= self.momentum < 1:
      raise ValueError(
        f"momentum must be at least 0 and below 1, not {self.momentum}"
      )
    if self.epsilon < 0:
      raise ValueError(f"epsilon must not be negative, as is {self.epsilon}")
    _refuse_both(self.num_groups, self.channels_per_group)

  def check(self, channels: int) -> None:
    """Refuses channels that cannot form the groups, before anything compiles.

    Args:
      channels: Number of channels.

    Raises:
      ValueError: The channels cannot form the groups; the message says which
        numbers are possible.
    """
    if self.kind in _GROUPED:
      _count_groups(channels, self.num_groups, self.channels_per_group)

  def layer(
    self,
    *,
    dtype: DTypeLike = jnp.float32,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
    name: str | None = None,
  ) -> nn.Module:
    """Returns a layer of this kind, to be called as `layer(x, train=...)`.

    Args:
      dtype: Dtype of the result.
      scale_init: Initializer of `scale`.
      name: Name of the layer in its module.
    """
    own: dict[str, Any] = {}
    if self.kind in _BATCHED:
      own |= {"batch_size": self.batch_size, "momentum": self.momentum}
    if self.kind in _GROUPED:
      own |= {
        "num_groups": self.num_groups,
        "channels_per_group": self.channels_per_group,
      }
    return NORMS[self.kind](
      epsilon=self.epsilon,
      dtype=dtype,
      scale_init=scale_init,
      name=name,
      **own,
    )


def _affine_params(module, x):
  """Returns the parameters `scale` and `bias` of a layer, float32 `[C]`."""
  shape = (x.shape[-1],)
  scale = module.param("scale", module.scale_init, shape, jnp.float32)
  bias = module.param("bias", nn.initializers.zeros, shape, jnp.float32)
  return scale, bias


def _channelwise(x, mean, factor, bias):
  """Returns `(x - mean) * factor + bias` in float32, or in x's wider dtype.

  Args:
    x: Array `[B, ..., C]`.
    mean: Array `[C]`, as `factor` and `bias` are.
    factor: Factor of each channel.
    bias: Bias of each channel.
  """
  shape = (1,) * (x.ndim - 1) + (-1,)
  mean, factor, bias = (v.reshape(shape) for v in (mean, factor, bias))
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return (x.astype(wide) - mean) * factor + bias


def _count_groups(channels, num_groups, channels_per_group):
  """Returns the number of groups, or raises a ValueError that says why not."""
  _refuse_both(num_groups, channels_per_group)
  if channels_per_group is not None:
    asked, what = channels_per_group, "groups of {} channels"
  else:
    asked, what = 8 if num_groups is None else num_groups, "{} groups"
  if asked < 1 or channels % asked:
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    raise ValueError(
      f"{channels} channels cannot form {what.format(asked)};"
      f" possible: {', '.join(map(str, divisors))}"
    )
  return asked if channels_per_group is None else channels // asked


def _refuse_both(num_groups, channels_per_group):
  if num_groups is not None and channels_per_group is not None:
    raise ValueError(
      "num_groups and channels_per_group say the same thing; give one, not"
      f" both {num_groups} and {channels_per_group}"
    )
