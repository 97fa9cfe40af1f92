"""The residual network and its block, as Flax modules.

`ws_jax.models.resnet` has the published shapes by name. Version 1 normalizes
after each convolution and ends a block with a ReLU (He et al., 2015,
arXiv:1512.03385); version 2 normalizes before, and nothing stands in the way of
its shortcut (He et al., 2016, arXiv:1603.05027). Convolutions have no bias,
their kernels are plain `nn.Conv` parameters, and the head is an `nn.Dense`
named `head`: Weight Standardization goes in front of `apply`.

Strided convolutions and the pool pad both sides alike, as the published PyTorch
models do; `SAME` pads the far side only and shifts the image by a pixel.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ws_jax.layers.convolve import conv_general_dilated
from ws_jax.layers.norm import NormSpec
from ws_jax.layers.pad import pad_zeros
from ws_jax.layers.stochastic_depth import StochasticDepth
from ws_jax.models import blocks

# Variance 2 / fan-out: He et al., 2015 (arXiv:1502.01852), backward form.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
  """A residual network; `resnet.create_model` makes the published ones.

  Attributes:
    num_classes: Number of logits for each example.
    block_sizes: Number of blocks in each stage; a stage halves the image (but
      not the first) and doubles the channels.
    channels: Number of channels of the first stage.
    bottleneck: Whether blocks are 1x1, 3x3, 1x1 with 4 times the channels at
      the end, and not 3x3, 3x3. The stride is on the 3x3.
    stem: `cifar` (3x3), `half` (3x3 with stride 2, which makes small images a
      quarter of the work) or `imagenet` (7x7 with stride 2, then a max pool).
    stem_channels: Number of channels of the stem; None for `channels`.
    norm: Normalization.
    version: 1 (post-activation) or 2 (pre-activation).
    zero_init_last: Whether each block starts as its shortcut. In version 1 the
      last scale of each block starts at zero (Goyal et al., 2017,
      arXiv:1706.02677). A block of version 2 ends with a convolution, whose
      zero kernel could not be standardized, and behind a zero scale its ReLU
      would pass no gradient ever: there the block is multiplied by a learnt
      number that starts at zero (De and Smith, 2020, arXiv:2002.10444).
    same_padding: Whether convolutions and pool are padded as TensorFlow does.
    dropout: Rate of dropout before the last convolution of each block
      (Zagoruyko and Komodakis, 2016, arXiv:1605.07146).
    stochastic_depth: Rate at which the last block is left out of a training
      step; it rises linearly over the blocks.
    dtype: Dtype of the activations.
    remat: Whether blocks are computed a second time in the backward pass.
    remat_keep: What of them is kept all the same, a name in `blocks.POLICIES`.
    scan: Whether the equal blocks of a stage, all but its first, are compiled
      once, as a loop.
  """

  num_classes: int
  block_sizes: tuple[int, ...]
  channels: int
  bottleneck: bool = False
  stem: str = "cifar"
  norm: NormSpec = NormSpec()
  version: int = 1
  zero_init_last: bool = False
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  stem_channels: int | None = None
  same_padding: bool = False
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  remat_keep: str = "nothing"
  scan: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits, float32 `[B, num_classes]`, of images `[B, H, W, C]`."""
    block = Block
    if self.remat:
      policy = blocks.POLICIES[self.remat_keep]
      block = nn.remat(Block, static_argnums=(2,), policy=policy)
    x = self._stem(images.astype(self.dtype), train)
    for stage, size in enumerate(self.block_sizes):
      names = [f"stage{stage + 1}_block{i + 1}" for i in range(size)]
      loops = self.scan and size > 2 and not self.is_initializing()
      for i, name in enumerate(names[:1] if loops else names):
        x = block(**self._settings(stage, i), name=name)(x, train)
      if loops:
        one = Block(**self._settings(stage, 1), parent=None)
        how: Any = {"remat": self.remat, "keep": self.remat_keep}
        x = blocks.scan(self, one, names[1:], x, train, **how)
    if self.version == 2:
      x = self.norm.layer(dtype=self.dtype, name="norm")(x, train=train)
      x = nn.relu(x)
    x = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    return nn.Dense(self.num_classes, name="head")(x)

  def _settings(self, stage: int, i: int) -> dict[str, Any]:
    """Returns the attributes of block `i` of a stage."""
    before = sum(self.block_sizes[:stage]) + i
    return {
      "channels": self.channels * 2**stage,
      "stride": 2 if stage and not i else 1,
      "bottleneck": self.bottleneck,
      "version": self.version,
      "norm": self.norm,
      "zero_init_last": self.zero_init_last,
      "dtype": self.dtype,
      "same_padding": self.same_padding,
      "dropout": self.dropout,
      "stochastic_depth": self.stochastic_depth
      * before
      / max(1, sum(self.block_sizes) - 1),
    }

  def _stem(self, x, train):
    size, stride = {"cifar": (3, 1), "half": (3, 2), "imagenet": (7, 2)}[
      self.stem
    ]
    channels = self.stem_channels or self.channels
    same = self.same_padding
    x = conv(channels, size, stride, self.dtype, "stem", same=same)(x)
    if self.version == 1:
      x = self.norm.layer(dtype=self.dtype, name="stem_norm")(x, train=train)
      x = nn.relu(x)
    if self.stem != "imagenet":
      return x
    # Zeros around, as Big Transfer has it: without a ReLU before, which is
    # version 2, the -inf of most max pools would give something else.
    pads = [(1, 1)] * 2
    if same:
      pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (2, 2), "SAME")
    x = pad_zeros(x, ((0, 0), *pads, (0, 0)))
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


