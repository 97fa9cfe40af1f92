"""Padding with zeros, also in programs for other machines."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ws_jax import native


def pad_zeros(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
  """Pads each axis with zeros, as `jnp.pad` does.

  Programs for other machines join arrays instead: the converter to ONNX cannot
  pad an array whose number of examples is open.

  Args:
    x: Array of any shape.
    pads: Zeros before and after, for each axis.

  Example:
    >>> pad_zeros(jnp.ones((1, 2)), [(0, 0), (1, 2)]).tolist()
    [[0.0, 1.0, 1.0, 0.0, 0.0]]
    >>> with native.portable():
    ...   pad_zeros(jnp.ones((1, 2)), [(0, 0), (1, 2)]).tolist()
    [[0.0, 1.0, 1.0, 0.0, 0.0]]
  """
  if not native.is_portable():
    return jnp.pad(x, pads)
  for axis, (before, after) in enumerate(pads):
    shape = lambda n, i=axis, x=x: (*x.shape[:i], n, *x.shape[i + 1 :])
    parts = [
      *([jnp.zeros(shape(before), x.dtype)] if before else []),
      x,
      *([jnp.zeros(shape(after), x.dtype)] if after else []),
    ]
    x = jnp.concatenate(parts, axis=axis) if len(parts) > 1 else x
  return x
