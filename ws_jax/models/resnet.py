"""Residual networks for small images and for ImageNet.

Version 1 normalizes after each convolution and ends a block with a ReLU (He et
al., 2015, arXiv:1512.03385); version 2 normalizes before, and nothing stands in
the way of its shortcut (He et al., 2016, arXiv:1603.05027). Convolutions have
no bias, their kernels are plain `nn.Conv` parameters, and the head is an
`nn.Dense` named `head`: Weight Standardization goes in front of `apply`.

Strided convolutions and the pool pad both sides alike, as the published PyTorch
models do; `SAME` would pad the far side only and shift the image by a pixel.
"""

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

# For images of about 32 pixels: three stages, 16 channels in the first.
_CIFAR = {
  f"resnet{6 * n + 2}": {
    "stem": "cifar",
    "channels": 16,
    "block_sizes": (n, n, n),
    "bottleneck": False,
  }
  for n in (1, 2, 3, 5, 9, 18)
}
# For images of about 224 pixels: four stages, 64 channels in the first.
_IMAGENET = {
  f"resnet{depth}": {
    "stem": "imagenet",
    "channels": 64,
    "block_sizes": block_sizes,
    "bottleneck": depth >= 50,
  }
  for depth, block_sizes in (
    (18, (2, 2, 2, 2)),
    (34, (3, 4, 6, 3)),
    (50, (3, 4, 6, 3)),
    (101, (3, 4, 23, 3)),
    (152, (3, 8, 36, 3)),
  )
}
MODELS: dict[str, dict[str, Any]] = _CIFAR | _IMAGENET
STEMS = {
  "cifar": "3x3 convolution",
  "half": "3x3 convolution / 2",
  "imagenet": "7x7 / 2, then a pool / 2",
}
VERSIONS = {"1": "post-activation", "2": "pre-activation"}
# All of its convolutions are those of `ws_jax.layers.convolve`.
NATIVE = True
# The keys of `config.model` that a ResNet has.
KEYS = {
  "version": keys.integer(1, "1: post-activation, 2: pre-activation", low=1),
  "width": keys.number(1.0, "factor on the number of channels", above=0),
  "stem": keys.text(None, "cifar, half or imagenet; none: the model's own"),
  "zero_init_last": keys.switch(False, "blocks start as their shortcuts"),
  "remat": keys.switch(False, "compute blocks again in the backward pass"),
  **common.NORM_KEYS,
  **common.DTYPE_KEYS,
}

# Variance 2 / fan-out: He et al., 2015 (arXiv:1502.01852), backward form.
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def create_model(
  name: str,
  *,
  num_classes: int,
  norm: NormSpec = NormSpec(),  # noqa: B008 (frozen)
  version: int = 1,
  width: float = 1.0,
  stem: str | None = None,
  zero_init_last: bool = False,
  dtype: DTypeLike = jnp.float32,
  remat: bool = False,
) -> "ResNet":
  """Makes a model of a published shape; nothing is computed or compiled.

  Args:
    name: Name of a model, a key of `MODELS`.
    num_classes: Number of logits for each example.
    norm: Normalization, everywhere in the model.
    version: 1 (post-activation) or 2 (pre-activation).
    width: Factor on the number of channels.
    stem: Name of a stem, a key of `STEMS`; None for the published one.
    zero_init_last: Whether each block starts as its shortcut; see `ResNet`.
    dtype: Dtype of the activations. Parameters, statistics and logits are
      float32.
    remat: Whether the backward pass computes each block a second time instead
      of keeping what is inside.

  Returns:
    The model. Two of the same settings are equal and hash alike, so that they
    share the compiled programs they are a static argument of.

  Raises:
    ValueError: an unknown name, stem or version; a width that leaves no
      channel; a number of groups that the channels cannot form.

  Example:
    >>> model = create_model("resnet20", num_classes=10)
    >>> images = jnp.zeros((2, 32, 32, 3))
    >>> variables = jax.eval_shape(
    ...   model.init, jax.random.key(0), images, train=False
    ... )
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    272474
  """
  settings = lookup(MODELS, name, "model")
  stem = settings["stem"] if stem is None else stem
  lookup(STEMS, stem, "stem")
  lookup(VERSIONS, str(version), "ResNet version")
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1, not {num_classes}")
  channels = round(settings["channels"] * width)
  if channels < 1:
    raise ValueError(
      f"width {width} leaves none of the {settings['channels']} channels of"
      f" {name}"
    )
  # Every later number of channels is a multiple of this one.
  norm.check(channels)
  return ResNet(
    num_classes=num_classes,
    block_sizes=settings["block_sizes"],
    channels=channels,
    bottleneck=settings["bottleneck"],
    stem=stem,
    norm=norm,
    version=int(version),
    zero_init_last=zero_init_last,
    dtype=jnp.dtype(dtype),
    remat=remat,
  )


