"""Residual networks by the names that people know.

Those for small images (`resnet20`, `wrn_28_10`), those for ImageNet
(`resnet50`, `resnet50_gn`) and those of Big Transfer (`bit_r50x1`). The modules
themselves are in `ws_jax.models.residual`. A name decides the shape; what else
it was published with (its version, its groups) are the defaults of its keys.
"""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.base import keys
from ws_jax.base.names import lookup
from ws_jax.layers.norm import NormSpec
from ws_jax.models import blocks, common
from ws_jax.models.residual import Block, ResNet

__all__ = ["KEYS", "MODELS", "Block", "ResNet", "create", "create_model"]

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
# Wide ones, pre-activation, whose stem stays narrow: Zagoruyko and Komodakis,
# 2016 (arXiv:1605.07146). `wrn_16_4`: 16 layers, 4 times the channels.
_WIDE = {
  f"wrn_{depth}_{factor}": {
    "stem": "cifar",
    "stem_channels": 16,
    "channels": 16 * factor,
    "block_sizes": ((depth - 4) // 6,) * 3,
    "bottleneck": False,
    "defaults": {"version": 2},
  }
  for depth, factor in ((16, 4), (28, 10))
}
_BLOCK_SIZES = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


def _imagenet(depth: int, width: int = 1, **more: Any) -> dict[str, Any]:
  """Returns a shape for images of about 224 pixels: four stages."""
  return {
    "stem": "imagenet",
    "channels": 64 * width,
    "block_sizes": _BLOCK_SIZES[depth],
    "bottleneck": depth >= 50,
    **more,
  }


_IMAGENET = {f"resnet{depth}": _imagenet(depth) for depth in _BLOCK_SIZES}
# Of timm; and of big_vision, for its config bit_i1k.
_GROUPED = {
  "resnet50_gn": _imagenet(50, defaults={"num_groups": 32}),
  "bit_i1k": _imagenet(
    50,
    same_padding=True,
    defaults={"num_groups": 32, "zero_init_last": True},
  ),
}
# Big Transfer: Kolesnikov et al., 2019 (arXiv:1912.11370).
_BIT = {
  f"bit_r{depth}x{width}": _imagenet(
    depth, width, defaults={"version": 2, "num_groups": 32}
  )
  for depth, width in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
}
MODELS: dict[str, dict[str, Any]] = _CIFAR | _WIDE | _IMAGENET | _GROUPED | _BIT
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
  "dropout": keys.number(
    0.0, "rate of dropout before the last convolution of a block", below=1
  ),
  "stochastic_depth": keys.number(
    0.0, "rate at which the last block is left out, for each example", below=1
  ),
  "remat": keys.switch(False, "compute blocks again in the backward pass"),
  "remat_keep": keys.choice(
    "nothing",
    tuple(blocks.POLICIES),
    "what of a block is kept with remat: nothing is the least memory,"
    " convolutions the least work",
  ),
  "scan": keys.switch(
    False, "equal blocks are one loop of the program: with remat less memory"
  ),
  **common.NORM_KEYS,
  **common.DTYPE_KEYS,
}


def create_model(
  name: str,
  *,
  num_classes: int,
  norm: NormSpec | None = None,
  version: int | None = None,
  width: float = 1.0,
  stem: str | None = None,
  zero_init_last: bool | None = None,
  dtype: DTypeLike = jnp.float32,
  remat: bool = False,
  remat_keep: str = "nothing",
  scan: bool = False,
  dropout: float = 0.0,
  stochastic_depth: float = 0.0,
) -> ResNet:
  """Makes a model of a published shape; nothing is computed or compiled.

  Args:
    name: Name in `MODELS`.
    num_classes: Number of logits for each example.
    norm: Normalization, everywhere in the model; None: group normalization
      with the published number of groups.
    version: 1 (post-activation) or 2 (pre-activation); None: the published.
    width: Factor on the number of channels.
    stem: Name in `STEMS`; None: the published.
    zero_init_last: Whether each block starts as its shortcut, see `ResNet`;
      None: as published.
    dtype: Dtype of the activations. Parameters, statistics and logits are
      float32.
    remat: Whether the backward pass computes each block a second time instead
      of keeping what is inside.
    remat_keep: What it keeps all the same: `nothing`, or `convolutions`, whose
      outputs are all that is costly to compute again.
    scan: Whether the equal blocks of each stage are compiled once, as a loop.
    dropout: Rate of dropout before the last convolution of each block.
    stochastic_depth: Rate at which the last block is left out of a step.

  Returns:
    The model. Two of the same settings are equal and hash alike, so that they
    share the compiled programs they are a static argument of.

  Raises:
    ValueError: an unknown name, stem or version; a width that leaves no
      channel; a number of groups that the channels cannot form; a loop over
      blocks that stochastic depth makes unequal.

  Example:
    >>> import jax
    >>> model = create_model("resnet20", num_classes=10)
    >>> images = jnp.zeros((2, 32, 32, 3))
    >>> variables = jax.eval_shape(
    ...   model.init, jax.random.key(0), images, train=False
    ... )
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    272474
  """
  settings = dict(lookup(MODELS, name, "model"))
  own = settings.pop("defaults", {})
  stem = settings["stem"] if stem is None else stem
  lookup(STEMS, stem, "stem")
  version = own.get("version", 1) if version is None else version
  lookup(VERSIONS, str(version), "ResNet version")
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1, not {num_classes}")
  for key in ("channels", "stem_channels"):
    if key in settings:
      settings[key] = _scaled(settings[key], width, name)
  lookup(blocks.POLICIES, remat_keep, "remat_keep")
  if scan and stochastic_depth:
    raise ValueError(
      "scan=true needs equal blocks, and stochastic_depth="
      f"{stochastic_depth:g} gives each its own rate: set one of them to 0"
    )
  if norm is None:
    norm = NormSpec(num_groups=own.get("num_groups"))
  # Every later number of channels is a multiple of one of these.
  norm.check(settings["channels"])
  norm.check(settings.get("stem_channels", settings["channels"]))
  if zero_init_last is None:
    zero_init_last = own.get("zero_init_last", False)
  return ResNet(
    num_classes=num_classes,
    norm=norm,
    version=int(version),
    zero_init_last=zero_init_last,
    dtype=jnp.dtype(dtype),
    remat=remat,
    remat_keep=remat_keep,
    scan=scan,
    dropout=dropout,
    stochastic_depth=stochastic_depth,
    **settings | {"stem": stem},
  )


def create(name: str, *, num_outputs: int, **settings: Any) -> ResNet:
  """Calls `create_model`; the form that all families share."""
  return create_model(name, num_classes=num_outputs, **settings)


def _scaled(channels: int, width: float, name: str) -> int:
  scaled = round(channels * width)
  if scaled < 1:
    raise ValueError(
      f"width {width} leaves none of the {channels} channels of {name}"
    )
  return scaled
