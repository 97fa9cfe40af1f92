"""Grain's workers, which decode examples ahead of the training loop.

Grain and tf.data were measured on the same JPEG files of ImageNet's sizes
(experiments/benchmarks/stream.md). They take about as much of the processor for
an image. Grain needs no TensorFlow, finds any example by its number, and leaves
the pixels to Pillow.

An example is a pure function of its number (`TrainExamples`, `EvalExamples`).
So the number of threads and processes changes nothing but the speed, and a
resumed run asks for the numbers from its step on: `TrainState.step` in the
checkpoint is the place of the iterator.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ws_jax.base import cores
from ws_jax.data.indices import example_at
from ws_jax.data.request import DataError
from ws_jax.data.stream import crops
from ws_jax.data.stream.options import Options
from ws_jax.data.stream.records import Records

Example = dict[str, Any]

# A training run has no last example; Python allows no longer length.
_ENDLESS = 2**62
# So many in a row that cannot be read are no accident.
_MOST_UNREADABLE = 100
_WATCH_SECONDS = 5.0


class Examples(Protocol):
  """Examples by number, each a dict of arrays of one shape."""

  def __len__(self) -> int:
    """Returns the number of examples."""
    ...

  def __getitem__(self, number: Any) -> Example:
    """Returns an example; two calls return the same."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class TrainExamples:
  """The training examples of this process from a step on.

  Attributes:
    records: the images of the whole split.
    part: the positions in it that training may use.
    options: how they are decoded.
    seed: the number that decides order and augmentation.
    batch_size: the number of examples of a step, of all processes.
    rows: the rows of a batch that this process has, in order.
    first: the step of the first example.
  """

  records: Records
  part: range
  options: Options
  seed: int
  batch_size: int
  rows: np.ndarray
  first: int

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, number: Any) -> Example:
    steps, row = divmod(int(number), len(self.rows))
    position = (self.first + steps) * self.batch_size + int(self.rows[row])
    index = example_at(self.seed, position, len(self.part))
    for unreadable in range(_MOST_UNREADABLE):
      place = self.part[(index + unreadable) % len(self.part)]
      # Not [seed, epoch], which decides the order.
      rng = np.random.default_rng([self.seed, position, 1])
      decode = lambda data, rng=rng: crops.train_pixels(data, rng, self.options)
      try:
        image, label = pixels(self.records, place, decode)
      except DataError:
        if self.options.on_error == "raise":
          raise
        continue
      return {
        "image": image,
        "label": np.int32(label),
        "index": np.int64(index),
        "unreadable": np.int32(unreadable),
      }
    raise DataError(
      f"{_MOST_UNREADABLE} images in a row cannot be read, the first of them"
      f" {self.records.name(self.part[index])}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class EvalExamples:
  """The evaluation examples of this process, in order, padded to whole batches.

  Attributes:
    records: the images of the whole split.
    part: the positions in it to evaluate on.
    options: how they are decoded.
    batch_size: the number of examples of a batch, of all processes.
    rows: the rows of a batch that this process has, in order.
  """

  records: Records
  part: range
  options: Options
  batch_size: int
  rows: np.ndarray

  def __len__(self) -> int:
    return -(-len(self.part) // self.batch_size) * len(self.rows)

  def __getitem__(self, number: Any) -> Example:
    batch, row = divmod(int(number), len(self.rows))
    index = batch * self.batch_size + int(self.rows[row])
    size = self.options.image_size
    example = {
      "image": np.zeros((size, size, 3), np.uint8),
      "label": np.int32(0),
      "mask": np.float32(0),
      "index": np.int64(index),
      "unreadable": np.int32(0),
    }
    if index >= len(self.part):
      return example
    decode = lambda data: crops.eval_pixels(data, self.options)
    try:
      image, label = pixels(self.records, self.part[index], decode)
    except DataError:
      if self.options.on_error == "raise":
        raise
      return example | {"unreadable": np.int32(1)}
    found = {"image": image, "label": np.int32(label), "mask": np.float32(1)}
    return example | found


def pixels(
  records: Records, index: int, decode: Callable[[bytes], np.ndarray]
) -> tuple[np.ndarray, int]:
  """Reads and decodes an image.

  Raises:
    DataError: it cannot be read or decoded; the message names its file.
  """
  try:
    encoded, label = records.read(index)
    return decode(encoded), label
  except DataError as error:
    raise DataError(f"{records.name(index)} {error}") from error


def reason(records: Records, index: int) -> str:
  """Returns why an image cannot be read, by another try."""
  try:
    pixels(records, index, crops.decode)
  except DataError as error:
    return str(error).removeprefix(records.name(index)).strip()
  return "could not be read, but now can"


def batches(examples: Examples, size: int, options: Options) -> Any:
  """Returns batches of examples in order, decoded ahead by workers.

  Args:
    examples: the examples of this process.
    size: the number of examples of each batch; divides their number.
    options: how many workers.

  Returns:
    An iterator whose `close` ends the workers.
  """
  import grain

  if options.processes:
    _let_grain_read_flags()
  threads = options.workers or (1 if options.processes else cores.count() or 1)
  numbered: Any = examples
  dataset = grain.MapDataset.source(numbered)
  # A thread makes whole batches: handing over one image after the other takes a
  # tenth of the time that decoding does. So does a process, every n-th batch;
  # then the number of workers does not matter for what is in a batch.
  ahead = grain.ReadOptions(threads, threads + 1)
  ready = dataset.batch(size).to_iter_dataset(ahead)
  if options.processes:
    workers = grain.MultiprocessingOptions(options.processes)
    ready = ready.mp_prefetch(workers, worker_init_fn=_start_worker)
  return iter(ready)


def _start_worker(number: int, count: int) -> None:
  """Prepares a worker process for the end of its parent.

  A signal to all processes of a run is for the training loop, which saves its
  state and then ends the workers. One whose parent was killed ends by itself.
  """
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
  watch = threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True)
  watch.start()


def _end_after(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(_WATCH_SECONDS)
  os._exit(1)


def _let_grain_read_flags() -> None:
  """Lets Grain start processes in a program that parses no absl flags.

  Grain 0.2.18 reads a flag of its own as it starts them, and fails where flags
  are not parsed (google/grain #1355).
  """
  import absl.flags

  if not absl.flags.FLAGS.is_parsed():
    absl.flags.FLAGS.mark_as_parsed()
