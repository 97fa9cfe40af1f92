"""Networks without normalization, as Flax modules.

`ws_jax.models.nfnet` has the published shapes by name. What a norm would do is
done by arithmetic (Brock et al., 2021, arXiv:2101.08692): with kernels of mean
0 and variance 1 / fan-in, and activations that are multiplied by a constant,
the variance of every layer is known in advance. A block computes
`x + alpha * f(x / sqrt(variance of x))`.

Weight Standardization goes in front of `apply`, as for every model here, by a
convention with the scale 1 / sqrt(fan-in): `nfnet` or `timm_scaled`. Beside
each `kernel` lies its `gain`, one number for each filter. Whoever standardizes
passes the gains on, by the paths of their kernels, and the effective kernel
holds them:

    gains = {"stem/kernel": params["stem"]["gain"], ...}
    weight_standardize(params, convention="nfnet", gains=gains)

The module itself applies the kernel it is given and leaves the gain alone.
Without WS the gains do nothing and stay as they are: a plain kernel has a scale
of its own, and starts with the same variance.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.layers.squeeze_excite import SqueezeExcite
from ws_jax.layers.stochastic_depth import StochasticDepth
from ws_jax.models.residual import conv

# Size, stride and part of the stem's channels of each of its convolutions.
STEMS = {
  "cifar": ((3, 1, 1.0),),
  "half": ((3, 2, 1.0),),
  "imagenet": ((7, 2, 1.0),),  # and a max pool
  "deep": ((3, 2, 0.125), (3, 1, 0.25), (3, 1, 0.5), (3, 2, 1.0)),
}
# Activations, and the factor that gives their result the variance 1 for normal
# inputs: table of the authors' code, nfnets/base.py.
ACTIVATIONS = {
  "relu": (nn.relu, 1.7139588594436646),
  "gelu": (lambda x: nn.gelu(x, approximate=False), 1.7015043497085571),
}


class NFNet(nn.Module):
  """A network without normalization; `nfnet.create` makes the published ones.

  Attributes:
    num_classes: Number of logits for each example.
    block_sizes: Number of blocks in each stage.
    channels: Number of channels of each stage.
    stem: Name in `STEMS`.
    stem_channels: Number of channels of the stem.
    sizes: Sizes of the convolutions of a block; the stride is on the first 3x3.
    inner: Channels of all but the last of them, as a part of the block's.
    group_size: Number of channels in a group of the 3x3; None for one group.
    squeeze: Units of squeeze-and-excitation, as a part of the block's channels;
      None for no such layer.
    final: Channels of the last 1x1 convolution, as a multiple of the last
      stage's; None for no such layer.
    activation: Name in `ACTIVATIONS`.
    scaled_stem: Whether the images are multiplied by the activation's factor,
      and the last activation is not. So does timm, which has the factor in each
      convolution, and not in each activation.
    same_padding: Whether convolutions are padded as TensorFlow does, and not
      both sides alike.
    skip_init: Whether a block is multiplied by a learnt number.
    alpha: Factor on what a block adds.
    dropout: Rate of dropout before the head.
    stochastic_depth: Rate that the blocks approach from first to last. Blocks
      that stay are not scaled up, as in the authors' code.
    dtype: Dtype of the activations.
  """

  num_classes: int
  block_sizes: tuple[int, ...]
  channels: tuple[int, ...]
  stem: str
  stem_channels: int
  sizes: tuple[int, ...]
  inner: float
  group_size: int | None = None
  squeeze: float | None = None
  final: float | None = None
  activation: str = "relu"
  scaled_stem: bool = False
  same_padding: bool = False
  skip_init: bool = False
  alpha: float = 0.2
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits, float32 `[B, num_classes]`, of images `[B, H, W, C]`."""
    x = self._stem(images.astype(self.dtype))
    before, total, variance = 0, sum(self.block_sizes), 1.0
    for stage, (size, channels) in enumerate(
      zip(self.block_sizes, self.channels, strict=True)
    ):
      for i in range(size):
        x = self._block(
          channels,
          stride=2 if stage and not i else 1,
          beta=variance**-0.5,
          rate=self.stochastic_depth * before / total,
          name=f"stage{stage + 1}_block{i + 1}",
        )(x, train)
        # The first block of a stage has a shortcut that starts anew.
        variance = (variance if i else 1.0) + self.alpha**2
        before += 1
    if self.final is not None:
      x = self._conv(round(self.final * self.channels[-1]), 1, 1, "final")(x)
    function, gamma = ACTIVATIONS[self.activation]
    x = function(x) if self.scaled_stem else gamma * function(x)
    x = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    start = nn.initializers.normal(0.01)
    return nn.Dense(self.num_classes, kernel_init=start, name="head")(x)

  def _stem(self, x):
    function, gamma = ACTIVATIONS[self.activation]
    x = gamma * x if self.scaled_stem else x
    for i, (size, stride, part) in enumerate(STEMS[self.stem], 1):
      x = gamma * function(x) if i > 1 else x
      name = f"stem{i}" if len(STEMS[self.stem]) > 1 else "stem"
      x = self._conv(round(part * self.stem_channels), size, stride, name)(x)
    if self.stem != "imagenet":
      return x
    # A converter to ONNX forgets the padding that `nn.max_pool` is given.
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jnp.pad(x, around, constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))

  def _conv(self, channels, size, stride, name):
    same = self.same_padding
    return _conv(channels, size, stride, self.dtype, name, same=same)

  def _block(self, channels, *, stride, beta, rate, name):
    return NFBlock(
      channels=channels,
      stride=stride,
      beta=beta,
      sizes=self.sizes,
      inner=self.inner,
      group_size=self.group_size,
      squeeze=self.squeeze,
      activation=self.activation,
      same_padding=self.same_padding,
      skip_init=self.skip_init,
      alpha=self.alpha,
      stochastic_depth=rate,
      dtype=self.dtype,
      name=name,
    )