class Block(nn.Module):
  """One residual block of `ResNet`, where the attributes are explained."""

  channels: int
  stride: int
  bottleneck: bool
  version: int
  norm: NormSpec
  zero_init_last: bool
  dtype: DTypeLike
  same_padding: bool = False
  dropout: float = 0.0
  stochastic_depth: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns `[B, ceil(H / stride), ceil(W / stride), C']`."""
    return self._post(x, train) if self.version == 1 else self._pre(x, train)

  def _convs(self):
    """Returns channels, size and stride of each convolution."""
    if self.bottleneck:
      return (
        (self.channels, 1, 1),
        (self.channels, 3, self.stride),
        (4 * self.channels, 1, 1),
      )
    return (self.channels, 3, self.stride), (self.channels, 3, 1)

  def _conv(self, i, channels, size, stride):
    same = self.same_padding
    return conv(channels, size, stride, self.dtype, f"conv{i}", same=same)

  def _norm(self, name, scale_init=nn.initializers.ones):
    return self.norm.layer(dtype=self.dtype, scale_init=scale_init, name=name)

  def _dropout(self, x, i, train):
    if not self.dropout or i < len(self._convs()):
      return x
    return nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)

  def _depth(self, y, train):
    if not self.stochastic_depth:
      return y
    return StochasticDepth(self.stochastic_depth)(y, train=train)

  def _projects(self, x):
    return self.stride > 1 or x.shape[-1] != self._convs()[-1][0]

  def _projection(self, x):
    channels = self._convs()[-1][0]
    return conv(channels, 1, self.stride, self.dtype, "projection")(x)

  def _post(self, x, train):
    y, convs = x, self._convs()
    for i, settings in enumerate(convs, 1):
      y = self._conv(i, *settings)(self._dropout(y, i, train))
      if i < len(convs):
        y = nn.relu(self._norm(f"norm{i}")(y, train=train))
    init = nn.initializers
    last = init.zeros if self.zero_init_last else init.ones
    y = self._norm(f"norm{len(convs)}", last)(y, train=train)
    if self._projects(x):
      x = self._norm("projection_norm")(self._projection(x), train=train)
    return nn.relu(x + self._depth(y, train))

  def _pre(self, x, train):
    y = x
    for i, settings in enumerate(self._convs(), 1):
      y = nn.relu(self._norm(f"norm{i}")(y, train=train))
      if i == 1 and self._projects(x):
        x = self._projection(y)
      y = self._conv(i, *settings)(self._dropout(y, i, train))
    if self.zero_init_last:
      gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
      y = y * gain.astype(y.dtype)
    return x + self._depth(y, train)


def conv(
  channels: int,
  size: int,
  stride: int,
  dtype: DTypeLike,
  name: str,
  *,
  same: bool = False,
  groups: int = 1,
  use_bias: bool = False,
  kernel_init: nn.initializers.Initializer = he_fan_out,
  make: type[nn.Conv] = nn.Conv,
  **more: Any,
) -> nn.Conv:
  """Makes a convolution for images `[B, H, W, C]`.

  Args:
    channels: Number of output channels.
    size: Height and width of the kernel.
    stride: Stride in both directions.
    dtype: Dtype of the activations.
    name: Name of the layer.
    same: Whether it is padded as TensorFlow does, and not both sides alike.
    groups: Number of groups of channels.
    use_bias: Whether it adds a bias.
    kernel_init: Initializer of the kernel.
    make: Class of the layer.
    **more: Further attributes of that class.
  """
  both = [((size - 1) // 2, (size - 1) // 2)] * 2
  return make(
    channels,
    (size, size),
    (stride, stride),
    padding="SAME" if same else both,
    feature_group_count=groups,
    use_bias=use_bias,
    dtype=dtype,
    conv_general_dilated=_padded,
    kernel_init=kernel_init,
    name=name,
    **more,
  )


def _padded(x, kernel, window_strides, padding, **how):
  """Convolves with a padding in numbers, as oneDNN needs it."""
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      x.shape[1:-1], kernel.shape[:-2], window_strides, padding
    )
  return conv_general_dilated(x, kernel, window_strides, padding, **how)
