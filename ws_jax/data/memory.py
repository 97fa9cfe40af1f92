"""Where training steps get their examples from.

A source has `train_size` and three methods. `block(step, num_steps)` returns
the arrays that a block of steps reads, and which examples of them each step
takes; `batches(size)` goes over the evaluation set once; `close()` ends what it
has started. A set in memory gives the same arrays every time; a stream
(`ws_jax.data.stream.source`) gives those of the block alone.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ws_jax.data import place
from ws_jax.data.datasets import Dataset
from ws_jax.data.indices import batch_indices, eval_indices

Arrays = Any


class MemorySource:
  """A data set that lies on every device as a whole.

  Of several processes each reads it, and feeds its own part of every batch: the
  examples that its devices take.

  Args:
    dataset: The data.
    seed: Number that decides, with the step, which examples a step takes.
    batch_size: Number of examples of an optimizer step.
    micro_batch_size: Number of examples of one gradient; divides the batch.
    mesh: Devices; each holds a copy.

  Example:
    >>> from ws_jax import data
    >>> dataset = data.load(data.Request("fashion_mnist_10k"))
    >>> mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    >>> source = MemorySource(dataset, 0, 128, 32, mesh)
    >>> arrays, indices = source.block(step=0, num_steps=2)
    >>> arrays["image"].shape, indices.shape
    ((10000, 28, 28, 1), (2, 4, 32))
  """

  def __init__(
    self,
    dataset: Dataset,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    mesh: Mesh,
  ):
    self.train_size = dataset.num_train
    self._dataset, self._seed, self._mesh = dataset, seed, mesh
    self._batch_size, self._micro_batch_size = batch_size, micro_batch_size

  @functools.cached_property
  def arrays(self) -> Arrays:
    """The training set, on every device."""
    return place.put(self._dataset.train, self._everywhere)

  @functools.cached_property
  def held_out(self) -> Arrays:
    """The evaluation set, on every device."""
    return place.put(self._dataset.test, self._everywhere)

  @property
  def _everywhere(self) -> NamedSharding:
    return NamedSharding(self._mesh, PartitionSpec())

  def block(self, step: int, num_steps: int) -> tuple[Arrays, np.ndarray]:
    """Returns the arrays and the examples of `num_steps` steps from `step` on.

    Returns:
      The arrays, on the devices, and positions in them: int32
      [steps, micro-batches, examples of each].
    """
    return self.arrays, self.indices(step, num_steps)

  def indices(self, step: int, num_steps: int) -> np.ndarray:
    """Returns which examples `num_steps` steps take, as `block` does."""
    drawn = batch_indices(
      self._seed, step, num_steps, self._batch_size, self.train_size
    )
    size = self._micro_batch_size
    micro_batches = self._batch_size // size
    return drawn.reshape(num_steps, micro_batches, size)

  def batches(self, size: int) -> Iterator[tuple[Arrays, Any, Any]]:
    """Yields the evaluation set, every example exactly once.

    Args:
      size: Number of examples at once; rounded up to a multiple of the devices.

    Yields:
      The arrays, on the devices, positions in them [size] and a mask [size]
      that is 0 for padding; the latter two split over the devices.
    """
    num_devices = self._mesh.size
    size = -(-size // num_devices) * num_devices
    split = NamedSharding(self._mesh, PartitionSpec("data"))
    num_examples = jax.tree.leaves(self.held_out)[0].shape[0]
    every = zip(*eval_indices(num_examples, size), strict=True)
    for indices, mask in every:
      yield (self.held_out, *place.put((indices, mask), split))

  def close(self) -> None:
    """Does nothing: no worker is at work."""
