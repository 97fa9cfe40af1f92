"""The convolutional network for sentences of Kim (2014, 1408.5882)."""

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

# Convolutions over words, and the maximum of each.
MODELS: dict[str, dict[str, Any]] = {"text_cnn": {}}
NATIVE = True
KEYS = {
  "dim": keys.integer(128, "channels of the embedding", low=1),
  "filters": keys.integer(100, "filters of each width", low=1),
  "widths": keys.Key(
    *((3, 4, 5), int, "tokens that filters span"),
    *(lambda widths: bool(widths) and min(widths) > 0, "greater than 0"),
    many=True,
  ),
  "dropout": keys.number(0.5, "dropped part of the features", below=1),
  **common.NORM_KEYS,
  "norm": keys.text("none", "batch, group, layer, instance or none"),
  **common.DTYPE_KEYS,
}


def create(
  name: str,
  *,
  num_outputs: int,
  num_inputs: int | None = None,
  **settings: Any,
) -> "TextCNN":
  """Makes the network; nothing is computed or compiled.

  Args:
    name: Name of `MODELS`.
    num_outputs: Number of classes.
    num_inputs: Number of tokens.
    **settings: Fields of `TextCNN`.

  Raises:
    ValueError: an unknown name, or channels that the norm cannot divide.

  Example:
    >>> create("text_cnn", num_outputs=150, num_inputs=5000).filters
    100
  """
  lookup(MODELS, name, "model")
  settings["widths"] = tuple(settings.get("widths", (3, 4, 5)))
  model = TextCNN(num_inputs or 1, num_outputs, **settings)
  model.norm.check(model.filters * len(model.widths))
  return model


class TextCNN(nn.Module):
  """Convolutions of several widths, the maximum over the text, and a head.

  The features are normalized behind the maximum and before the ReLU, where a
  text has one value of each filter, whatever its length. `norm="none"` is a
  scale and a bias for each filter, which makes the network Kim's.

  Attributes:
    vocabulary: Number of tokens; the last one fills a text up.
    num_classes: Number of logits of each text.
    dim: Number of channels of the embedding.
    filters: Number of filters of each width.
    widths: Numbers of tokens that filters span.
    dropout: Part of the features that is dropped before the head.
    norm: Normalization of the features.
    dtype: Dtype of the activations; parameters and logits are float32.

  Example:
    >>> model = TextCNN(vocabulary=10, num_classes=2, dim=8, filters=8)
    >>> tokens = jnp.array([[1, 2, 3, 9, 9]])
    >>> logits, _ = model.init_with_output(jax.random.key(0), tokens)
    >>> logits.shape
    (1, 2)
  """

  vocabulary: int
  num_classes: int
  dim: int = 128
  filters: int = 100
  widths: tuple[int, ...] = (3, 4, 5)
  dropout: float = 0.5
  norm: NormSpec = NormSpec("none")
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits, float32 [B, num_classes], for tokens [B, T]."""
    real = (tokens != self.vocabulary - 1)[..., None]
    # A text without a token counts as one.
    real |= (jnp.arange(tokens.shape[1]) == 0)[None, :, None]
    x = nn.Embed(
      *(self.vocabulary, self.dim, self.dtype),
      embedding_init=nn.initializers.normal(self.dim**-0.5),
      name="embed",
    )(tokens)
    x = jnp.where(real, x, 0)
    features = []
    for width in self.widths:
      y = nn.Conv(
        *(self.filters, (width,)),
        padding=[((width - 1) // 2, width // 2)],
        use_bias=False,
        dtype=self.dtype,
        conv_general_dilated=conv_general_dilated,
        name=f"conv{width}",
      )(x)
      features.append(jnp.where(real, y, jnp.finfo(y.dtype).min).max(1))
    x = jnp.concatenate(features, axis=-1)
    x = self.norm.layer(dtype=self.dtype, name="norm")(x, train=train)
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))
