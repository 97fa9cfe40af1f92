"""What a task is: how a batch is made, and what is summed over it.

The training loop knows nothing of images. A task is a frozen dataclass (a
static argument of `jax.jit`) with a tuple and two methods:

- `batch(data, indices, key)`: the examples at `indices` [B] of the arrays in
  `data`, as a dict with `inputs` (what the model is called with) and whatever
  `sums` needs; augmented if `key` is not None. Runs inside the jitted step.
- `metrics`: names of what `sums` returns beside `loss` and `count`.
- `sums(outputs, batch, mask, training)`: a dict of float32 scalars, each a
  sum over the examples (or tokens) that `mask` [B] keeps, with their number
  as `count`. `loss` is what training minimises, divided by `count`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from ws_jax.data import augment

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ImageClassification:
  """Images [N, H, W, C] uint8 with one int32 label [N] each.

  Attributes:
    mean: per channel, of training images scaled to [0, 1].
    std: likewise.
    crop_padding: pixels of zero padding for the random crop; 0 for no crop.
    flip: mirror half of the training images left to right.
    label_smoothing: of the training loss (Szegedy et al. 2016, sec. 7); the
      evaluation loss is never smoothed.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop_padding: int = 0
  flip: bool = False
  label_smoothing: float = 0.0

  metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

  def batch(
    self, data: Any, indices: jax.Array, key: jax.Array | None
  ) -> Batch:
    """`inputs` [B, H, W, C] float32 and `labels` [B] int32."""
    images = jnp.take(data["image"], indices, axis=0)
    if key is not None:
      crop_key, flip_key = jax.random.split(key)
      if self.crop_padding:
        images = augment.random_crop(crop_key, images, self.crop_padding)
      if self.flip:
        images = augment.random_flip(flip_key, images)
    return {
      "inputs": augment.normalize(images, self.mean, self.std),
      "labels": jnp.take(data["label"], indices, axis=0),
    }

  def sums(
    self, outputs: jax.Array, batch: Batch, mask: jax.Array, training: bool
  ) -> dict[str, jax.Array]:
    """Sums of cross-entropy (nats) and of correct answers.

    Args:
      outputs: logits [B, classes].
      batch: from `batch`.
      mask: [B], 1.0 for examples that count.
      training: whether the labels are smoothed.
    """
    logits, labels = outputs.astype(jnp.float32), batch["labels"]
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    if training and self.label_smoothing:
      targets = optax.smooth_labels(targets, self.label_smoothing)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {
      "loss": jnp.sum(mask * optax.softmax_cross_entropy(logits, targets)),
      "accuracy": jnp.sum(mask * correct),
      "count": jnp.sum(mask),
    }
