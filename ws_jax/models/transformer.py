"""Transformers for text: a decoder that predicts tokens, and a classifier.

Start reading at `TransformerLM`. Blocks normalize before attention and MLP, and
no layer but the norms and the classifier's head has biases. The kernels of
attention are [in, head, out] and are named `query`, `key`, `value` and `out`
([head, in, out]), as those of Flax's own attention, which the axis rules of
Weight Standardization know: `block1/attention/query/kernel`. Those of the MLP
are `block1/mlp/up/kernel` and `block1/mlp/down/kernel`.

The last token of a vocabulary is special: it begins a document, which sees
nothing of those before it, or it fills a text up and is left out.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ws_jax.base import keys
from ws_jax.base.names import lookup
from ws_jax.layers import attention
from ws_jax.layers.gelu import gelu
from ws_jax.layers.product import dot_general
from ws_jax.models import common

MODELS: dict[str, dict[str, Any]] = {
  "transformer_lm": {},  # a decoder that predicts tokens
  "transformer_classifier": {},  # an encoder with a class for each text
}
NATIVE = True
# Neither the embedding, which is a head too, nor the head of a classifier.
WS_WHERE = ("*/attention/*/kernel", "*/mlp/*/kernel")
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
POSITIONS = {"rotary": "angles of queries and keys", "learned": "vectors"}
KEYS = {
  "layers": keys.integer(4, "number of blocks", low=1),
  "dim": keys.integer(128, "channels between the blocks", low=1),
  "heads": keys.integer(4, "heads of attention; they divide dim", low=1),
  "mlp_factor": keys.number(4.0, "channels of an MLP over dim", above=0),
  "norm": keys.Key(
    "layer", str, "norm of each position", NORMS.__contains__, "layer or rms"
  ),
  "positions": keys.Key(
    *("rotary", str, "how positions are told"),
    *(POSITIONS.__contains__, "rotary or learned"),
  ),
  "qk_norm": keys.switch(False, "normalize queries and keys"),
  "tie": keys.switch(True, "use the embedding as head; transformer_lm alone"),
  "dropout": keys.number(0.0, "part of each branch that is dropped", below=1),
  **common.DTYPE_KEYS,
}

# As in GPT-2: with a tied head the first logits are small.
_small = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Shape:
  """What decoder and classifier have in common.

  Attributes:
    layers: Number of blocks.
    dim: Number of channels between the blocks.
    heads: Number of heads of attention.
    mlp_factor: Channels of an MLP over `dim`.
    norm: Name of `NORMS`; each position is normalized by itself.
    positions: Name of `POSITIONS`.
    qk_norm: Whether queries and keys are normalized (Dehghani et al. 2023,
      2302.05442), which bounds the logits of attention.
    dropout: Part of the channels that is dropped behind the embedding and at
      the end of each branch.
    dtype: Dtype of the activations; parameters and logits are float32.

  Raises:
    ValueError: heads that do not divide the channels, or an unknown name.
  """

  layers: int = 4
  dim: int = 128
  heads: int = 4
  mlp_factor: float = 4.0
  norm: str = "layer"
  positions: str = "rotary"
  qk_norm: bool = False
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    lookup(NORMS, self.norm, "norm of a transformer")
    lookup(POSITIONS, self.positions, "kind of positions")
    if self.dim % self.heads:
      raise ValueError(f"{self.heads} heads do not divide dim={self.dim}")
    if self.positions == "rotary" and self.dim // self.heads % 2:
      raise ValueError(
        f"dim={self.dim} gives each of {self.heads} heads an odd number of"
        " channels, which positions=rotary cannot pair"
      )

  def normalize(self, x: jax.Array, name: str) -> jax.Array:
    """Normalizes the last axis with a norm of this name."""
    return NORMS[self.norm](dtype=self.dtype, name=name)(x)

  def drop(self, x: jax.Array, train: bool) -> jax.Array:
    """Drops channels in training."""
    return nn.Dropout(self.dropout, deterministic=not train)(x)


def create(
  name: str,
  *,
  num_outputs: int,
  num_inputs: int | None = None,
  tie: bool = True,
  **settings: Any,
) -> nn.Module:
  """Makes a transformer; nothing is computed or compiled.

  Args:
    name: Name of `MODELS`.
    num_outputs: Number of tokens of a language model, or of classes.
    num_inputs: Number of tokens of a classifier.
    tie: Whether the head of a language model is its embedding.
    **settings: Fields of `Shape`.

  Raises:
    ValueError: an unknown name, or settings that do not fit.

  Example:
    >>> model = create("transformer_lm", num_outputs=257, norm="rms")
    >>> tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    820480
  """
  lookup(MODELS, name, "model")
  shape = Shape(**settings)
  if name == "transformer_lm":
    return TransformerLM(num_outputs, shape, tie)
  return TransformerClassifier(num_inputs or 1, num_outputs, shape)


class Cache(flax.struct.PyTreeNode):
  """Keys and values of the tokens that a decoder has seen.

  Attributes:
    keys: Array [layers, B, size, heads, channels].
    values: Array of the same shape.
    length: Number of tokens seen, int32 scalar.
  """

  keys: jax.Array
  values: jax.Array
  length: jax.Array


class TransformerLM(nn.Module):
  """A decoder: predicts each token from those before it in its document.

  Vaswani et al. 2017 (1706.03762), with the norms before the branches and a
  GELU as in GPT-2, and with rotary positions (Su et al. 2021, 2104.09864)
  unless they are learned.

  Attributes:
    vocabulary: Number of tokens; the last one begins a document.
    shape: Size and kind of the blocks.
    tie: Whether the head is the embedding (Press and Wolf 2016, 1608.05859).
  """

  vocabulary: int
  shape: Shape = Shape()
  tie: bool = True

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, train: bool = False, cache: Cache | None = None
  ) -> Any:
    """Returns the logits of the next tokens, float32 [B, T, vocabulary].

    Args:
      tokens: Tokens [B, T], integers.
      train: Whether channels are dropped.
      cache: What came before `tokens`, as `empty_cache` or an earlier call
        returns it. All of it is one document.

    Returns:
      The logits; with a cache, a pair of the logits and the new cache.
    """
    shape = self.shape
    embed = nn.Embed(
      *(self.vocabulary, shape.dim, shape.dtype),
      embedding_init=_small,
      name="embed",
    )
    start = 0 if cache is None else cache.length
    places = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    seen = places if cache is None else jnp.arange(cache.keys.shape[2])
    mask = attention.causal(places, seen)
    parts = 1
    if cache is None:
      mask &= attention.same_document(tokens == self.vocabulary - 1)
      parts = attention.causal_parts(tokens.shape[1])
    x = _with_positions(self, embed(tokens), places)
    x = shape.drop(x, train)
    kept = []
    for i in range(shape.layers):
      before = None if cache is None else (cache.keys[i], cache.values[i])
      block = Block(shape, parts, name=f"block{i + 1}")
      x, after = block(x, mask, places, train, before)
      kept.append(after)
    x = shape.normalize(x, "norm")
    if self.tie:
      logits = embed.attend(x)
    else:
      logits = _dense(shape, self.vocabulary, "head")(x)
    logits = logits.astype(jnp.float32)
    if cache is None:
      return logits
    all_keys, values = (jnp.stack(arrays) for arrays in zip(*kept, strict=True))
    length = jnp.asarray(start + tokens.shape[1], jnp.int32)
    return logits, Cache(all_keys, values, length)

  def empty_cache(self, batch: int, size: int) -> Cache:
    """Returns the cache of a decoder that has seen nothing.

    Args:
      batch: Number of texts.
      size: Largest number of tokens of each.
    """
    s = self.shape
    zeros = jnp.zeros(
      (s.layers, batch, size, s.heads, s.dim // s.heads), s.dtype
    )
    return Cache(zeros, zeros, jnp.zeros((), jnp.int32))


class TransformerClassifier(nn.Module):
  """An encoder: the mean of its outputs at all tokens of a text is classified.

  Attributes:
    vocabulary: Number of tokens; the last one fills a text up.
    num_classes: Number of logits of each text.
    shape: Size and kind of the blocks.
  """

  vocabulary: int
  num_classes: int
  shape: Shape = Shape()

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits, float32 [B, num_classes], for tokens [B, T]."""
    shape = self.shape
    real = tokens != self.vocabulary - 1
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x = nn.Embed(
      *(self.vocabulary, shape.dim, shape.dtype),
      embedding_init=_small,
      name="embed",
    )(tokens)
    x = shape.drop(_with_positions(self, x, places), train)
    for i in range(shape.layers):
      block = Block(shape, name=f"block{i + 1}")
      x, _ = block(x, real[:, None, None, :], places, train)
    x = shape.normalize(x, "norm").astype(jnp.float32)
    weights = real / jnp.maximum(real.sum(1, keepdims=True), 1)
    return nn.Dense(self.num_classes, name="head")(
      jnp.einsum("btd,bt->bd", x, weights)
    )


