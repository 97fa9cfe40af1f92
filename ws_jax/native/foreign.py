"""Calls of C++ that replace functions of JAX, and take their derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import native


def call(
  name: str,
  handler: str,
  plain: Callable[..., Any],
  arguments: tuple[jax.Array, ...],
  **settings: int | float,
) -> Any:
  """Returns what `plain` returns, computed by C++ where that is enabled.

  Args:
    name: Name of the computation, as `native.enabled` knows it.
    handler: Name under which XLA knows the C++, which takes and returns what
      `plain` does.
    plain: Function in JAX, for all other cases and for the derivatives.
    arguments: Arguments of both.
    **settings: Further arguments of both, by name.
  """
  plain = functools.partial(plain, **settings)
  ours = lambda x: (
    x.size and (x.dtype == jnp.bool_ or native.enabled(name, x.dtype))
  )
  if not all(map(ours, arguments)):
    return plain(*arguments)
  shapes = jax.eval_shape(plain, *arguments)
  wide = {int: np.int64, float: np.float32}
  attributes = {key: wide[type(x)](x) for key, x in settings.items()}

  @jax.custom_jvp
  def fast(*arguments):
    call = jax.ffi.ffi_call(handler, shapes, vmap_method="sequential")
    return tuple(call(*arguments, **attributes))

  @fast.defjvp
  def _(primals, tangents):
    _, slopes = jax.jvp(plain, primals, tangents)
    return fast(*primals), slopes

  return fast(*arguments)
