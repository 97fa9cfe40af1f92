"""Normalization in two passes over memory, and its gradient.

Both are functions of `ws_jax.normalize` computed by other code, and their own
derivatives are those of the functions there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def forward(plain: Callable, *arguments: jax.Array, **settings: Any):
  """`plain(x, scale, bias, **settings)`: y, means and variances, float32.

  Args:
    plain: the same in JAX, for the derivatives.
    *arguments: x `[B, ..., C]`, scale and bias `[C]`.
    **settings: `examples`, `groups` and `epsilon`.
  """
  return _call("WsJaxNormalize", plain, settings, *arguments)


def backward(plain: Callable, *arguments: jax.Array, **settings: Any):
  """The same for the gradients by x, scale and bias.

  Args:
    plain: as in `forward`.
    *arguments: x, scale, means, variances, and the cotangents of y, means and
      variances.
    **settings: as in `forward`.
  """
  return _call("WsJaxNormalizeBackward", plain, settings, *arguments)


def _call(target, plain, settings, *arguments):
  plain = functools.partial(plain, **settings)
  results = jax.eval_shape(plain, *arguments)
  attributes = {
    "examples": np.int64(settings["examples"]),
    "groups": np.int64(settings["groups"]),
    "epsilon": np.float32(settings["epsilon"]),
  }

  @jax.custom_jvp
  def fast(*arguments):
    call = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    return tuple(call(*arguments, **attributes))

  @fast.defjvp
  def _(primals, tangents):
    _, slopes = jax.jvp(plain, primals, tangents)
    return fast(*primals), slopes

  return fast(*arguments)
