"""Where training steps get their examples from, where images are streamed.

The counterpart of `ws_jax.data.memory`: a block of steps gets the examples of
these steps alone, in order. Each process decodes the rows of a batch that its
own devices hold.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ws_jax.data import place
from ws_jax.data.datasets import Dataset
from ws_jax.data.request import DataError
from ws_jax.data.stream import loader
from ws_jax.data.stream.opened import Stream

Arrays = Any

# Files that status.json names; of more it has the number.
_MOST_NAMED = 1000


class StreamSource:
  """A data set whose images are decoded as they are needed.

  Args:
    dataset: The data, as `ws_jax.data.load` returns them for a stream.
    seed: Number that decides, with the step, the examples and their crops.
    batch_size: Number of examples of an optimizer step, of all processes.
    micro_batch_size: Number of examples of one gradient; divides the batch.
    mesh: Devices; the examples are split over its `data` axis.

  Attributes:
    train_size: Number of training examples.
    counts: What this process could not read since it began, for `status.json`:
      `left_out` has a line for each file that is missing, `unreadable` is the
      number of images, and `files` says why, by name.
  """

  def __init__(
    self,
    dataset: Dataset,
    seed: int,
    batch_size: int,
    micro_batch_size: int,
    mesh: Mesh,
  ):
    assert dataset.stream is not None
    self.train_size = dataset.num_train
    self._dataset, self._seed, self._mesh = dataset, seed, mesh
    self._stream: Stream = dataset.stream
    self._batch_size, self._micro_batch_size = batch_size, micro_batch_size
    self._ahead: Any = None
    self._next = 0
    left_out = list(self._stream.left_out)
    self.counts = {"left_out": left_out, "unreadable": 0, "files": {}}

  def block(self, step: int, num_steps: int) -> tuple[Arrays, np.ndarray]:
    """Returns the examples of `num_steps` steps from `step` on.

    Returns:
      The arrays, on the devices, and positions in them: int32
      [steps, micro-batches, examples of each]. Each device holds its own part
      of every micro-batch, so that a step moves no image. Without steps the
      arrays hold one black image, for their shapes.

    Raises:
      DataError: an image cannot be read; the message names its file.
    """
    size, micro = self._batch_size, self._micro_batch_size
    positions = np.argsort(self._order()).astype(np.int32)
    starts = size * np.arange(num_steps, dtype=np.int32)
    indices = (starts[:, None] + positions).reshape(-1, size // micro, micro)
    if not num_steps:
      everywhere = NamedSharding(self._mesh, PartitionSpec())
      return place.put(self._dataset.train, everywhere), indices
    steps = [self._step(step + i) for i in range(num_steps)]
    if num_steps == 1:
      return steps[0], indices
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *steps), indices

  def batches(self, size: int) -> Iterator[tuple[Arrays, Any, Any]]:
    """Yields the evaluation set, every example exactly once.

    Args:
      size: Number of examples at once, of all processes; rounded up to a
        multiple of the devices.

    Yields:
      The arrays, positions in them [size] and a mask [size] that is 0 for
      padding and for what cannot be read, split over the devices.

    Raises:
      DataError: this process could read none of its images.
    """
    num_devices = self._mesh.size
    size = -(-size // num_devices) * num_devices
    rows = self._rows(size)
    split = self._stream.splits[1]
    records, part = self._stream.records[split], self._stream.parts[1]
    options = self._stream.options
    examples = loader.EvalExamples(records, part, options, size, rows)
    ready = loader.batches(examples, len(rows), options)
    indices = self._spread(np.arange(size, dtype=np.int32)[rows], rows, size)
    unread, read = 0, False
    try:
      for batch in ready:
        self._count(batch, split, part)
        unread += int(batch["unreadable"].sum())
        read |= bool(batch["mask"].any())
        mask = self._spread(batch["mask"], rows, size)
        yield self._arrays(batch, rows, size), indices, mask
    finally:
      _close(ready)
    if unread and not read:  # a loss over nothing would be 0
      first = records.name(part[int(rows[0])])
      raise DataError(
        f"none of {unread} images to evaluate on can be read, the first of"
        f" them {first}"
      )

  def close(self) -> None:
    """Ends the workers."""
    _close(self._ahead)
    self._ahead = None

  def _step(self, step: int) -> Arrays:
    """Returns the examples of a step; the workers go on with the next."""
    size, split = self._batch_size, self._stream.splits[0]
    rows, part = self._rows(size), self._stream.parts[0]
    if self._ahead is None or step != self._next:
      self.close()
      examples = loader.TrainExamples(
        self._stream.records[split],
        part,
        self._stream.options,
        self._seed,
        size,
        self._order()[rows],
        step,
      )
      self._ahead = loader.batches(examples, len(rows), self._stream.options)
    batch = next(self._ahead)
    self._next = step + 1
    self._count(batch, split, part)
    return self._arrays(batch, rows, size)

  def _order(self) -> np.ndarray:
    """Returns which example of a batch each row holds: by device first."""
    micro, devices = self._micro_batch_size, self._mesh.shape["data"]
    examples = np.arange(self._batch_size)
    parts = examples.reshape(-1, devices, micro // devices)
    return parts.swapaxes(0, 1).ravel()

  def _rows(self, size: int) -> np.ndarray:
    """Returns the rows of a batch that the devices of this process hold."""
    split = NamedSharding(self._mesh, PartitionSpec("data"))
    held = split.addressable_devices_indices_map((size,)).values()
    parts = [np.arange(size)[index] for index in held if index is not None]
    return np.unique(np.concatenate(parts))

  def _arrays(self, batch: Any, rows: np.ndarray, size: int) -> Arrays:
    keys = {
      self._stream.input_key: "image",
      self._stream.label_key: "label",
    }
    return {
      key: self._spread(batch[own], rows, size) for key, own in keys.items()
    }

  def _spread(
    self, local: np.ndarray, rows: np.ndarray, size: int
  ) -> jax.Array:
    """Returns an array over all processes, of which this one has `rows`."""
    split = NamedSharding(self._mesh, PartitionSpec("data"))

    def part(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(size)
      first = int(np.searchsorted(rows, start))
      return local[first : first + stop - start]

    shape = (size, *local.shape[1:])
    return jax.make_array_from_callback(shape, split, part)

  def _count(self, batch: Any, split: str, part: range) -> None:
    """Counts and names what the workers could not read."""
    for row in np.flatnonzero(batch["unreadable"]):
      for i in range(int(batch["unreadable"][row])):
        index = part[(int(batch["index"][row]) + i) % len(part)]
        records = self._stream.records[split]
        name = records.name(index)
        self.counts["unreadable"] += 1
        if name in self.counts["files"]:
          continue
        why = loader.reason(records, index)
        logging.warning("skipped: %s %s", name, why)
        if len(self.counts["files"]) < _MOST_NAMED:
          self.counts["files"][name] = why


def _close(ready: Any) -> None:
  if ready is not None:
    ready.close()