class Block(nn.Module):
  """Attention and an MLP, each added to what comes in."""

  shape: Shape
  parts: int = 1

  @nn.compact
  def __call__(self, x, mask, places, train, cache=None):
    """Returns [B, T, dim], and the keys and values of this block.

    Args:
      x: Activations [B, T, dim].
      mask: Whether a query sees a key, bool [B or 1, 1, T, keys].
      places: Positions of the tokens [T].
      train: Whether channels are dropped.
      cache: Keys and values of the tokens before, or None.
    """
    shape = self.shape
    y = shape.normalize(x, "attention_norm")
    attend = Attention(shape, self.parts, name="attention")
    y, kept = attend(y, mask, places, cache)
    x += shape.drop(y, train)
    y = shape.normalize(x, "mlp_norm")
    x += shape.drop(MLP(shape, name="mlp")(y), train)
    return x, kept


class Attention(nn.Module):
  """Attention with several heads."""

  shape: Shape
  parts: int = 1

  @nn.compact
  def __call__(self, x, mask, places, cache=None):
    """Returns [B, T, dim], and the keys and values; see `Block`."""
    shape = self.shape
    size = (shape.heads, shape.dim // shape.heads)
    query, key, value = (
      _dense(shape, size, name)(x) for name in ("query", "key", "value")
    )
    if shape.qk_norm:
      query = shape.normalize(query, "query_norm")
      key = shape.normalize(key, "key_norm")
    if shape.positions == "rotary":
      query = attention.rotate(query, places)
      key = attention.rotate(key, places)
    if cache is not None:
      write = jax.lax.dynamic_update_slice_in_dim
      key = write(cache[0], key, places[0], axis=1)
      value = write(cache[1], value, places[0], axis=1)
    x = attention.attend(query, key, value, mask, self.parts)
    out = _dense(shape, shape.dim, "out", axis=(-2, -1), branch_end=True)
    return out(x), (key, value)


class MLP(nn.Module):
  """Two layers with a GELU between."""

  shape: Shape

  @nn.compact
  def __call__(self, x):
    """Returns [B, T, dim] for [B, T, dim]."""
    shape = self.shape
    x = _dense(shape, round(shape.mlp_factor * shape.dim), "up")(x)
    return _dense(shape, shape.dim, "down", branch_end=True)(gelu(x))


def _with_positions(module, x, places):
  """Adds learned positions, if the module has them, to [B, T, dim]."""
  shape = module.shape
  if shape.positions != "learned":
    return x
  # The table is as long as the tokens of the first call; later ones may be
  # fewer, as those of generation are.
  if module.is_initializing():
    size = (x.shape[1], shape.dim)
    table = module.param("positions", _small, size, jnp.float32)
  else:
    table = module.get_variable("params", "positions")
  return x + jnp.take(table, places, axis=0).astype(x.dtype)[None]


def _dense(shape, features, name, axis=-1, branch_end=False):
  """Returns a layer without bias whose outputs begin at variance 1 or less.

  At the end of a branch it is less, so that the sum of all branches is of
  variance 1 (GPT-2).
  """
  scale = 0.5 / shape.layers if branch_end else 1.0
  init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=False,
    dtype=shape.dtype,
    kernel_init=init,
    dot_general=dot_general,
    name=name,
  )
