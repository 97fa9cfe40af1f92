"""`norm`: GroupNorm and BatchNorm, both passes: time, error and memory."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ws_jax.bench import Options, Table, timing
from ws_jax.bench.others import PLAIN
from ws_jax.bench.ours import jit
from ws_jax.bench.worker import Worker
from ws_jax.layers import norm

SHAPES = ((64, 32, 32, 16), (64, 32, 32, 64), (64, 8, 8, 64), (64, 8, 8, 256))
_GROUPS, _EPSILON = 8, 1e-5
# Mean and standard deviation of the inputs for which the error is measured.
_INPUTS = ((0.0, 1.0), (100.0, 0.01))


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size, shape and norm."""
  with contextlib.ExitStack() as stack:
    worker = None
    if "torch" in options.against:
      worker = stack.enter_context(Worker(PLAIN))
    return [
      _table(kind, (batch_size, *shape[1:]), options.rounds or 20, worker)
      for batch_size in options.batch_sizes
      for shape in SHAPES
      for kind in ("group", "batch")
    ]


def layers(kind: str) -> dict[str, nn.Module]:
  """Returns the layers to compare by name: two of Flax's, and ours.

  `flax, two-pass` is Flax's layer with its slower and safer variance.

  Args:
    kind: `group` or `batch`.
  """
  if kind == "group":
    flax = lambda fast: nn.GroupNorm(
      _GROUPS, epsilon=_EPSILON, use_fast_variance=fast
    )
    ours: nn.Module = norm.GroupNorm(_GROUPS, epsilon=_EPSILON)
  else:
    flax = lambda fast: nn.BatchNorm(
      use_running_average=False, epsilon=_EPSILON, use_fast_variance=fast
    )
    ours = norm.BatchNorm(epsilon=_EPSILON)
  return {"flax": flax(True), "flax, two-pass": flax(False), "ours": ours}


def both_passes(layer: nn.Module, x: jax.Array) -> Any:
  """Compiles `(x, dy) -> (y, (gradients of the parameters, dx))` of a layer."""
  own = isinstance(layer, norm.BatchNorm)
  train: dict[str, Any] = {"train": True} if own else {}
  init = lambda x: layer.init(jax.random.key(0), x, **train)
  variables = jax.jit(init)(x)

  def work(x, dy):
    def apply(params, x):
      everything = {**variables, "params": params}
      return layer.apply(everything, x, mutable=["batch_stats"], **train)

    y, pull_back, _ = jax.vjp(apply, variables["params"], x, has_aux=True)
    return y, pull_back(dy)

  return jit(work).lower(x, x).compile()


def exact(kind: str, x: np.ndarray, dy: np.ndarray) -> tuple[Any, Any]:
  """Computes the result and the gradient of the input in float64.

  Args:
    kind: `group` or `batch`.
    x: Input `[B, H, W, C]`.
    dy: Gradient of the result, of the same shape.

  Returns:
    Two arrays of the same shape.
  """
  x, dy = x.astype(np.float64), dy.astype(np.float64)
  axes = (1, 2, 4) if kind == "group" else (0, 1, 2, 4)
  groups = _GROUPS if kind == "group" else x.shape[-1]
  split = lambda a: a.reshape(*a.shape[:3], groups, -1)
  mean = lambda a: a.mean(axes, keepdims=True)
  rows, grads = split(x), split(dy)
  centred = rows - mean(rows)
  rstd = 1 / np.sqrt(mean(centred**2) + _EPSILON)
  unit = centred * rstd
  dx = rstd * (grads - mean(grads) - unit * mean(grads * unit))
  return unit.reshape(x.shape), dx.reshape(x.shape)


def _table(kind, shape, rounds: int, worker: Worker | None) -> Table:
  rng = np.random.default_rng(0)
  noise, dy = rng.standard_normal((2, *shape), np.float32)
  x, on_device = jnp.asarray(noise), jnp.asarray(dy)
  programs = {
    name: both_passes(layer, x) for name, layer in layers(kind).items()
  }
  contenders = {
    name: timing.timed(lambda p=program: p(x, on_device))
    for name, program in programs.items()
  }
  if worker is not None:
    number = worker.make("torch_side", "Norm", kind=kind, shape=shape)
    contenders["torch"] = worker.contender(number)
  rows = timing.rows(timing.interleave(contenders, rounds), against="flax")
  for row in rows:
    program = programs.get(row["contender"])
    if program is None:
      continue
    for mean, std in _INPUTS:
      values = (mean + std * noise).astype(np.float32)
      y, (_, dx) = program(jnp.asarray(values), dy)
      true_y, true_dx = exact(kind, values, dy)
      where = f"mean {mean:g} std {std:g}"
      row[f"error, {where}"] = _error(y, true_y)
      row[f"of dx, {where}"] = _error(dx, true_dx)
    memory = program.memory_analysis().temp_size_in_bytes
    row["extra memory / x"] = memory / x.nbytes
  name = "GroupNorm" if kind == "group" else "BatchNorm"
  size = "x".join(map(str, shape))
  return Table(f"norm: {name}, {size}; errors relative to the largest", rows)


def _error(value: jax.Array, true: np.ndarray) -> float:
  return float(np.abs(np.asarray(value) - true).max() / np.abs(true).max())
