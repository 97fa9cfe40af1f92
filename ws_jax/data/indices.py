"""Which examples make up a batch: a pure function of (seed, step)."""

import functools

import numpy as np


def batch_indices(
  seed: int,
  first_step: int,
  num_steps: int,
  batch_size: int,
  num_examples: int,
) -> np.ndarray:
  """Returns the examples of `num_steps` training steps in a row.

  Think of one endless sequence: a permutation of all examples for epoch 0,
  another for epoch 1, and so on. Step `s` takes the positions
  `[s * batch_size, (s + 1) * batch_size)` of it. Nothing is dropped at the end
  of an epoch, a batch may be larger than the set, and any step is found
  without going through the ones before it, so a resumed run sees the batches
  of an uninterrupted one.

  Args:
    seed: Number that decides, with the epoch, the permutation; 0 or more.
    first_step: Number of the first step, counted from 0.
    num_steps: Number of steps.
    batch_size: Number of examples of a step.
    num_examples: Size of the training set.

  Returns:
    An int32 array `[num_steps, batch_size]` of positions in the set.

  Raises:
    ValueError: a number is out of range.

  Example:
    >>> batch_indices(0, 0, 3, 4, 6).shape
    (3, 4)
    >>> later = batch_indices(0, 2, 1, 4, 6)
    >>> bool((later == batch_indices(0, 0, 3, 4, 6)[2:]).all())
    True
  """
  _at_least(0, seed=seed, first_step=first_step, num_steps=num_steps)
  _at_least(1, batch_size=batch_size, num_examples=num_examples)
  position = int(first_step) * int(batch_size)
  end = position + int(num_steps) * int(batch_size)
  parts = [np.zeros(0, np.int32)]
  while position < end:
    epoch, start = divmod(position, int(num_examples))
    order = _permutation(int(seed), epoch, int(num_examples))
    part = order[start : start + end - position]
    parts.append(part)
    position += len(part)
  return np.concatenate(parts).reshape(num_steps, batch_size)


def example_at(seed: int, position: int, num_examples: int) -> int:
  """Returns one example of the endless sequence that `batch_indices` cuts.

  Args:
    seed: Number that decides, with the epoch, the permutation; 0 or more.
    position: Place in the sequence, counted from 0.
    num_examples: Size of the training set.

  Example:
    >>> both = [example_at(0, position, 6) for position in (8, 9)]
    >>> both == batch_indices(0, 4, 1, 2, 6)[0].tolist()
    True
  """
  epoch, place = divmod(int(position), int(num_examples))
  return int(_permutation(int(seed), epoch, int(num_examples))[place])


def eval_indices(
  num_examples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns batches that hold every example exactly once, of one shape.

  Args:
    num_examples: Size of the set.
    batch_size: Number of examples of a batch.

  Returns:
    The positions, int32 `[k, batch_size]`, in order, and a mask of the same
    shape, float32: 1 for an example, 0 for the padding of the last batch
    (which repeats example 0). `k` is the smallest that fits all.

  Raises:
    ValueError: a number is below 1.

  Example:
    >>> indices, mask = eval_indices(5, 3)
    >>> indices.tolist(), mask.tolist()
    ([[0, 1, 2], [3, 4, 0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
  """
  _at_least(1, num_examples=num_examples, batch_size=batch_size)
  num_batches = -(-num_examples // batch_size)
  positions = np.arange(num_batches * batch_size)
  real = positions < num_examples
  indices = np.where(real, positions, 0).astype(np.int32)
  shape = (num_batches, batch_size)
  return indices.reshape(shape), real.astype(np.float32).reshape(shape)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  # Kept for a few epochs, because a block of steps asks for its epoch again.
  order = np.random.default_rng([seed, epoch]).permutation(num_examples)
  return order.astype(np.int32)


def _at_least(least: int, **numbers: int) -> None:
  for what, number in numbers.items():
    if number < least:
      raise ValueError(f"{what} is {number}, but must be at least {least}")
