"""Convolutions by oneDNN, as a JAX primitive.

The convolution and its two gradients are three maps, each linear in both of its
arguments, and the derivative of each is made of the other two. One primitive,
with a parameter that says which of the three it is, can therefore be
differentiated in either mode and as often as one likes. On other backends than
the CPU it is XLA's convolution.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from ws_jax import native

# The result of each map, and the two arguments that it is computed from.
_ARGUMENTS = {"y": ("x", "kernel"), "x": ("y", "kernel"), "kernel": ("x", "y")}


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Shapes and settings of a convolution, as in `lax.conv_general_dilated`.

  Attributes:
    x: Shape of the input, `[N, spatial..., C]`.
    kernel: Shape of the kernel, `[spatial..., C / groups, O]`.
    y: Shape of the result, `[N, spatial..., O]`.
    strides: Stride of each spatial dimension.
    padding: Low and high padding of each spatial dimension.
    dilation: Dilation of the kernel in each spatial dimension.
    groups: Number of groups of channels.
  """

  x: tuple[int, ...]
  kernel: tuple[int, ...]
  y: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  groups: int


def geometry(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  how: Mapping[str, Any],
) -> Geometry | None:
  """Returns the geometry for `convolve`, or None if XLA is to convolve.

  The arguments are those of `lax.conv_general_dilated`.

  Args:
    x: Input.
    kernel: Kernel.
    strides: Stride of each spatial dimension.
    padding: Padding of each spatial dimension, or a name such as "SAME".
    how: All other arguments, by name.
  """
  ours = functools.partial(native.enabled, "convolution")
  if not ours(x.dtype) or x.dtype != kernel.dtype or isinstance(padding, str):
    return None
  if not 3 <= x.ndim <= 5:
    return None
  spatial = x.ndim - 2
  numbers = lax.conv_dimension_numbers(
    x.shape, kernel.shape, how.get("dimension_numbers")
  )
  expected = lax.conv_dimension_numbers(x.shape, kernel.shape, _layout(spatial))
  ones = (1,) * spatial
  padding = tuple((int(low), int(high)) for low, high in padding)
  plain = (
    numbers == expected
    and tuple(how.get("lhs_dilation") or ones) == ones
    and how.get("batch_group_count", 1) == 1
    and how.get("preferred_element_type") in (None, x.dtype)
    and min(map(min, padding)) >= 0
  )
  if not plain:
    return None
  shaped = Geometry(
    x=x.shape,
    kernel=kernel.shape,
    y=(),
    strides=tuple(map(int, strides)),
    padding=padding,
    dilation=tuple(how.get("rhs_dilation") or ones),
    groups=how.get("feature_group_count", 1),
  )
  y = jax.eval_shape(functools.partial(_xla, shaped), x, kernel).shape
  if 0 in (*x.shape, *kernel.shape, *y):
    return None
  return dataclasses.replace(shaped, y=y)


def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Convolves; can be differentiated as often as one likes.

  Args:
    x: Input of `geometry.x`, float32 or bfloat16. A processor that does not
      multiply bfloat16 computes it in float32.
    kernel: Kernel of `geometry.kernel`, of the same dtype.
    geometry: Shapes and settings.

  Returns:
    Array of `geometry.y`, of the same dtype; its sums are float32.
  """
  dtype = x.dtype
  if not native.multiplies(dtype):
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
  return _bind("y", geometry, x=x, kernel=kernel).astype(dtype)


_primitive = core.Primitive("ws_jax_convolve")


def _bind(result: str, geometry: Geometry, **known: jax.Array) -> jax.Array:
  """Applies the map to `result` from the two other arrays, given by name."""
  first, second = _ARGUMENTS[result]
  return _primitive.bind(
    known[first], known[second], result=result, geometry=geometry
  )


def _abstract(first, second, *, result, geometry):
  """Returns the shape and dtype of the result."""
  assert first.dtype == second.dtype
  return jax.core.ShapedArray(getattr(geometry, result), first.dtype)


def _transpose(which, cotangent, first, second, *, result, geometry):
  """Maps a cotangent of the result to one of the argument `which`."""
  names = _ARGUMENTS[result]
  other = {names[1 - which]: (second, first)[which]}
  return _bind(names[which], geometry, **{result: cotangent}, **other)


def _by_xla(first, second, *, result, geometry):
  """Applies the same map by XLA's own convolutions."""
  if result == "y":
    return _xla(geometry, first, second)
  if result == "x":
    apply = lambda x: _xla(geometry, x, second)
    given = first
  else:
    apply = lambda kernel: _xla(geometry, first, kernel)
    given = second
  like = jax.ShapeDtypeStruct(getattr(geometry, result), first.dtype)
  return jax.linear_transpose(apply, like)(given)[0]


def _xla(geometry, x, kernel):
  """Convolves as XLA does; by a product if it can be one.

  With a kernel for each run, as `vmap` has them, XLA's convolution is slow.
  """
  if _is_product(geometry):
    return x @ kernel.reshape(kernel.shape[-2:])
  return lax.conv_general_dilated(
    x,
    kernel,
    geometry.strides,
    geometry.padding,
    rhs_dilation=geometry.dilation,
    dimension_numbers=_layout(x.ndim - 2),
    feature_group_count=geometry.groups,
  )


def _is_product(geometry: Geometry) -> bool:
  """Returns whether each position of the result sees one of the input alone."""
  sizes = (*geometry.kernel[:-2], *geometry.strides, geometry.groups)
  return set(sizes) == {1} and not any(map(sum, geometry.padding))


def _layout(spatial: int) -> tuple[str, str, str]:
  """Returns the dimension numbers of Flax for `spatial` spatial dimensions."""
  axes = "DHW"[-spatial:]
  return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _batched(arguments, axes, **how):
  """Applies the map to a batch of arguments, by XLA."""
  apply = jax.vmap(functools.partial(_by_xla, **how), in_axes=axes)
  return apply(*arguments), 0


def _lower(context, first, second, *, result, geometry):
  """Writes the call of the C++ into a program for the CPU."""
  low, high = zip(*geometry.padding, strict=True)
  whole = lambda numbers: np.asarray(numbers, np.int64)
  return jax.ffi.ffi_lowering("WsJaxConvolve")(
    context,
    first,
    second,
    result=np.int64(list(_ARGUMENTS).index(result)),
    strides=whole(geometry.strides),
    low=whole(low),
    high=whole(high),
    dilation=whole(geometry.dilation) - 1,  # oneDNN counts from 0
    groups=np.int64(geometry.groups),
  )


_jitted = jax.jit(_primitive.bind, static_argnames=("result", "geometry"))
_primitive.def_impl(_jitted)
_primitive.def_abstract_eval(_abstract)
ad.defbilinear(
  _primitive,
  functools.partial(_transpose, 0),
  functools.partial(_transpose, 1),
)
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(
  _primitive, mlir.lower_fun(_by_xla, multiple_results=False)
)
mlir.register_lowering(_primitive, _lower, platform="cpu")
