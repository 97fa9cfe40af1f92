"""The loss and the metric that all tasks of classification share."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ws_jax.data import values


def check(dataset: Any) -> None:
  """Refuses data of which nothing can be learned, before a step is compiled.

  Args:
    dataset: The data, as `ws_jax.data.load` returns them; or what `status.json`
      says of them, without examples, which passes.

  Raises:
    ValueError: there is one class, or an input is not finite.
  """
  info = dataset.info
  if dataset.train and info.num_classes == 1:
    raise ValueError(
      f"data set {info.name!r} has one class, so that every answer is right:"
      " needed are two or more"
    )
  values.check_finite(dataset)


def sums(
  logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  smoothing: float,
  other: tuple[jax.Array, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """Sums the cross-entropy (nats) and the correct answers.

  Args:
    logits: Logits [B, classes].
    labels: Class numbers [B].
    mask: Weights [B], 1.0 for examples that count.
    smoothing: Label smoothing, 0 for none.
    other: Class numbers [B] of what each example is mixed with, and the share
      [B] of its own class; None where nothing is mixed. Accuracy is that of the
      own class.

  Returns:
    `loss`, `accuracy` and `count`, float32 scalars.

  Example:
    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0]])
    >>> found = sums(logits, jnp.array([0, 1]), jnp.ones(2), 0.0)
    >>> float(found["accuracy"]), float(found["count"])
    (1.0, 2.0)
  """
  logits = logits.astype(jnp.float32)
  targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
  if other is not None:
    labels_of_others, share = other[0], other[1][:, None]
    others = jax.nn.one_hot(
      labels_of_others, logits.shape[-1], dtype=jnp.float32
    )
    targets = share * targets + (1 - share) * others
  if smoothing:
    targets = optax.smooth_labels(targets, smoothing)
  correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
  return {
    "loss": jnp.sum(mask * optax.softmax_cross_entropy(logits, targets)),
    "accuracy": jnp.sum(mask * correct),
    "count": jnp.sum(mask),
  }


def answers(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
  """Returns the label, the answer and the group of each example.

  Args:
    logits: Logits [B, classes].
    batch: Batch with `labels` [B], and with `groups` [B] where the data have
      groups, such as the speakers of clips.

  Returns:
    int32 [3, B]; a group that is not known is -1.

  Example:
    >>> answers(jnp.array([[2.0, 0.0]]), {"labels": jnp.array([1])}).tolist()
    [[1], [0], [-1]]
  """
  labels = batch["labels"].astype(jnp.int32)
  chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  groups = batch.get("groups", jnp.full_like(labels, -1))
  return jnp.stack([labels, chosen, groups.astype(jnp.int32)])
