"""`jax.jit` for tests, in which compiling takes longer than running."""

from collections.abc import Callable
from typing import Any

import jax

from ws_jax.train import backend


def quick(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
  """Returns the function compiled, hardly optimized.

  Traced within another, as by `jax.eval_shape`, it is that function itself: JAX
  takes options of the compiler at the top alone.
  """
  options = backend.options_to_compile_quickly()
  compiled = jax.jit(function, compiler_options=options, **how)

  def call(*args: Any, **more: Any) -> Any:
    leaves = jax.tree.leaves((args, more))
    traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    return (function if traced else compiled)(*args, **more)

  return call
