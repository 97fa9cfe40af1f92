"""`input`: how long the device waits for the training loop."""

import time
from typing import Any

import jax
import numpy as np

from ws_jax import data
from ws_jax.bench import DEFAULT_MODEL, Options, Table, ours, stream, timing
from ws_jax.train import backend
from ws_jax.train import step as steps

# Steps in one timing. Several, because the dispatch runs ahead of the device.
_STEPS = 20


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size, on the embedded images."""
  if options.source == "stream":
    return stream.run(options)
  return [_table(options, batch_size) for batch_size in options.batch_sizes]


class Loop:
  """Training steps on the embedded images, done as `train_and_evaluate` does.

  Args:
    model: Name of a model in `ws_jax.models`.
    batch_size: Number of examples in a step.
    augment: Whether the images are shifted and mirrored.
    resident: Whether one batch, chosen beforehand, serves every step.
    count: Number of steps of a call.
  """

  def __init__(
    self, model: str, batch_size: int, augment: bool, resident: bool, count: int
  ):
    padding = 2 if augment else 0
    how: dict[str, Any] = {"task__crop_padding": padding, "task__flip": augment}
    images = data.load(data.Request("fashion_mnist_10k"))
    setup = ours.set_up(model, "GN+WS", batch_size, images, **how)
    self.program, self.state = setup.program, setup.state()
    self.source, self.done = setup.source, 0
    self.block = backend.steps_of_a_loop(count)
    self.count = count - count % (self.block or 1)  # whole blocks
    self.ready = self._next(self.block or 1) if resident else None

  def __call__(self) -> float:
    """Does `count` steps, and returns the mean seconds of one."""
    began = time.perf_counter()
    for _ in range(self.count // (self.block or 1)):
      arrays, indices = self.ready or self._next(self.block or 1)
      self.state = steps.train_block(
        self.program, self.state, arrays, indices, block=self.block
      )
      self.done += len(indices)
    jax.block_until_ready(self.state)
    return (time.perf_counter() - began) / self.count

  def _next(self, count: int) -> tuple[Any, np.ndarray]:
    return self.source.block(self.done, count)


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