def create(name: str, *, num_outputs: int, **settings: Any) -> "ResNet":
  """Calls `create_model`; the form that all families share."""
  return create_model(name, num_classes=num_outputs, **settings)


class ResNet(nn.Module):
  """A residual network; `create_model` makes the published ones.

  Attributes:
    num_classes: Number of logits for each example.
    block_sizes: Number of blocks in each stage; a stage halves the image (but
      not the first) and doubles the channels.
    channels: Number of channels of the first stage.
    bottleneck: Whether blocks are 1x1, 3x3, 1x1 with 4 times the channels at
      the end, and not 3x3, 3x3. The stride is on the 3x3.
    stem: `cifar` (3x3), `half` (3x3 with stride 2, which makes small images a
      quarter of the work) or `imagenet` (7x7 with stride 2, then a max pool).
    norm: Normalization, everywhere in the model.
    version: 1 (post-activation) or 2 (pre-activation).
    zero_init_last: Whether each block starts as its shortcut. In version 1 the
      last scale of each block starts at zero (Goyal et al., 2017,
      arXiv:1706.02677). A block of version 2 ends with a convolution, whose
      zero kernel could not be standardized, and behind a zero scale its ReLU
      would pass no gradient ever: there the block is multiplied by a learnt
      number that starts at zero (De and Smith, 2020, arXiv:2002.10444).
    dtype: Dtype of the activations.
    remat: Whether blocks are computed a second time in the backward pass.
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

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Turns images `[B, H, W, C]` into logits, float32 `[B, num_classes]`."""
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    x = self._stem(images.astype(self.dtype), train)
    for stage, size in enumerate(self.block_sizes):
      for i in range(size):
        x = block(
          channels=self.channels * 2**stage,
          stride=2 if stage and not i else 1,
          bottleneck=self.bottleneck,
          version=self.version,
          norm=self.norm,
          zero_init_last=self.zero_init_last,
          dtype=self.dtype,
          name=f"stage{stage + 1}_block{i + 1}",
        )(x, train)
    if self.version == 2:
      x = self.norm.layer(dtype=self.dtype, name="norm")(x, train=train)
      x = nn.relu(x)
    x = x.mean((1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, name="head")(x)

  def _stem(self, x, train):
    size, stride = {"cifar": (3, 1), "half": (3, 2), "imagenet": (7, 2)}[
      self.stem
    ]
    x = _conv(self.channels, size, stride, self.dtype, "stem")(x)
    if self.version == 1:
      x = self.norm.layer(dtype=self.dtype, name="stem_norm")(x, train=train)
      x = nn.relu(x)
    if self.stem != "imagenet":
      return x
    # Zeros around, as Big Transfer has it: without a ReLU before, which is
    # version 2, the -inf of most max pools would give something else.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), (2, 2))


class Block(nn.Module):
  """One residual block of `ResNet`, where the attributes are explained."""

  channels: int
  stride: int
  bottleneck: bool
  version: int
  norm: NormSpec
  zero_init_last: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Turns `[B, H, W, C]` into `[B, H', W', C']`, H' = ceil(H / stride)."""
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

  def _norm(self, name, scale_init=nn.initializers.ones):
    return self.norm.layer(dtype=self.dtype, scale_init=scale_init, name=name)

  def _projects(self, x):
    return self.stride > 1 or x.shape[-1] != self._convs()[-1][0]

  def _projection(self, x):
    channels = self._convs()[-1][0]
    return _conv(channels, 1, self.stride, self.dtype, "projection")(x)

  def _post(self, x, train):
    y, convs = x, self._convs()
    for i, (channels, size, stride) in enumerate(convs, 1):
      y = _conv(channels, size, stride, self.dtype, f"conv{i}")(y)
      if i < len(convs):
        y = nn.relu(self._norm(f"norm{i}")(y, train=train))
    init = nn.initializers
    last = init.zeros if self.zero_init_last else init.ones
    y = self._norm(f"norm{len(convs)}", last)(y, train=train)
    if self._projects(x):
      x = self._norm("projection_norm")(self._projection(x), train=train)
    return nn.relu(x + y)

  def _pre(self, x, train):
    y = x
    for i, (channels, size, stride) in enumerate(self._convs(), 1):
      y = nn.relu(self._norm(f"norm{i}")(y, train=train))
      if i == 1 and self._projects(x):
        x = self._projection(y)
      y = _conv(channels, size, stride, self.dtype, f"conv{i}")(y)
    if self.zero_init_last:
      y = y * self.param("gain", nn.initializers.zeros, ()).astype(y.dtype)
    return x + y


def _conv(channels, size, stride, dtype, name):
  """Makes a convolution without bias that pads both sides alike."""
  return nn.Conv(
    channels,
    (size, size),
    (stride, stride),
    padding=[((size - 1) // 2, (size - 1) // 2)] * 2,
    use_bias=False,
    dtype=dtype,
    conv_general_dilated=conv_general_dilated,
    kernel_init=_he_fan_out,
    name=name,
  )
