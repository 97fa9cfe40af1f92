"""Normalization in two passes over memory, and its gradient.

Other code for two functions of `ws_jax.layers.normalize`; their derivatives
are those of the functions there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ws_jax.layers import native


def call(
  handler: str,
  plain: Callable[..., Any],
  arguments: tuple[jax.Array, ...],
  examples: int,
  groups: int,
  epsilon: float,
) -> Any:
  """What `plain` returns, by a handler of XLA's where that is enabled.

  Args:
    handler: its name; it takes and returns what `plain` does.
    plain: the same in JAX, for all else and for the derivatives.
    arguments: of both; the first two are x `[B, ..., C]` and scale `[C]`.
    examples: an argument by name of both, as the rest.
    groups: likewise.
    epsilon: likewise.
  """
  plain = functools.partial(
    plain, examples=examples, groups=groups, epsilon=epsilon
  )
  x, scale, *_ = arguments
  ours = functools.partial(native.enabled, "normalization")
  if not (ours(x.dtype) and ours(scale.dtype) and x.size):
    return plain(*arguments)
  shapes = jax.eval_shape(plain, *arguments)

  @jax.custom_jvp
  def fast(*arguments):
    call = jax.ffi.ffi_call(handler, shapes, vmap_method="sequential")
    results = call(
      *arguments,
      examples=np.int64(examples),
      groups=np.int64(groups),
      epsilon=np.float32(epsilon),
    )
    return tuple(results)

  @fast.defjvp
  def _(primals, tangents):
    _, slopes = jax.jvp(plain, primals, tangents)
    return fast(*primals), slopes

  return fast(*arguments)
