"""Images with one label each, and other inputs that are classified."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ws_jax.base import keys
from ws_jax.data import augment
from ws_jax.tasks import classification
from ws_jax.tasks.metric import Metric

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ImageClassification:
  """Inputs with one int32 label [N] each; images are uint8 [N, H, W, C].

  Images are augmented in training and normalized per channel. Inputs of a float
  dtype, of any shape, reach the model as they are.

  Attributes:
    mean: Mean of each channel, of training images scaled to [0, 1].
    std: Standard deviation of each channel, on the same scale.
    crop_padding: Pixels of zero padding for the random crop; 0 for no crop.
    flip: Whether half of the training images are mirrored left to right.
    size: Height and width that images are resized to; None to leave them.
    resize: The same in training, in front of a random window of `size`; None
      for `size`, without a window.
    mixup: Parameter of the Beta distribution of MixUp; 0 for none.
    label_smoothing: Label smoothing of the training loss (Szegedy et al. 2016,
      sec. 7); the evaluation loss is never smoothed.
    input_key: Name of the inputs in the data.
    label_key: Name of the labels in the data.
  """

  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  crop_padding: int = 0
  flip: bool = False
  size: int | None = None
  resize: int | None = None
  mixup: float = 0.0
  label_smoothing: float = 0.0
  input_key: str = "image"
  label_key: str = "label"

  METRIC: ClassVar[Metric] = Metric("accuracy", "max", "%")
  KEYS: ClassVar[dict[str, keys.Key]] = {
    "crop_padding": keys.integer(2, "pixels of padding of the random crop"),
    "flip": keys.switch(True, "mirror half of the training images"),
    "size": keys.integer(
      None, "pixels of each side that images are resized to", low=1
    ),
    "resize": keys.integer(
      None,
      "the same in training, in front of a random window of task.size",
      low=1,
    ),
    "mixup": keys.number(0.0, "alpha of MixUp; 0: none"),
    "label_smoothing": keys.number(
      0.0, "label smoothing of the training loss", below=1
    ),
  }

  @classmethod
  def create(cls, dataset: Any, **settings: Any) -> "ImageClassification":
    """Makes the task for a data set.

    Args:
      dataset: The data, as `ws_jax.data.load` returns them.
      **settings: Values of `KEYS`; augmentation is for images alone.

    Raises:
      ValueError: the labels are not class numbers, or `resize` is smaller than
        `size`.
    """
    info = dataset.info
    if info.num_classes is None:
      raise ValueError(
        f"data set {info.name!r}: {info.label_key!r} holds no class numbers,"
        " so it cannot be classified; choose data.label_key, or a task.name of"
        " your own"
      )
    size, resize = settings.get("size"), settings.get("resize")
    if resize is not None and (size is None or resize < size):
      raise ValueError(
        f"task.resize={resize} needs a task.size that is not larger, not {size}"
      )
    return cls(
      mean=dataset.mean,
      std=dataset.std,
      input_key=info.input_key,
      label_key=info.label_key,
      **settings,
    )

  def batch(
    self, arrays: Any, indices: jax.Array, key: jax.Array | None
  ) -> Batch:
    """Returns `inputs` [B, ...] float32 and `labels` [B] int32.

    With MixUp also `others` [B], the second labels, and `mix` [B], the share of
    the first ones.
    """
    inputs = jnp.take(arrays[self.input_key], indices, axis=0)
    labels = jnp.take(arrays[self.label_key], indices, axis=0)
    if inputs.dtype == jnp.uint8:
      inputs = self._resized(inputs, key)
      if key is not None:
        crop_key, flip_key = jax.random.split(key)
        if self.crop_padding:
          inputs = augment.random_crop(crop_key, inputs, self.crop_padding)
        if self.flip:
          inputs = augment.random_flip(flip_key, inputs)
      inputs = augment.normalize(inputs, self.mean, self.std)
    if key is None or not self.mixup:
      return {"inputs": inputs, "labels": labels}
    mix_key = jax.random.fold_in(key, 2)
    inputs, others, share = augment.mixup(mix_key, inputs, labels, self.mixup)
    return {"inputs": inputs, "labels": labels, "others": others, "mix": share}

  def _resized(self, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns images of the size that the model sees."""
    if self.size is None:
      return images
    if key is None or self.resize is None:
      return augment.resize(images, self.size)
    images = augment.resize(images, self.resize)
    return augment.random_window(jax.random.fold_in(key, 3), images, self.size)

  def sums(
    self, outputs: jax.Array, batch: Batch, mask: jax.Array, training: bool
  ) -> dict[str, jax.Array]:
    """Sums the cross-entropy (nats) and the correct answers.

    Args:
      outputs: Logits [B, classes].
      batch: Batch of `batch`.
      mask: Weights [B], 1.0 for examples that count.
      training: Whether the labels are smoothed.
    """
    smoothing = self.label_smoothing if training else 0.0
    labels = batch["labels"]
    if "mix" not in batch:
      return classification.sums(outputs, labels, mask, smoothing)
    ones = mask * batch["mix"]
    first = classification.sums(outputs, labels, ones, smoothing)
    other = classification.sums(
      outputs, batch["others"], mask - ones, smoothing
    )
    return jax.tree.map(jnp.add, first, other)
