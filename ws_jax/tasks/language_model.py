"""Text that is predicted token by token."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ws_jax.base import keys
from ws_jax.data import text
from ws_jax.data.text import tokenizers
from ws_jax.tasks.metric import Metric

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """Rows of tokens, each of which but the first is predicted.

  `ws_jax.data.text.packing` says how rows are made: in the evaluation each
  token of the text is predicted exactly once, from the tokens before it in its
  row. The special token, which begins a document, is input but never counted.

  Attributes:
    tokenizer: Tokenizer as one text, which generation needs.
    num_outputs: Number of tokens; the last one is the special token.
    z_loss: Factor of the square of log Z in the training loss (Chowdhery et al.
      2022, 2204.02311, sec. 5): it keeps logits small. Never in the evaluation.
    input_key: Name of the tokens in the data.
    label_key: Name of the number of bytes that each row predicts.
  """

  tokenizer: str = dataclasses.field(repr=False)
  num_outputs: int
  z_loss: float = 0.0
  input_key: str = "tokens"
  label_key: str = "bytes"

  METRIC: ClassVar[Metric] = Metric("bits_per_byte", "min", "bits per byte")
  metrics: ClassVar[tuple[str, ...]] = ("bits_per_byte", "bits_per_byte_count")
  KEYS: ClassVar[dict[str, keys.Key]] = {
    "tokenizer": keys.text("bytes", "bytes, or pieces (sentencepiece)"),
    "vocabulary": keys.integer(
      2048, "largest number of tokens of tokenizer=pieces", low=258, high=2**16
    ),
    "length": keys.integer(256, "tokens of a row that are predicted", low=1),
    "z_loss": keys.number(0.0, "factor of log(Z)^2 in the training loss"),
  }

  @staticmethod
  def options(settings: Mapping[str, Any]) -> text.Options:
    """Returns what is asked of the data, from the values of `KEYS`."""
    return text.Options.of(settings, labelled=False)

  @classmethod
  def create(
    cls, dataset: Any, *, z_loss: float = 0.0, **settings: Any
  ) -> "LanguageModel":
    """Makes the task for a text.

    Args:
      dataset: The text, as `ws_jax.data.load` returns it.
      z_loss: Factor of the square of log Z.
      **settings: The other values of `KEYS`, which the data already follow.

    Raises:
      ValueError: the data are no text.
    """
    del settings
    saved = dataset.info.tokenizer
    if not saved:
      raise ValueError(
        f"data set {dataset.info.name!r} is no text that a language model can "
        "be trained on"
      )
    size = tokenizers.load(saved).size
    return cls(tokenizer=saved, num_outputs=size, z_loss=z_loss)

  def batch(
    self, arrays: Any, indices: jax.Array, key: jax.Array | None
  ) -> Batch:
    """Returns `inputs` and `targets` [B, length] and `bytes` [B], int32."""
    del key
    rows = jnp.take(arrays[self.input_key], indices, axis=0).astype(jnp.int32)
    return {
      "inputs": rows[:, :-1],
      "targets": rows[:, 1:],
      "bytes": jnp.take(arrays[self.label_key], indices, axis=0),
    }

  def sums(
    self, outputs: jax.Array, batch: Batch, mask: jax.Array, training: bool
  ) -> dict[str, jax.Array]:
    """Sums the cross-entropy in nats and in bits.

    Args:
      outputs: Logits [B, length, tokens].
      batch: Batch of `batch`.
      mask: Weights [B], 1.0 for rows that count.
      training: Whether the z-loss is part of the loss.

    Returns:
      `loss` in nats for `count` tokens, and `bits_per_byte` in bits for
      `bits_per_byte_count` bytes: whatever the tokenizer is, all bits of a text
      are divided by all of its bytes.
    """
    logits, targets = outputs.astype(jnp.float32), batch["targets"]
    kept = mask[:, None] * (targets != self.num_outputs - 1)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nats = log_z - of_target[..., 0]
    total = jnp.sum(kept * nats)
    loss = total
    if training and self.z_loss:
      loss += self.z_loss * jnp.sum(kept * log_z**2)
    return {
      "loss": loss,
      "bits_per_byte": total / math.log(2),
      "bits_per_byte_count": jnp.sum(mask * batch["bytes"]),
      "count": jnp.sum(kept),
    }
