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
  dtype, of any shape, reach the model as they are. With `mixup` or `cutmix`
  each image of a micro-batch is mixed with another one of it; with both, half
  of the micro-batches by either.

  Attributes:
    mean: Mean of each channel, of training images scaled to [0, 1].
    std: Standard deviation of each channel, on the same scale.
    crop_padding: Pixels of zero padding for the random crop; 0 for no crop.
    flip: Whether half of the training images are mirrored left to right.
    size: Height and width that images are resized to; None to leave them.
    resize: The same in training, in front of a random window of `size`; None
      for `size`, without a window.
    label_smoothing: Label smoothing of the training loss (Szegedy et al. 2016,
      sec. 7); the evaluation loss is never smoothed.
    mixup: Parameter of the beta distribution of mixup (Zhang et al. 2017,
      arXiv:1710.09412); 0 for none.
    cutmix: Parameter of that of CutMix (Yun et al. 2019, arXiv:1905.04899); 0
      for none.
    streamed: Whether the arrays of a step hold its examples alone, laid out as
      by `ws_jax.data.stream.source`; then `batch` gets those of a micro-batch,
      in order. A task without this field takes examples by their indices.
    input_key: Name of the inputs in the data.
    label_key: Name of the labels in the data.
  """

  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  crop_padding: int = 0
  flip: bool = False
  size: int | None = None
  resize: int | None = None
  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  streamed: bool = False
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
    "label_smoothing": keys.number(
      0.0, "label smoothing of the training loss", below=1
    ),
    "mixup": keys.number(0.0, "parameter of mixup, as 0.2; 0: none"),
    "cutmix": keys.number(0.0, "parameter of CutMix, as 1; 0: none"),
  }

  @classmethod
  def create(cls, dataset: Any, **settings: Any) -> "ImageClassification":
    """Makes the task for a data set.

    Args:
      dataset: The data, as `ws_jax.data.load` returns them.
      **settings: Values of `KEYS`; augmentation is for images alone.

    Raises:
      ValueError: the labels are not class numbers, or all of one class; an
        input is not finite; or `resize` is smaller than `size`.
    """
    info = dataset.info
    if info.num_classes is None:
      raise ValueError(
        f"data set {info.name!r}: {info.label_key!r} holds no class numbers,"
        " so it cannot be classified; choose data.label_key, or a task.name of"
        " your own"
      )
    classification.check(dataset)
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
      streamed=getattr(dataset, "stream", None) is not None,
      **settings,
    )

  def batch(
    self, arrays: Any, indices: jax.Array, key: jax.Array | None
  ) -> Batch:
    """Returns `inputs` [B, ...] float32 and `labels` [B] int32.

    Where images are mixed `other_labels` [B] int32 and `share` [B] float32 come
    besides: each image is the share of its own, and the rest of another one.
    """
    inputs = self._take(arrays[self.input_key], indices)
    if inputs.dtype == jnp.uint8 and key is not None:
      inputs = self._augment(key, inputs)
    inputs = self.preprocess(inputs)
    labels = self._take(arrays[self.label_key], indices)
    batch = {"inputs": inputs, "labels": labels}
    if key is None or not (self.mixup or self.cutmix):
      return batch
    mix_key = jax.random.fold_in(key, 2)
    batch["inputs"], share = augment.mix(
      mix_key, inputs, self.mixup, self.cutmix
    )
    batch["other_labels"] = labels[::-1]
    batch["share"] = jnp.full(labels.shape, share, jnp.float32)
    return batch

  def _take(self, array: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns the examples at `indices`.

    Those of a streamed step are there in order: taking them one by one would
    send them from device to device.
    """
    if self.streamed and len(array) == len(indices):
      return array
    return jnp.take(array, indices, axis=0)

  def _augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns uint8 images of the size that the model sees, at random."""
    crop_key, flip_key = jax.random.split(key)
    if self.size is not None and self.resize is not None:
      images = augment.resize(images, self.resize)
      window_key = jax.random.fold_in(key, 3)
      images = augment.random_window(window_key, images, self.size)
    elif self.size is not None:
      images = augment.resize(images, self.size)
    if self.crop_padding:
      images = augment.random_crop(crop_key, images, self.crop_padding)
    if self.flip:
      images = augment.random_flip(flip_key, images)
    return images

  def preprocess(self, inputs: jax.Array) -> jax.Array:
    """Returns what the model takes for inputs as in the data, `[B, ...]`."""
    if inputs.dtype != jnp.uint8:
      return inputs
    if self.size is not None:
      inputs = augment.resize(inputs, self.size)
    return augment.normalize(inputs, self.mean, self.std)

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
    other = None
    if "share" in batch:
      other = batch["other_labels"], batch["share"]
    labels = batch["labels"]
    return classification.sums(outputs, labels, mask, smoothing, other)

  def answers(self, outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns label, answer and group of each example, int32 [3, B]."""
    return classification.answers(outputs, batch)
