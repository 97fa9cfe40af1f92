"""Networks for keyword spotting, on log-mel features `[B, frames, bands]`.

- `res8`, `res15`, `res26` and their `_narrow` forms: 2-D residual networks of
  one width (Tang and Lin, 2018, arXiv:1710.10361). Each layer is a convolution,
  a ReLU, and then the norm.
- `tc_resnet8`, `tc_resnet14`: 1-D residual networks over time, for which the
  bands are channels (Choi et al., 2019, arXiv:1904.03814).
- `ds_cnn_s`, `_m`, `_l`: depthwise separable 2-D convolutions (Zhang et al.,
  2017, arXiv:1711.07128).

A frame whose bands are all 0 is padding and has no part in the mean over time
at the end; a norm of groups or layers does see it. Padding is the same on both
sides, or one more at the end for an even kernel. Convolutions have no bias; the
head is an `nn.Dense` named `head`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.base import keys
from ws_jax.base.names import lookup
from ws_jax.layers.convolve import conv_general_dilated
from ws_jax.layers.norm import NormSpec
from ws_jax.models import common

_RES = {
  "res8": {"layers": 6, "pool": (4, 3)},
  "res15": {"layers": 13, "dilated": True},
  "res26": {"layers": 24, "pool": (2, 2)},
}
# The channels of some cannot form 8 groups: 45 are 9 x 5, 172 are 4 x 43, 276
# are 12 x 23, and 19 is prime.
_WIDE = {
  name: {"channels": 45, "defaults": {"num_groups": 9}, **shape}
  for name, shape in _RES.items()
}
_NARROW = {
  f"{name}_narrow": {"channels": 19, "defaults": {"num_groups": 1}, **shape}
  for name, shape in _RES.items()
}
_TC_RESNET = {
  "tc_resnet8": {"channels": (16, 24, 32, 48)},
  "tc_resnet14": {"channels": (16, 24, 24, 32, 32, 48, 48)},
}
_DS_CNN = {
  "ds_cnn_s": {"channels": 64, "layers": 4, "strides": ((2, 2), (1, 1))},
  "ds_cnn_m": {
    "channels": 172,
    "layers": 4,
    "strides": ((2, 1), (2, 2)),
    "defaults": {"num_groups": 4},
  },
  "ds_cnn_l": {
    "channels": 276,
    "layers": 5,
    "strides": ((2, 1), (2, 2)),
    "defaults": {"num_groups": 12},
  },
}
MODELS: dict[str, dict[str, Any]] = _WIDE | _NARROW | _TC_RESNET | _DS_CNN
NATIVE = True
KEYS = {
  "width": keys.number(1.0, "factor on the number of channels", above=0),
  "dropout": keys.number(0.0, "dropout in front of the head", below=1),
  **common.NORM_KEYS,
  **common.DEPTHWISE_KEYS,
  **common.DTYPE_KEYS,
}

# Variance 2 / fan-in (He et al., 2015, arXiv:1502.01852). Not 2 / fan-out: that
# of a depthwise kernel counts all channels, although each feeds one alone.
_he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def create(
  name: str,
  *,
  num_outputs: int,
  norm: NormSpec | None = None,
  width: float = 1.0,
  dropout: float = 0.0,
  dtype: DTypeLike = jnp.float32,
) -> nn.Module:
  """Makes a model of a published shape; nothing is computed or compiled.

  Args:
    name: A name of `MODELS`.
    num_outputs: Number of logits for each clip.
    norm: Normalization, everywhere in the model; None: group normalization
      with a number of groups that suits the model.
    width: Factor on the number of channels; 1.5 makes TC-ResNet8-1.5.
    dropout: Share of the features in front of the head that training drops.
    dtype: Dtype of the activations; parameters and logits are float32.

  Raises:
    ValueError: an unknown name, a width that leaves no channel, or a number of
      groups that the channels cannot form.

  Example:
    >>> model = create("tc_resnet8", num_outputs=12)
    >>> init = lambda x: model.init(jax.random.key(0), x, train=False)
    >>> variables = jax.eval_shape(init, jnp.zeros((2, 101, 40)))
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    65180
  """
  shape = dict(lookup(MODELS, name, "model"))
  if num_outputs < 1:
    raise ValueError(f"num_outputs must be at least 1, not {num_outputs}")
  published, own = shape.pop("channels"), shape.pop("defaults", {})
  if norm is None:
    norm = NormSpec(num_groups=own.get("num_groups"))
  each = published if isinstance(published, tuple) else (published,)
  channels = tuple(round(one * width) for one in each)
  if min(channels) < 1:
    raise ValueError(
      f"width {width} leaves none of the {min(each)} channels of {name}"
    )
  for one in channels:
    norm.check(one)
  shared = {
    "num_outputs": num_outputs,
    "norm": norm,
    "dropout": dropout,
    "dtype": jnp.dtype(dtype),
  }
  if name in _TC_RESNET:
    return TCResNet(channels=channels, **shared)
  family = DSCNN if name in _DS_CNN else Res
  return family(channels=channels[0], **shape, **shared)


class Res(nn.Module):
  """A 2-D residual network of one width: `res8`, `res15`, `res26`.

  Attributes:
    num_outputs: Number of logits for each clip.
    channels: Channels of each layer.
    layers: Number of layers after the first; every second ends a block.
    pool: Frames and bands that are averaged into one after the first layer.
    dilated: Whether the kernels widen, twice as far every third layer.
    norm: Normalization.
    dropout: Share of the features in front of the head that training drops.
    dtype: Dtype of the activations.
  """

  num_outputs: int
  channels: int
  layers: int
  pool: tuple[int, int] = (1, 1)
  dilated: bool = False
  norm: NormSpec = NormSpec()
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
    """Maps features `[B, frames, bands]` to logits `[B, num_outputs]`."""
    x = features[..., None].astype(self.dtype)
    x = nn.relu(_conv(self, self.channels, (3, 3), "conv0")(x))
    if self.pool != (1, 1):
      x = _mean_pool(x, *self.pool)
    block_input = x
    for i in range(1, self.layers + 1):
      dilation = 2 ** ((i - 1) // 3) if self.dilated else 1
      conv = _conv(
        self, self.channels, (3, 3), f"conv{i}", dilation=(dilation, dilation)
      )
      x = nn.relu(conv(x))
      if i % 2 == 0:
        x = block_input = x + block_input
      x = _norm(self, f"norm{i}")(x, train=train)
    return _head(self, x, features, self.pool[0], train)


class TCResNet(nn.Module):
  """A 1-D residual network over time: `tc_resnet8`, `tc_resnet14`.

  Attributes:
    num_outputs: Number of logits for each clip.
    channels: Channels of the first layer and of each block; a block that
      changes their number halves the frames.
    norm: Normalization.
    dropout: Share of the features in front of the head that training drops.
    dtype: Dtype of the activations.
  """

  num_outputs: int
  channels: tuple[int, ...]
  norm: NormSpec = NormSpec()
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
    """Maps features `[B, frames, bands]` to logits `[B, num_outputs]`."""
    first, *rest = self.channels
    x = features.astype(self.dtype)
    x = self._layer(x, first, 3, 1, "conv0", train)
    total_stride = 1
    for i, channels in enumerate(rest, 1):
      stride = 1 if channels == x.shape[-1] else 2
      total_stride *= stride
      name = f"block{i}"
      shortcut = x
      if stride == 2:
        shortcut = self._layer(
          x, channels, 1, 2, f"{name}_conv_shortcut", train
        )
      y = self._layer(x, channels, 9, stride, f"{name}_conv1", train)
      y = self._layer(y, channels, 9, 1, f"{name}_conv2", train, relu=False)
      x = nn.relu(y + shortcut)
    return _head(self, x, features, total_stride, train)

  def _layer(self, x, channels, size, stride, name, train, relu=True):
    """Convolves over time and normalizes."""
    x = _conv(self, channels, (size,), name, strides=(stride,))(x)
    x = _norm(self, name.replace("conv", "norm"))(x, train=train)
    return nn.relu(x) if relu else x


class DSCNN(nn.Module):
  """Depthwise separable convolutions: `ds_cnn_s`, `_m` and `_l`.

  Attributes:
    num_outputs: Number of logits for each clip.
    channels: Channels of each layer.
    layers: Number of depthwise separable layers.
    strides: Strides over frames and bands of the first convolution and of the
      first depthwise one; all later ones have none.
    norm: Normalization, after each convolution, depthwise or not.
    dropout: Share of the features in front of the head that training drops.
    dtype: Dtype of the activations.
  """

  num_outputs: int
  channels: int
  layers: int
  strides: tuple[tuple[int, int], tuple[int, int]]
  norm: NormSpec = NormSpec()
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
    """Maps features `[B, frames, bands]` to logits `[B, num_outputs]`."""
    channels = self.channels
    x = features[..., None].astype(self.dtype)
    x = _conv(self, channels, (10, 4), "conv0", strides=self.strides[0])(x)
    x = nn.relu(_norm(self, "norm0")(x, train=train))
    for i in range(1, self.layers + 1):
      depthwise = _conv(
        self,
        channels,
        (3, 3),
        f"depthwise_conv{i}",
        strides=self.strides[1] if i == 1 else (1, 1),
        groups=channels,
      )
      x = _norm(self, f"depthwise_norm{i}")(depthwise(x), train=train)
      x = _conv(self, channels, (1, 1), f"conv{i}")(nn.relu(x))
      x = nn.relu(_norm(self, f"norm{i}")(x, train=train))
    stride = self.strides[0][0] * self.strides[1][0]
    return _head(self, x, features, stride, train)


def _mean_pool(x: jax.Array, frames: int, bands: int) -> jax.Array:
  """Averages windows that do not overlap; drops what is left at the ends.

  XLA's CPU backend takes 20 times as long for the gradient of `nn.avg_pool`.
  """
  rows, columns = x.shape[1] // frames, x.shape[2] // bands
  x = x[:, : rows * frames, : columns * bands]
  shape = (x.shape[0], rows, frames, columns, bands, x.shape[-1])
  return x.reshape(shape).mean((2, 4))


def _conv(
  model: Any,
  channels: int,
  size: tuple[int, ...],
  name: str,
  *,
  strides: Sequence[int] | None = None,
  dilation: Sequence[int] | None = None,
  groups: int = 1,
) -> nn.Conv:
  """Returns a convolution without bias; an input of zeros lies around."""
  dilation = dilation or (1,) * len(size)
  around = [d * (n - 1) for n, d in zip(size, dilation, strict=True)]
  return nn.Conv(
    channels,
    size,
    strides or (1,) * len(size),
    padding=[(pad // 2, pad - pad // 2) for pad in around],
    kernel_dilation=dilation,
    feature_group_count=groups,
    use_bias=False,
    dtype=model.dtype,
    conv_general_dilated=conv_general_dilated,
    kernel_init=_he_fan_in,
    name=name,
  )


def _norm(model: Any, name: str) -> nn.Module:
  return model.norm.layer(dtype=model.dtype, name=name)


def _head(
  model: Any, x: jax.Array, features: jax.Array, stride: int, train: bool
) -> jax.Array:
  """Returns logits from the mean over the frames that are no padding.

  Args:
    model: Module whose layers these are.
    x: Activations, `[B, frames / stride, ..., channels]`.
    features: Input of the model, which shows what is padding.
    stride: Frames of the input for one of `x`.
    train: Whether this is a training step.
  """
  x = x.astype(jnp.float32)
  if x.ndim == 4:
    x = x.mean(2)
  heard = jnp.any(features != 0, axis=-1)[:, ::stride][:, : x.shape[1]]
  weights = heard.astype(jnp.float32)[..., None]
  x = (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
  x = nn.Dropout(model.dropout, deterministic=not train)(x)
  return nn.Dense(model.num_outputs, name="head")(x)
