"""`fold`: inference with plain weights, with folded ones, and with WS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import ws_jax
from ws_jax.bench import DEFAULT_MODEL, Options, Table, ours, timing
from ws_jax.train import backend


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size."""
  return [
    _table(options.model or DEFAULT_MODEL, batch_size, options.rounds or 50)
    for batch_size in options.batch_sizes
  ]


def _table(name: str, batch_size: int, rounds: int) -> Table:
  model = ours.set_up(name, "GN+WS", batch_size).program.model
  images = jnp.asarray(
    np.random.default_rng(0).normal(size=(batch_size, 32, 32, 3)), jnp.float32
  )
  quickly = backend.options_to_compile_quickly()
  init = functools.partial(model.init, train=False)
  params = jax.jit(init, compiler_options=quickly)(jax.random.key(0), images)[
    "params"
  ]

  def apply(params, images):
    return model.apply({"params": params}, images, train=False)

  plain = ours.jit(apply)
  standardized = ours.jit(
    lambda params, images: apply(ws_jax.weight_standardize(params), images)
  )

  folded = jax.jit(ws_jax.fold)(params)
  error = jnp.abs(plain(folded, images) - standardized(params, images)).max()
  seconds = timing.interleave(
    {
      "plain": timing.timed(lambda: plain(params, images)),
      "folded": timing.timed(lambda: plain(folded, images)),
      "WS at each call": timing.timed(lambda: standardized(params, images)),
    },
    rounds,
  )
  return Table(
    f"fold: {name}, GN, inference, 32x32, batch {batch_size}; folded logits"
    f" differ from WS at each call by {float(error):.1e} at most",
    timing.rows(seconds, against="plain", examples=batch_size),
  )
