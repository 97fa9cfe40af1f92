"""`jax.jit` for tests, in which compiling takes longer than running."""

import functools

import jax

from ws_jax.train import backend

quick = functools.partial(
  jax.jit, compiler_options=backend.options_to_compile_quickly()
)
