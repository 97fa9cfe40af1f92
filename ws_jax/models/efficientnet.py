"""EfficientNet B0 to B3, and B0 for small images.

Tan and Le, 2019 (arXiv:1905.11946). The published normalization is
`norm=batch`; any other takes its place. The modules themselves are in
`ws_jax.models.mbconv`.

Weight Standardization goes in front of `apply`. It takes the convolutions, not
the dense layers of squeeze-and-excitation. Those named `depthwise` have a
fan-in of 9 or 25, and without their mean they cannot blur: the published weak
point of WS here (Brock et al., 2021, arXiv:2101.08692). `ws_depthwise=leave`
leaves them out, `ws_depthwise=scale` keeps their mean.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.base import keys
from ws_jax.base.names import lookup
from ws_jax.layers.norm import NormSpec
from ws_jax.models import common
from ws_jax.models.mbconv import EfficientNet, Stage

# Of each stage of B0: expansion, kernel size, stride, channels, blocks.
_STAGES = (
  (1, 3, 1, 16, 1),
  (6, 3, 2, 24, 2),
  (6, 5, 2, 40, 2),
  (6, 3, 2, 80, 3),
  (6, 5, 1, 112, 3),
  (6, 5, 2, 192, 4),
  (6, 3, 1, 320, 1),
)
_STEM, _FINAL = 32, 1280
# The later ones have more channels and blocks than B0, by these factors.
MODELS: dict[str, dict[str, Any]] = {
  "efficientnet_b0": {"channels": 1.0, "blocks": 1.0},
  "efficientnet_b1": {"channels": 1.0, "blocks": 1.1},
  "efficientnet_b2": {
    "channels": 1.1,
    "blocks": 1.2,
    "defaults": {"dropout": 0.3},
  },
  "efficientnet_b3": {
    "channels": 1.2,
    "blocks": 1.4,
    "defaults": {"dropout": 0.3},
  },
  # B0 that halves images of about 32 pixels three times, and not five.
  "efficientnet_cifar": {"channels": 1.0, "blocks": 1.0, "undivided": 2},
}
# All of its convolutions are those of `ws_jax.layers.convolve`.
NATIVE = True
# The keys of `config.model` that an EfficientNet has.
KEYS = {
  "width": keys.number(1.0, "factor on the number of channels", above=0),
  "stem_stride": keys.integer(
    None, "stride of the first convolution; none: the model's own", low=1
  ),
  "dropout": keys.number(0.2, "rate of dropout before the head", below=1),
  "stochastic_depth": keys.number(
    0.2, "rate at which the last blocks are left out, for each example", below=1
  ),
  **common.NORM_KEYS,
  **common.DEPTHWISE_KEYS,
  **common.DTYPE_KEYS,
}


def create(
  name: str,
  *,
  num_outputs: int,
  norm: NormSpec = NormSpec(),  # noqa: B008 (frozen)
  width: float = 1.0,
  stem_stride: int | None = None,
  dropout: float | None = None,
  stochastic_depth: float = 0.2,
  dtype: DTypeLike = jnp.float32,
) -> EfficientNet:
  """Makes a model of a published shape; nothing is computed or compiled.

  Args:
    name: Name in `MODELS`.
    num_outputs: Number of outputs for each example, as classes.
    norm: Normalization, everywhere in the model.
    width: Factor on the number of channels; they stay multiples of 8.
    stem_stride: Stride of the first convolution; None: the published.
    dropout: Rate of dropout before the head; None: the published, 0.2 or 0.3.
    stochastic_depth: Rate at which the last blocks are left out of a training
      step; it rises linearly over the blocks.
    dtype: Dtype of the activations. Parameters, statistics and logits are
      float32.

  Returns:
    The model; two of the same settings are equal and hash alike.

  Raises:
    ValueError: an unknown name, or a number of groups that the channels cannot
      form.

  Example:
    >>> import jax
    >>> model = create("efficientnet_b0", num_outputs=1000)
    >>> images = jnp.zeros((2, 64, 64, 3))
    >>> init = lambda key: model.init(key, images, train=False)
    >>> variables = jax.eval_shape(init, jax.random.key(0))
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    5288548
  """
  settings = lookup(MODELS, name, "model")
  if num_outputs < 1:
    raise ValueError(f"num_outputs must be at least 1, not {num_outputs}")
  if dropout is None:
    dropout = settings.get("defaults", {}).get("dropout", 0.2)
  factor = settings["channels"] * width
  undivided = settings.get("undivided", 0)
  model = EfficientNet(
    num_classes=num_outputs,
    stages=tuple(
      Stage(
        expansion=expansion,
        size=size,
        stride=1 if i < undivided else stride,
        channels=round_channels(channels * factor),
        blocks=math.ceil(blocks * settings["blocks"]),
      )
      for i, (expansion, size, stride, channels, blocks) in enumerate(_STAGES)
    ),
    stem_channels=round_channels(_STEM * factor),
    stem_stride=stem_stride or (1 if undivided else 2),
    final_channels=round_channels(_FINAL * factor),
    norm=norm,
    dropout=dropout,
    stochastic_depth=stochastic_depth,
    dtype=jnp.dtype(dtype),
  )
  for channels in model.widths():
    norm.check(channels)
  return model


def round_channels(channels: float) -> int:
  """Returns the multiple of 8 that a number of channels is rounded to.

  Never below 9 tenths of it, as the authors' code has it.

  Example:
    >>> [round_channels(n) for n in (4, 19.2, 35.2, 88)]
    [8, 24, 32, 88]
  """
  nearest = max(8, int(channels + 4) // 8 * 8)
  return nearest if nearest >= 0.9 * channels else nearest + 8
