"""`ws`: Weight Standardization over all kernels of a network, both passes."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ws_jax
from ws_jax import models
from ws_jax.bench import Options, Table, timing
from ws_jax.bench.flax_side import naive
from ws_jax.bench.others import PLAIN
from ws_jax.bench.ours import jit
from ws_jax.bench.worker import Worker
from ws_jax.core import kernels

NETWORKS = ("resnet20", "resnet50", "wrn28_10")

Params = dict[str, jax.Array]


def run(options: Options) -> list[Table]:
  """Returns a table for each network."""
  networks = (options.model,) if options.model else NETWORKS
  with contextlib.ExitStack() as stack:
    worker = None
    if "torch" in options.against:
      worker = stack.enter_context(Worker(PLAIN))
    return [_table(name, options.rounds or 20, worker) for name in networks]


def make_kernels(network: str) -> Params:
  """Returns random kernels of a network's convolutions, HWIO, by path.

  Args:
    network: Name of a model in `ws_jax.models`, or `wrn28_10` (Zagoruyko and
      Komodakis, 2016, arXiv:1605.07146; its stem here is as wide as its first
      stage).
  """
  if network == "wrn28_10":
    model = models.ResNet(10, block_sizes=(4, 4, 4), channels=160, version=2)
  else:
    model = models.create_model(network, num_classes=10)
  images = jnp.zeros((1, 32, 32, 3))
  init = lambda key: model.init(key, images, train=False)["params"]
  tree = jax.eval_shape(init, jax.random.key(0))
  chosen = kernels.select(tree, ws_jax.conv_kernels)
  rng = np.random.default_rng(0)
  return {
    path: jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32))
    for path, leaf in chosen.items()
  }


def both_passes(function: Callable[[Params], Params]) -> Callable[..., Any]:
  """Returns a function that computes effective kernels and their VJP."""

  def work(params, cotangents):
    effective, pull_back = jax.vjp(function, params)
    return effective, *pull_back(cotangents)

  return work


def _table(network: str, rounds: int, worker: Worker | None) -> Table:
  params = make_kernels(network)
  size = sum(x.nbytes for x in params.values())
  copy = lambda *trees: jax.tree.map(lambda x: -x, trees)
  ours = both_passes(ws_jax.weight_standardize)
  programs = {
    "copy": jax.jit(copy),
    "ours": jax.jit(ours),
    "ours, compiled as our steps are": jit(ours),
    "naive, per layer": jax.jit(both_passes(lambda p: jax.tree.map(naive, p))),
  }
  contenders, extra = {}, {}
  for name, program in programs.items():
    compiled = program.lower(params, params).compile()
    plan: Any = compiled.memory_analysis()
    extra[name] = plan.temp_size_in_bytes / size
    contenders[name] = timing.timed(
      lambda compiled=compiled: compiled(params, params)
    )
  if jax.default_backend() == "cpu":
    contenders["memcpy"] = timing.timed(_memcpy(params))
  if worker is not None:
    shapes = [x.shape for x in params.values()]
    number = worker.make("torch_side", "Standardize", shapes=shapes)
    contenders["timm, batch_norm"] = worker.contender(number)
  seconds = timing.interleave(contenders, rounds, warmup=2)
  rows = timing.rows(seconds, against="copy")
  for row in rows:
    name = row["contender"]
    row["extra memory / kernels"] = extra.get(name, "")
  title = f"ws: {len(params)} kernels of {network}, {size / 1e6:.1f} MB"
  return Table(f"{title}; copy reads and writes what both passes must", rows)


def _memcpy(params: Params) -> Callable[[], None]:
  """Returns a function that copies the same bytes on the host, in NumPy."""
  sources = [np.asarray(x) for x in params.values()]
  targets = [np.zeros_like(x) for x in sources]

  def work():
    for _ in range(2):  # once for the kernels, once for the cotangents
      for target, source in zip(targets, sources, strict=True):
        np.copyto(target, source)

  return work
