"""`profile`: where the time of a training step goes, part by part.

Each part is timed on its own, at the shapes it has in the network, and counts
as often as the step needs it. The time that a step takes beyond their sum is
"the rest": activations, additions, the head. It may be negative, because XLA
fuses parts within a step.
"""

import collections
import contextlib
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import ws_jax
from ws_jax.bench import DEFAULT_MODEL, Options, Row, Table, ours, timing
from ws_jax.bench import norm as norms_bench
from ws_jax.bench.others import PLAIN
from ws_jax.bench.worker import Worker
from ws_jax.bench.ws import both_passes, make_kernels
from ws_jax.layers import norm
from ws_jax.layers.convolve import conv_general_dilated

_PASSES = ("forward", "input gradient", "filter gradient")
_BACK = "the step, freed memory given back"
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Conv(NamedTuple):
  """A convolution with the same padding on both sides.

  Attributes:
    inputs: Shape of the input, NHWC.
    kernel: Shape of the kernel, HWIO.
    stride: Stride in both directions.
  """

  inputs: tuple[int, ...]
  kernel: tuple[int, ...]
  stride: int

  @property
  def results(self) -> tuple[int, ...]:
    """Returns the shape of the result, NHWC."""
    size = lambda n: -(-n // self.stride)
    batch, height, width, _ = self.inputs
    return batch, size(height), size(width), self.kernel[-1]

  @property
  def flops(self) -> float:
    """Returns the operations of the forward pass, or of either gradient."""
    return 2.0 * math.prod(self.results) * math.prod(self.kernel[:3])

  def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes the forward pass."""
    pad = ((self.kernel[0] - 1) // 2,) * 2
    strides = (self.stride, self.stride)
    return conv_general_dilated(
      x, kernel, strides, (pad, pad), dimension_numbers=_DIMENSIONS
    )


def run(options: Options) -> list[Table]:
  """Returns two tables for each batch size: the parts, each convolution."""
  tables = []
  with contextlib.ExitStack() as stack:
    torch = None
    if "torch" in options.against:
      torch = stack.enter_context(Worker(PLAIN))
    # Runs our program, but gives the memory that XLA frees back to the system.
    back = stack.enter_context(Worker(setup="enable_compilation_cache"))
    for batch_size in options.batch_sizes:
      tables += _tables(options, batch_size, torch, back)
  return tables


def layers(step: ours.Step) -> tuple[dict[Conv, int], dict[Any, int]]:
  """Counts how often the network has each convolution and each norm.

  Args:
    step: Step whose model is looked at; nothing is computed.

  Returns:
    Numbers by convolution, and by the layer and the input shape of a norm.
  """
  convs, norms = collections.Counter(), collections.Counter()

  def record(function, args, kwargs, context):
    module = context.module
    if context.method_name == "__call__" and isinstance(module, nn.Conv):
      size: Any = module.kernel_size
      strides: Any = module.strides
      kernel = (*size, args[0].shape[-1], module.features)
      convs[Conv(args[0].shape, kernel, strides[0])] += 1
    elif isinstance(module, (norm.BatchNorm, norm.GroupNorm)):
      norms[(module.clone(name=None, parent=None), args[0].shape)] += 1
    return function(*args, **kwargs)

  batch = step.program.task.batch(
    step.arrays, jnp.asarray(step.indices[0, 0]), None
  )
  init = functools.partial(step.program.model.init, train=False)
  with nn.intercept_methods(record):
    jax.eval_shape(init, jax.random.key(0), batch["inputs"])
  return convs, norms


def _tables(options, batch_size, torch, back) -> list[Table]:
  model, arm = options.model or DEFAULT_MODEL, options.arms[-1]
  step = ours.Step(model, arm, batch_size)
  convs, norms = layers(step)
  contenders: dict[str, timing.Contender] = {"the step": step}
  number = back.make(
    "ours", "Step", model=model, arm=arm, batch_size=batch_size
  )
  contenders[_BACK] = back.contender(number)
  for conv in convs:
    contenders |= conv_contenders(conv, torch)
  for layer, shape in norms:
    contenders[f"{layer.__class__.__name__} {shape}"] = norm_contender(
      layer, shape
    )
  kernels = make_kernels(model)
  work = ours.jit(both_passes(ws_jax.weight_standardize))
  contenders["WS"] = timing.timed(lambda: work(kernels, kernels))
  contenders["matmul"], flops = _matmul()
  contenders["copy"], bytes_moved = _copy()
  seconds = timing.interleave(contenders, options.rounds or 10)
  median = {name: float(np.median(times)) for name, times in seconds.items()}
  peak = flops / median["matmul"]
  title = f"profile: {model}, {arm}, batch {batch_size}"
  machine = (
    f"matmul {peak / 1e9:.0f} GFLOP/s, copy"
    f" {bytes_moved / median['copy'] / 1e9:.1f} GB/s"
  )
  parts = _parts(median, convs, norms, peak, arm)
  table = Table(f"{title}; {machine}", parts)
  return [table, Table(f"{title}, each convolution, ms", _each(median, convs))]


def conv_contenders(conv: Conv, torch: Worker | None) -> dict[str, Any]:
  """Returns contenders for the three passes, ours and those of PyTorch."""
  rng = np.random.default_rng(0)
  make = lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  x, kernel, dy = make(conv.inputs), make(conv.kernel), make(conv.results)
  functions = (
    lambda x, kernel, dy: conv(x, kernel),
    lambda x, kernel, dy: jax.vjp(lambda x: conv(x, kernel), x)[1](dy),
    lambda x, kernel, dy: jax.vjp(lambda k: conv(x, k), kernel)[1](dy),
  )
  made = {}
  for name, function in zip(_PASSES, functions, strict=True):
    work = ours.jit(function)
    made[f"{conv} {name}"] = timing.timed(lambda work=work: work(x, kernel, dy))
    if torch is not None:
      number = torch.make("torch_side", "Conv", which=name, **conv._asdict())
      made[f"{conv} {name} torch"] = torch.contender(number)
  return made


def norm_contender(layer: nn.Module, shape: Any) -> timing.Contender:
  """Returns a contender for both passes of a norm."""
  x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
  work = norms_bench.both_passes(layer, x)
  return timing.timed(lambda: work(x, x))


def _parts(median, convs, norms, peak: float, arm: str) -> list[Row]:
  whole = median["the step"]
  flops = sum(conv.flops * n for conv, n in convs.items())
  rows: list[Row] = []

  def add(part: str, seconds: float, flops: float = 0.0) -> None:
    row: Row = {"part": part, "ms": 1e3 * seconds}
    row["% of the step"] = 100 * seconds / whole
    if flops:
      row["GFLOP/s"] = flops / seconds / 1e9
      row["% of matmul"] = 100 * flops / seconds / peak
    rows.append(row)

  for name in _PASSES:
    # The gradient of the images is not computed in training.
    wanted = {c: n for c, n in convs.items() if _needed(c, name)}
    seconds = sum(median[f"{c} {name}"] * n for c, n in wanted.items())
    part = sum(c.flops * n for c, n in wanted.items())
    add(f"convolutions, {name}", seconds, part)
  norm_names = {f"{k.__class__.__name__} {s}": n for (k, s), n in norms.items()}
  add("normalization", sum(median[k] * n for k, n in norm_names.items()))
  if arm.endswith("WS"):
    add("WS", median["WS"])
  add("the rest", whole - sum(row["ms"] for row in rows) / 1e3)
  add("the step", whole, 3 * flops)
  add("more if freed memory is given back", median[_BACK] - whole)
  return rows


def _needed(conv: Conv, name: str) -> bool:
  return name != "input gradient" or conv.inputs[-1] > 3


def _each(median, convs) -> list[Row]:
  rows = []
  for conv, count in convs.items():
    row: Row = {
      "input": "x".join(map(str, conv.inputs)),
      "kernel": "x".join(map(str, conv.kernel)),
      "stride": conv.stride,
      "times": count,
    }
    for name in _PASSES:
      seconds = median[f"{conv} {name}"]
      row[name] = 1e3 * seconds
      row[f"GFLOP/s {name}"] = conv.flops / seconds / 1e9
      if f"{conv} {name} torch" in median:
        row[f"time / torch {name}"] = seconds / median[f"{conv} {name} torch"]
    rows.append(row)
  return rows


def _matmul() -> tuple[timing.Contender, float]:
  n = 1536
  x = jnp.ones((n, n))
  work = ours.jit(lambda x: x @ x)
  return timing.timed(lambda: work(x)), 2.0 * n**3


def _copy() -> tuple[timing.Contender, float]:
  x = jnp.ones(2**24)
  work = ours.jit(lambda x: -x)
  return timing.timed(lambda: work(x)), 2.0 * x.nbytes
