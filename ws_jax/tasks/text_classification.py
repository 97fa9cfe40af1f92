"""Short texts with one label each."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ws_jax.base import keys
from ws_jax.data import text
from ws_jax.data.text import tokenizers
from ws_jax.tasks import classification
from ws_jax.tasks.metric import Metric

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TextClassification:
  """Rows of tokens with one int32 label each.

  A row is filled with the special token, the last of the tokenizer, which
  models leave out.

  Attributes:
    tokenizer: Tokenizer as one text, which prediction needs.
    num_inputs: Number of tokens; the last one is the special token.
    label_smoothing: Label smoothing of the training loss; the evaluation loss
      is never smoothed.
    input_key: Name of the tokens in the data.
    label_key: Name of the labels in the data.
  """

  tokenizer: str = dataclasses.field(repr=False)
  num_inputs: int
  label_smoothing: float = 0.0
  input_key: str = "tokens"
  label_key: str = "label"

  METRIC: ClassVar[Metric] = Metric("accuracy", "max", "%")
  KEYS: ClassVar[dict[str, keys.Key]] = {
    "tokenizer": keys.text("words", "words, pieces (sentencepiece) or bytes"),
    "vocabulary": keys.integer(
      8192, "largest number of tokens of words or pieces", low=3, high=2**16
    ),
    "length": keys.integer(
      None, "tokens of a text; none: of the longest one, at most 512", low=1
    ),
    "label_smoothing": keys.number(
      0.0, "label smoothing of the training loss", below=1
    ),
  }

  @staticmethod
  def options(settings: Mapping[str, Any]) -> text.Options:
    """Returns what is asked of the data, from the values of `KEYS`."""
    return text.Options.of(settings, labelled=True)

  @classmethod
  def create(
    cls, dataset: Any, *, label_smoothing: float = 0.0, **settings: Any
  ) -> "TextClassification":
    """Makes the task for labelled texts.

    Args:
      dataset: The texts, as `ws_jax.data.load` returns them.
      label_smoothing: Label smoothing of the training loss.
      **settings: The other values of `KEYS`, which the data already follow.

    Raises:
      ValueError: the data are no labelled texts.
    """
    del settings
    info = dataset.info
    if not info.tokenizer or info.num_classes is None:
      raise ValueError(f"data set {info.name!r} is no text with labels")
    classification.check(dataset)
    return cls(
      tokenizer=info.tokenizer,
      num_inputs=tokenizers.load(info.tokenizer).size,
      label_smoothing=label_smoothing,
    )

  def batch(
    self, arrays: Any, indices: jax.Array, key: jax.Array | None
  ) -> Batch:
    """Returns `inputs` [B, length] and `labels` [B], both int32."""
    del key
    tokens = jnp.take(arrays[self.input_key], indices, axis=0)
    return {
      "inputs": self.preprocess(tokens),
      "labels": jnp.take(arrays[self.label_key], indices, axis=0),
    }

  def preprocess(self, tokens: jax.Array) -> jax.Array:
    """Returns tokens as in the data, `[B, length]`, as the model takes them."""
    return tokens.astype(jnp.int32)

  def sums(
    self, outputs: jax.Array, batch: Batch, mask: jax.Array, training: bool
  ) -> dict[str, jax.Array]:
    """Sums the cross-entropy (nats) and the correct answers.

    Args:
      outputs: Logits [B, classes].
      batch: Batch of `batch`.
      mask: Weights [B], 1.0 for texts that count.
      training: Whether the labels are smoothed.
    """
    smoothing = self.label_smoothing if training else 0.0
    return classification.sums(outputs, batch["labels"], mask, smoothing)

  def answers(self, outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns label, answer and group of each example, int32 [3, B]."""
    return classification.answers(outputs, batch)
