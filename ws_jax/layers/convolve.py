"""A convolution with gradients that are fast on a CPU, for few examples too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ws_jax import native
from ws_jax.native import convolution

# The products below win up to this number of examples: measured at 1, 2, 4 and
# 8 on the layers of ResNet-20.
SMALL_BATCH = 4

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **how: Any,
) -> jax.Array:
  """Convolves; a drop-in for `lax.conv_general_dilated` to pass to `nn.Conv`.

  On a CPU with AVX-512 oneDNN convolves, if the program has asked for it
  (`ws_jax.native`). Two other measures help CPUs without it; other
  backends see neither.

  With few examples, the filter gradient is one matrix product for each position
  of the kernel, on the same numbers. XLA's CPU backend computes it as a
  convolution in which the examples play the channels, which is then up to
  twelve times slower than the forward pass. A convolution with this gradient
  has no forward-mode derivative.

  With more examples, a barrier keeps the filter gradient and the update that
  uses it apart. XLA's kernel library would fuse the two, and need three times
  as long.

  Args:
    x: Images `[N, H, W, in]`.
    kernel: Kernel `[h, w, in, out]`.
    window_strides: Strides, as in `lax.conv_general_dilated`.
    padding: Padding, as in `lax.conv_general_dilated`.
    **how: All other arguments of `lax.conv_general_dilated`, by name.

  Example:
    >>> x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    >>> how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    >>> conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), **how).shape
    (1, 4, 4, 4)
  """
  if native.is_portable() or jax.default_backend() != "cpu":
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **how)
  geometry = convolution.geometry(x, kernel, window_strides, padding, how)
  if geometry is not None:
    return convolution.convolve(x, kernel, geometry)
  if _use_products(x, padding, how):
    pads = tuple(tuple(pair) for pair in padding)
    return _conv(x, kernel, tuple(window_strides), pads, how.get("precision"))
  kernel = lax.optimization_barrier(kernel)
  return lax.conv_general_dilated(x, kernel, window_strides, padding, **how)


def _use_products(x, padding, how) -> bool:
  """Returns whether there are few examples, and no option but a stride."""
  if isinstance(padding, str) or x.ndim != 4:
    return False
  plain = all(
    how.get(key) is None or set(how[key]) == {1}
    for key in ("lhs_dilation", "rhs_dilation")
  )
  groups = how.get("feature_group_count", 1) * how.get("batch_group_count", 1)
  numbers = lax.conv_dimension_numbers(
    x.shape, x.shape, how.get("dimension_numbers")
  )
  layout = lax.conv_dimension_numbers(x.shape, x.shape, _DIMENSIONS)
  few = x.shape[0] <= SMALL_BATCH
  return few and plain and groups == 1 and numbers == layout


def _xla(x, kernel, strides, pads, precision):
  """Convolves as XLA does, in the layout of Flax."""
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
    dimension_numbers=_DIMENSIONS,
    precision=precision,
  )


_conv = jax.custom_vjp(_xla, nondiff_argnums=(2, 3, 4))


def _forward(x, kernel, strides, pads, precision):
  """Returns the convolution, and what the backward pass needs."""
  return _xla(x, kernel, strides, pads, precision), (x, kernel)


def _backward(strides, pads, precision, residuals, dy):
  """Returns the gradients by x, as XLA has it, and by the kernel."""
  x, kernel = residuals
  apply = lambda x: _xla(x, kernel, strides, pads, precision)
  (dx,) = jax.vjp(apply, x)[1](dy)
  height, width = kernel.shape[:2]
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  _, rows, columns, _ = dy.shape
  flat = dy.reshape(-1, dy.shape[-1])

  def product(i, j):
    """Returns the gradient at row i and column j of the kernel."""
    seen = lax.slice(
      padded,
      (0, i, j, 0),
      (
        len(x),
        i + strides[0] * (rows - 1) + 1,
        j + strides[1] * (columns - 1) + 1,
        x.shape[-1],
      ),
      (1, *strides, 1),
    )
    return lax.dot_general(
      seen.reshape(-1, x.shape[-1]),
      flat,
      (((0,), (0,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )

  parts = [product(i, j) for i in range(height) for j in range(width)]
  return dx, jnp.stack(parts).reshape(kernel.shape).astype(kernel.dtype)


_conv.defvjp(_forward, _backward)
