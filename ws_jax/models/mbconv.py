"""EfficientNet and its block, as Flax modules.

`ws_jax.models.efficientnet` has the published shapes by name. A block widens
its input by a 1x1 convolution, looks at each channel with a depthwise one,
scales the channels by squeeze-and-excitation and narrows them again.

Strided convolutions pad both sides alike, as timm's `efficientnet_b*` do; its
`tf_efficientnet_b*` are other functions.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.layers.norm import NormSpec
from ws_jax.layers.squeeze_excite import SqueezeExcite
from ws_jax.layers.stochastic_depth import StochasticDepth
from ws_jax.models.residual import conv

# Each output channel of a depthwise convolution has one input channel, so that
# its fan-in is what fan-out is elsewhere: as in the authors' code.
_he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


@dataclasses.dataclass(frozen=True)
class Stage:
  """The blocks of one resolution.

  Attributes:
    expansion: Factor on the number of channels inside a block.
    size: Height and width of the depthwise kernels.
    stride: Stride of the first block.
    channels: Number of channels of the result.
    blocks: Number of blocks.
  """

  expansion: int
  size: int
  stride: int
  channels: int
  blocks: int


class EfficientNet(nn.Module):
  """A network of `MBConv` blocks; `efficientnet.create` makes the published.

  Attributes:
    num_classes: Number of logits for each example.
    stages: Blocks of each resolution.
    stem_channels: Number of channels of the 3x3 convolution in front.
    stem_stride: Stride of it.
    final_channels: Number of channels of the 1x1 convolution at the end.
    norm: Normalization.
    dropout: Rate of dropout before the head.
    stochastic_depth: Rate that the blocks approach from first to last.
    dtype: Dtype of the activations.
  """

  num_classes: int
  stages: tuple[Stage, ...]
  stem_channels: int
  stem_stride: int
  final_channels: int
  norm: NormSpec
  dropout: float
  stochastic_depth: float
  dtype: DTypeLike

  def widths(self) -> tuple[int, ...]:
    """Returns every number of channels that is normalized, in order."""
    found, inputs = [self.stem_channels], self.stem_channels
    for stage in self.stages:
      found += [inputs * stage.expansion, stage.channels]
      inputs = stage.channels
      found.append(inputs * stage.expansion)
    return (*found, self.final_channels)

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits, float32 `[B, num_classes]`, of images `[B, H, W, C]`."""
    x = images.astype(self.dtype)
    x = conv(self.stem_channels, 3, self.stem_stride, self.dtype, "stem")(x)
    x = self.norm.layer(dtype=self.dtype, name="stem_norm")(x, train=train)
    x = nn.swish(x)
    before, total = 0, sum(stage.blocks for stage in self.stages)
    for i, stage in enumerate(self.stages, 1):
      for j in range(stage.blocks):
        x = MBConv(
          channels=stage.channels,
          expansion=stage.expansion,
          size=stage.size,
          stride=1 if j else stage.stride,
          norm=self.norm,
          stochastic_depth=self.stochastic_depth * before / total,
          dtype=self.dtype,
          name=f"stage{i}_block{j + 1}",
        )(x, train)
        before += 1
    x = conv(self.final_channels, 1, 1, self.dtype, "final")(x)
    x = self.norm.layer(dtype=self.dtype, name="final_norm")(x, train=train)
    x = nn.swish(x)
    x = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name="head")(x)


class MBConv(nn.Module):
  """An inverted bottleneck: wide inside, its ends are the residual stream.

  Sandler et al., 2018 (arXiv:1801.04381).

  Attributes:
    channels: Number of channels of the result.
    expansion: Factor on the number of channels inside.
    size: Height and width of the depthwise kernel.
    stride: Stride of the depthwise convolution.
    norm: Normalization.
    stochastic_depth: Rate at which the block is left out of a training step.
    dtype: Dtype of the activations.
  """

  channels: int
  expansion: int
  size: int
  stride: int
  norm: NormSpec
  stochastic_depth: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns `[B, ceil(H / stride), ceil(W / stride), channels]`."""
    shortcut, inputs = x, x.shape[-1]
    inside = inputs * self.expansion
    if self.expansion > 1:
      x = conv(inside, 1, 1, self.dtype, "expand")(x)
      x = nn.swish(self._norm(x, "expand_norm", train))
    x = conv(
      inside,
      self.size,
      self.stride,
      self.dtype,
      "depthwise",
      groups=inside,
      kernel_init=_he_depthwise,
    )(x)
    x = nn.swish(self._norm(x, "depthwise_norm", train))
    # A quarter of the channels that come in, not of the wide ones.
    hidden = max(1, inputs // 4)
    x = SqueezeExcite(hidden, nn.swish, name="squeeze_excite")(x)
    x = conv(self.channels, 1, 1, self.dtype, "project")(x)
    x = self._norm(x, "project_norm", train)
    if self.stride > 1 or inputs != self.channels:
      return x
    return shortcut + StochasticDepth(self.stochastic_depth)(x, train=train)

  def _norm(self, x, name, train):
    return self.norm.layer(dtype=self.dtype, name=name)(x, train=train)
