"""NF-ResNet and NFNet by the names that people know.

Brock et al., 2021 (arXiv:2101.08692 and arXiv:2102.06171). `nf_resnet50` is
timm's, `nfnet_f0` is DeepMind's, which timm calls `dm_nfnet_f0`; the GELU is
exact, as timm's. `nf_resnet20` is for small images. The modules themselves, and
how Weight Standardization is applied to them, are in `ws_jax.models.normfree`.
"""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.base import keys
from ws_jax.base.names import lookup
from ws_jax.models import common
from ws_jax.models.normfree import STEMS, NFNet

# Sizes of the convolutions of a block, and the channels of all but the last of
# them as a part of the block's.
_BASIC = {"sizes": (3, 3), "inner": 1.0}
_BOTTLENECK = {"sizes": (1, 3, 1), "inner": 0.25}
_WIDE_BOTTLENECK = {"sizes": (1, 3, 3, 1), "inner": 0.5}

# For images of about 32 pixels, as `resnet8` to `resnet20`.
_CIFAR = {
  f"nf_resnet{6 * n + 2}": {
    "stem": "cifar",
    "channels": (16, 32, 64),
    "block_sizes": (n, n, n),
    "defaults": {"skip_init": True},
    **_BASIC,
  }
  for n in (1, 2, 3)
}
_RESNET = {
  f"nf_resnet{depth}": {
    "stem": "imagenet",
    "channels": (256, 512, 1024, 2048),
    "block_sizes": block_sizes,
    "scaled_stem": True,
    **_BOTTLENECK,
  }
  for depth, block_sizes in (
    (26, (2, 2, 2, 2)),
    (50, (3, 4, 6, 3)),
    (101, (3, 4, 23, 3)),
  )
}
_NFNET = {
  f"nfnet_f{i}": {
    "stem": "deep",
    "channels": (256, 512, 1536, 1536),
    "block_sizes": tuple(n * (i + 1) for n in (1, 2, 6, 3)),
    "activation": "gelu",
    "group_size": 128,
    "squeeze": 0.5,
    "final": 2.0,
    "same_padding": True,
    "defaults": {
      "skip_init": True,
      "dropout": dropout,
      "stochastic_depth": 0.25,
      "ws_convention": "nfnet",
    },
    **_WIDE_BOTTLENECK,
  }
  for i, dropout in enumerate((0.2, 0.3, 0.4))
}
MODELS: dict[str, dict[str, Any]] = _CIFAR | _RESNET | _NFNET
_STEM_CHANNELS = {"imagenet": 64, "deep": 128}
# All of its convolutions are those of `ws_jax.layers.convolve`.
NATIVE = True
# The keys of `config.model` that such a network has.
KEYS = {
  "width": keys.number(1.0, "factor on the number of channels", above=0),
  "stem": keys.text(
    None, "cifar, half, imagenet or deep; none: the model's own"
  ),
  "skip_init": keys.switch(
    False, "blocks end with a learnt number that starts at 0; else their gains"
  ),
  "dropout": keys.number(0.0, "rate of dropout before the head", below=1),
  "stochastic_depth": keys.number(
    0.0, "rate at which the last blocks are left out, for each example", below=1
  ),
  "ws_convention": keys.text("timm_scaled", "definition of WS"),
  **common.DTYPE_KEYS,
}


def create(
  name: str,
  *,
  num_outputs: int,
  width: float = 1.0,
  stem: str | None = None,
  skip_init: bool | None = None,
  dropout: float | None = None,
  stochastic_depth: float | None = None,
  dtype: DTypeLike = jnp.float32,
) -> NFNet:
  """Makes a model of a published shape; nothing is computed or compiled.

  Args:
    name: Name in `MODELS`.
    num_outputs: Number of outputs for each example, as classes.
    width: Factor on the number of channels.
    stem: Name in `STEMS`; None: the published.
    skip_init: Whether a block is multiplied by a learnt number that starts at
      0 (De and Smith, 2020, arXiv:2002.10444). Without it the gains of its last
      convolution start at 0, which without WS do nothing. None: as published.
    dropout: Rate of dropout before the head; None: the published.
    stochastic_depth: Rate at which the last blocks are left out of a training
      step; it rises linearly over the blocks. None: the published.
    dtype: Dtype of the activations. Parameters and logits are float32.

  Returns:
    The model; two of the same settings are equal and hash alike.

  Raises:
    ValueError: an unknown name or stem, or a width that leaves no channel.

  Example:
    >>> import jax
    >>> model = create("nfnet_f0", num_outputs=1000)
    >>> images = jnp.zeros((2, 64, 64, 3))
    >>> init = lambda key: model.init(key, images, train=False)
    >>> variables = jax.eval_shape(init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    71489284
  """
  settings = dict(lookup(MODELS, name, "model"))
  own = settings.pop("defaults", {})
  given = {
    "skip_init": skip_init,
    "dropout": dropout,
    "stochastic_depth": stochastic_depth,
  }
  for key, value in given.items():
    default = own.get(key, KEYS[key].default)
    settings[key] = default if value is None else value
  if num_outputs < 1:
    raise ValueError(f"num_outputs must be at least 1, not {num_outputs}")
  stem_channels = _STEM_CHANNELS.get(settings["stem"], settings["channels"][0])
  channels = tuple(round(n * width) for n in settings["channels"])
  if round(stem_channels * width) < 8:
    raise ValueError(
      f"width {width} leaves less than 8 of the {stem_channels} channels of the"
      f" stem of {name}"
    )
  settings |= {
    "stem": settings["stem"] if stem is None else stem,
    "channels": channels,
    "stem_channels": round(stem_channels * width),
  }
  lookup(STEMS, settings["stem"], "stem")
  return NFNet(num_classes=num_outputs, dtype=jnp.dtype(dtype), **settings)
