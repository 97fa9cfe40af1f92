"""`input`: whether the training loop keeps the device waiting."""

import time

import jax
import numpy as np

from ws_jax import config, data
from ws_jax.bench import DEFAULT_MODEL, Options, Table, ours, timing
from ws_jax.train import backend, build
from ws_jax.train import step as steps

# Steps in one timing: dispatch runs ahead of the device within it.
_STEPS = 20


def run(options: Options) -> list[Table]:
  """One table for each batch size, on the embedded images."""
  return [_table(options, batch_size) for batch_size in options.batch_sizes]


class Loop:
  """Training steps on the embedded images, as `train_and_evaluate` has them.

  Args:
    model: a name of `ws_jax.models`.
    batch_size: examples in a step.
    augment: whether the images are shifted and mirrored.
    resident: whether the batch of every step was chosen beforehand.
    count: how many steps a call does.
  """

  def __init__(
    self, model: str, batch_size: int, augment: bool, resident: bool, count: int
  ):
    c = config.apply(
      ours.configuration(model, "GN+WS", batch_size).unlock(),
      {"data.crop_padding": 2 if augment else 0, "data.flip": augment},
    )
    dataset = data.load_dataset("fashion_mnist_10k")
    self.program = build.build_program(c, dataset)
    self.arrays = jax.device_put(dataset.train)
    self.state = steps.init_state(self.program, self.arrays, 0, ours.numbers(c))
    self.batch_size, self.done = batch_size, 0
    self.block = backend.steps_of_a_loop(count)
    self.count = count - count % (self.block or 1)  # whole blocks
    self.ready = resident
    self._one = self._indices(self.block or 1)

  def __call__(self) -> float:
    """The seconds of one step, on average over all of a call."""
    began = time.perf_counter()
    for _ in range(self.count // (self.block or 1)):
      indices = self._one if self.ready else self._indices(self.block or 1)
      self.state = steps.train_block(
        self.program, self.state, self.arrays, indices, block=self.block
      )
      self.done += len(indices)
    jax.block_until_ready(self.state)
    return (time.perf_counter() - began) / self.count

  def _indices(self, count: int) -> np.ndarray:
    indices = data.batch_indices(
      0, self.done, count, self.batch_size, len(self.arrays["label"])
    )
    return indices[:, None]


def _table(options: Options, batch_size: int) -> Table:
  model = options.model or DEFAULT_MODEL
  count = min(_STEPS, options.steps)
  make = lambda **how: Loop(model, batch_size, count=count, **how)
  contenders = {
    "batch ready beforehand": make(augment=False, resident=True),
    "loop": make(augment=False, resident=False),
    "loop, augmented": make(augment=True, resident=False),
  }
  seconds = timing.interleave(contenders, options.rounds or 10)
  rows = timing.rows(seconds, "batch ready beforehand", examples=batch_size)
  for row in rows:
    ratio = row["time / batch ready beforehand"]
    row["waiting for input %"] = max(0.0, 100 * (1 - 1 / ratio))
  return Table(
    f"input: {model}, GN+WS, batch {batch_size}, 28x28, {count} steps a timing",
    rows,
  )
