"""`micro`: one optimizer batch in micro-batches: gradients, time and memory."""

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import linen
from ws_jax.bench import DEFAULT_MODEL, Options, Row, Table, ours, timing
from ws_jax.bench.others import Others
from ws_jax.train import build
from ws_jax.train import step as steps

_BATCH = 128
# Seeds of the batches whose gradients are compared. Several, because in some a
# ReLU has an input of zero up to round-off: it is open in one order of sums and
# shut in the other, and the gradients differ by more than rounding.
_SEEDS = (0, 1, 2, 3, 4)


def run(options: Options) -> list[Table]:
  """Returns a table of gradients, then one of time and memory for each size.

  The sizes of the micro-batches are those of `--batch_size`.

  Raises:
    ValueError: a size does not divide the batch of 128.
  """
  sizes = options.batch_sizes
  if sizes == Options().batch_sizes:
    sizes = (1, 2, 4, 8, 16, 32, 64, 128)
  for size in sizes:
    if _BATCH % size:
      raise ValueError(f"micro-batches of {size} do not divide {_BATCH}")
  model = options.model or DEFAULT_MODEL
  with contextlib.ExitStack() as stack:
    others = Others(options, stack)
    times = [_times(model, n, options.rounds or 5, others) for n in sizes]
  return [_gradients(model, sizes), *times]


def _gradients(model: str, sizes: tuple[int, ...]) -> Table:
  """Returns how far gradients are from that of the whole batch at once."""
  rows: list[Row] = [{"micro-batch": size} for size in sizes]
  for arm in ("GN+WS", "BN"):
    whole = [gradient(model, arm, _BATCH, seed) for seed in _SEEDS]
    for row, size in zip(rows, sizes, strict=True):
      found = [
        np.linalg.norm(gradient(model, arm, size, seed) - grads)
        / np.linalg.norm(grads)
        for seed, grads in zip(_SEEDS, whole, strict=True)
      ]
      row[arm] = float(np.median(found))
      row[f"{arm}, largest"] = float(max(found))
  title = (
    f"micro: {model}, batch {_BATCH}, relative difference of gradients from"
    f" those without micro-batches, median of {len(_SEEDS)} batches"
  )
  return Table(title, rows)


def gradient(model: str, arm: str, micro: int, seed: int = 0) -> np.ndarray:
  """Returns the gradient of one batch in parts, by the raw parameters, flat.

  Args:
    model: Name of a model in `ws_jax.models`.
    arm: Name of an arm in `ARMS`.
    micro: Number of examples in a part; it divides 128.
    seed: Seed of the images.

  Returns:
    A float64 vector: the gradient of the mean loss.
  """
  images = ours.noise(_BATCH, seed=seed)
  setup = ours.set_up(model, arm, _BATCH, images, optim__micro_batch_size=micro)
  program, state = setup.program, setup.state()
  arrays, _ = setup.source.block(0, 0)
  jit = functools.partial(ours.jit, static_argnums=0)
  effective, work = jit(steps.begin)(program, state)
  indices = np.arange(_BATCH, dtype=np.int32).reshape(-1, micro)
  for number, some in enumerate(indices):
    work = jit(steps.accumulate)(
      program, state, effective, work, arrays, jnp.asarray(some), number
    )
  standardize = functools.partial(steps.effective_params, program)
  (grads,) = jax.vjp(standardize, state.params)[1](work.grads)
  leaves = [np.ravel(x) for x in jax.tree.leaves(jax.device_get(grads))]
  return np.concatenate(leaves).astype(np.float64) / _BATCH


class Inside(linen.WeightStandardization):
  """A model with WS inside, whose signature tells that it takes `train`."""

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Computes the logits with standardized kernels."""
    return super().__call__(x, train=train)


class EveryTime(ours.Step):
  """A step that standardizes the weights again for every micro-batch.

  Models whose layers standardize their own kernels do the same.
  """

  def adapt(self, setup: build.Setup) -> build.Setup:
    """Returns a run without WS, of a model that has WS inside."""
    program = setup.program
    assert program.convention is not None
    inside = Inside(program.model, convention=program.convention)
    program = dataclasses.replace(program, model=inside, convention=None)
    return dataclasses.replace(setup, program=program)


def _times(model: str, size: int, rounds: int, others: Others) -> Table:
  with tempfile.TemporaryDirectory() as folder:
    weights = str(pathlib.Path(folder, "weights.npz"))
    how: dict[str, Any] = {"optim__micro_batch_size": size}
    once = ours.Step(model, "GN+WS", _BATCH, weights, **how)
    contenders: dict[str, Any] = {
      "GN": ours.Step(model, "GN", _BATCH, **how),
      "BN": ours.Step(model, "BN", _BATCH, **how),
      "GN+WS once a step": once,
      "GN+WS every micro-batch": EveryTime(model, "GN+WS", _BATCH, **how),
    }
    memory = {
      name: step.plan().temp_size_in_bytes / 1e6
      for name, step in contenders.items()
    }
    contenders |= others.make("GN+WS", weights, once.losses, _BATCH, size)
  seconds = timing.interleave(contenders, rounds)
  rows = timing.rows(seconds, against="GN", examples=_BATCH)
  for row in rows:
    row["temporary MB"] = memory.get(row["contender"], "")
  return Table(f"micro: {model}, batch {_BATCH} in parts of {size}", rows)