class NFBlock(nn.Module):
  """One block of `NFNet`, where the other attributes are explained.

  Attributes:
    channels: Number of channels of the result.
    stride: Stride of the first 3x3.
    beta: One over the standard deviation of the input.
    stochastic_depth: Rate at which the block is left out of a training step.
  """

  channels: int
  stride: int
  beta: float
  sizes: tuple[int, ...]
  inner: float
  group_size: int | None
  squeeze: float | None
  activation: str
  same_padding: bool
  skip_init: bool
  alpha: float
  stochastic_depth: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns `[B, ceil(H / stride), ceil(W / stride), channels]`."""
    y = self._activate(x) * self.beta
    if self.stride > 1 or x.shape[-1] != self.channels:
      x = self._shortcut(y)
    strided = self.sizes.index(3)
    for i, size in enumerate(self.sizes):
      last = i == len(self.sizes) - 1
      y = self._conv(
        y if i == 0 else self._activate(y),
        size,
        self.stride if i == strided else 1,
        f"conv{i + 1}",
        last=last,
      )
    if self.squeeze is not None:
      hidden = max(1, int(self.squeeze * self.channels))
      y = SqueezeExcite(hidden, gain=2.0, name="squeeze_excite")(y)
    y = StochasticDepth(self.stochastic_depth, rescale=False)(y, train=train)
    if self.skip_init:
      gain = self.param("skip_gain", nn.initializers.zeros, (), jnp.float32)
      y = y * gain.astype(y.dtype)
    return x + self.alpha * y

  def _activate(self, x):
    function, gamma = ACTIVATIONS[self.activation]
    return gamma * function(x)

  def _shortcut(self, x):
    if self.stride > 1:
      size = (self.stride, self.stride)
      # By name, as a converter to ONNX wants the arguments.
      x = nn.avg_pool(
        x,
        window_shape=size,
        strides=size,
        padding="SAME",
        count_include_pad=False,
      )
    return _conv(self.channels, 1, 1, self.dtype, "projection")(x)

  def _conv(self, x, size, stride, name, *, last):
    inner, groups = int(self.inner * self.channels), 1
    if self.group_size is not None:
      groups = max(1, inner // self.group_size)
      inner = groups * (inner // groups)
    zeros = last and not self.skip_init
    return _conv(
      self.channels if last else inner,
      size,
      stride,
      self.dtype,
      name,
      same=self.same_padding,
      groups=groups if size > 1 else 1,
      gain_init=nn.initializers.zeros if zeros else nn.initializers.ones,
    )(x)


class ScaledConv(nn.Conv):
  """`nn.Conv` with one more parameter, `gain`, that it does not use.

  Attributes:
    gain_init: Initializer of the gain, `[out]`.
  """

  gain_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Convolves with `kernel` and adds `bias`."""
    self.param("gain", self.gain_init, (self.features,), self.param_dtype)
    return super().__call__(inputs)


# Variance 1 / fan-in, which is what standardization makes of any other.
_conv = functools.partial(
  conv,
  make=ScaledConv,
  use_bias=True,
  kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
)
