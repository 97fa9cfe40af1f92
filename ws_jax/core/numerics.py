"""The arithmetic of Weight Standardization, on one kernel.

For one filter `w`, with its mean and variance over its fan-in of `n` weights,

    effective = (w - mean) / spread * scale * gain + kept mean

where `spread` is sqrt(var + eps), or another place for eps as the convention
says, and `scale` is 1 or 1 / sqrt(n). Plain JAX says this in four lines. There
are more here, for three reasons:

- Digits. Filters may be constant, tiny, huge, or have a mean far above their
  spread. `_mean` and `_std` measure them so that nothing cancels or overflows.
- Gradients. The derivative of sqrt(var) is infinite where a filter is constant,
  and what JAX derives stores more arrays of the kernel's size than are needed.
  `_normalize` has a derivative of its own.
- Speed. XLA's CPU backend is fast if each sum reads the kernel itself, and if
  a broadcast is one step. `_centred` and `_over` are written for that. A
  program that asked for C++ (`ws_jax.native`) has `_normalize_natively`.

Start reading at `standardize`: it handles the options of a convention, around
`_normalize`, which is the formula. All functions take one kernel `[..., out]`
and its fan-in `axes`; "per filter" means an array of the kernel's shape without
these axes. The arguments are checked in `ws_jax.core.standardize`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from ws_jax import native
from ws_jax.core.conventions import EPS_PLACES, Convention
from ws_jax.native import foreign

Axes = tuple[int, ...]


def standardize(
  kernel: jax.Array,
  gain: jax.Array | None,
  mean: jax.Array | None,
  *,
  axes: Axes,
  convention: Convention,
) -> jax.Array:
  """Returns the effective kernel, in the shape and dtype of the raw one.

  Args:
    kernel: Raw kernel, of any floating-point dtype.
    gain: Factor per filter, or None.
    mean: Mean per filter to add at the end, or None.
    axes: Fan-in axes of the kernel, sorted and not negative.
    convention: Convention to follow.
  """
  is_native = native.enabled("standardization", _wide(kernel))
  normalize = _normalize_natively if is_native else _normalize
  return _standardize(kernel, gain, mean, axes, convention, normalize)


# Jitted so that kernels of one shape share a trace, and eager calls are one
# dispatch. What C++ is in is another trace: other machines must not get it.
@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _standardize(kernel, gain, mean, axes, convention, normalize):
  """Returns what `standardize` does, with `_normalize` or its like."""
  fan_in = _fan_in(kernel, axes)
  wide = _widen(kernel)
  if gain is not None:
    gain = gain.astype(wide.dtype)
  if kernel.dtype == jnp.float16 and convention.rescale:
    wide = _tame_gradient(wide, axes, convention)
  if convention.rescale:
    out, std = normalize(wide, gain, axes, convention)
    if not convention.center:
      spread = _spread(std, fan_in, convention)
      # A mean that is too large to be differentiated times slope zero is NaN.
      spread = jnp.where(std > 0, spread, lax.stop_gradient(spread))
      pivot, rest = _mean(wide, axes)
      kept = (pivot + rest) * _scale(fan_in, convention) / spread
      out = out + _over(kept if gain is None else kept * gain, wide, axes)
  else:
    out = _centred(wide, *_mean(wide, axes), axes)
    out = out if gain is None else out * _over(gain, wide, axes)
  if mean is not None:
    out = out + _over(mean.astype(wide.dtype), wide, axes)
  if kernel.dtype == jnp.float16:
    limit = float(jnp.finfo(jnp.float16).max)
    out = jnp.clip(out, -limit, limit)
  return out.astype(kernel.dtype)


@functools.partial(jax.jit, static_argnames=("axes", "convention"))
def scale_and_mean(
  kernel: jax.Array, *, axes: Axes, convention: Convention
) -> tuple[jax.Array, jax.Array]:
  """Returns the gain and the mean, per filter, that undo `standardize`."""
  fan_in = _fan_in(kernel, axes)
  wide = _widen(kernel)
  pivot, rest = _mean(wide, axes)
  if convention.rescale:
    std = _std(wide, pivot, rest, axes, fan_in - convention.ddof)
    scale = _spread(std, fan_in, convention)
    if convention.fan_in_scale:
      scale = scale * fan_in**0.5
  else:
    scale = jnp.ones_like(pivot)
  mean = pivot + rest
  return scale, mean if convention.center else jnp.zeros_like(mean)


# It has a derivative of its own because the one that JAX derives keeps more
# arrays of the kernel's size in memory, and is NaN where a filter is constant.
# Written for forward mode, it serves every mode and order.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _normalize(wide, gain, axes, convention):
  """Returns (wide - mean) / spread * scale * gain, and the deviation."""
  fan_in = _fan_in(wide, axes)
  pivot, rest = _mean(wide, axes)
  std = _std(wide, pivot, rest, axes, fan_in - convention.ddof)
  factor = _scale(fan_in, convention) / _spread(std, fan_in, convention)
  if gain is not None:
    factor = factor * gain
  return _centred(wide, pivot, rest, axes) * _over(factor, wide, axes), std


@_normalize.defjvp
def _normalize_jvp(axes, convention, primals, tangents):
  """Differentiates `_normalize`.

  With W the standardized filter, and for a gain of 1,

      dW = (scale * (dw - mean(dw)) - W * dspread) / spread

  where dspread is `along` if eps is added to the variance, and `share * along`
  for any place of eps.
  """
  (wide, gain), (tangent, gain_tangent) = primals, tangents
  over = functools.partial(_over, like=wide, axes=axes)
  fan_in = _fan_in(wide, axes)
  scale = _scale(fan_in, convention)
  unit, std = _normalize(wide, None, axes, convention)
  spread = _spread(std, fan_in, convention)
  count = fan_in - convention.ddof
  along = jnp.sum(unit * tangent, axes) / (scale * count)
  # A constant filter has no direction in which its deviation grows first. Its
  # share is 0: the subgradient that keeps the slope finite.
  alive = std > jnp.sqrt(jnp.finfo(std.dtype).tiny)
  ratio = spread / jnp.where(alive, std, spread)
  if convention.eps_place == "variance":
    share = 1.0
  elif convention.eps_place == "std":
    share = jnp.where(alive, ratio, 0.0)
  else:
    share = jnp.where(spread == std, 1.0, 0.0)
  slope = 1.0 / spread if gain is None else gain / spread
  # Multiply per-filter factors first and sum the raw tangent: in reverse mode
  # each term then reduces the incoming gradient, and no further array of the
  # kernel's size is stored.
  mean = jnp.sum(tangent, axes) / fan_in
  centred = tangent * over(scale * slope) - over(mean * (scale * slope))
  out, out_tangent = unit, centred - unit * over(share * along * slope)
  if gain is not None:
    out_tangent = out_tangent + unit * over(gain_tangent)
    out = unit * over(gain)
  return (out, std), (out_tangent, jnp.where(alive, ratio, 0.0) * along)


def _normalize_natively(wide, gain, axes, convention):
  """Returns what `_normalize` does, by C++ (`ws_jax.native`)."""
  if axes != tuple(range(len(axes))):  # filters are not columns
    return _normalize(wide, gain, axes, convention)
  kept = wide.shape[len(axes) :]
  gain = jnp.ones(kept, wide.dtype) if gain is None else gain
  rows = wide.reshape(_fan_in(wide, axes), gain.size)
  out, std = _of_rows(rows, gain.reshape(-1), convention)
  return out.reshape(wide.shape), std.reshape(kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _of_rows(kernel, gain, convention):
  """Returns what `_normalize` does, of a kernel `[fan-in, filters]`."""
  return _of_rows_forward(kernel, gain, convention)[0]


def _of_rows_forward(kernel, gain, convention):
  arguments = kernel, gain
  return _call("WsJaxStandardize", _apply, arguments, convention), arguments


def _of_rows_backward(convention, arguments, cotangents):
  arguments = (*arguments, *cotangents)
  return _call("WsJaxStandardizeBackward", _gradients, arguments, convention)


_of_rows.defvjp(_of_rows_forward, _of_rows_backward)


def _call(handler, plain, arguments, convention):
  return foreign.call(
    *("standardization", handler, plain, arguments),
    ddof=convention.ddof,
    eps=float(convention.eps),
    place=EPS_PLACES.index(convention.eps_place),
    fan_in_scale=int(convention.fan_in_scale),
  )


def _apply(kernel, gain, *, ddof, eps, place, fan_in_scale):
  """Returns what `_normalize` does; its settings are those of the C++."""
  convention = Convention(ddof, eps, EPS_PLACES[place], bool(fan_in_scale))
  return _normalize(kernel, gain, (0,), convention)


def _gradients(kernel, gain, *cotangents, **settings):
  """Returns the gradients by kernel and gain, computed by XLA."""
  _, pull_back = jax.vjp(functools.partial(_apply, **settings), kernel, gain)
  return pull_back(cotangents)


def _mean(x, axes):
  """Returns the mean per filter as a sum of two: a pivot and the rest."""
  # The mean is measured from the value in the range of the weights that is
  # nearest to zero. For most filters that is zero, and the rest is small. A
  # filter whose mean is far from zero loses no digits, and a constant one
  # becomes exactly zero. The slope of the result does not depend on the pivot.
  # (A weight such as the first would do, but a sharded axis cannot be sliced.)
  low, high = _range(x, axes)
  pivot = jnp.clip(0.0, low, high)
  return pivot, jnp.sum(x - _over(pivot, x, axes), axes) / _fan_in(x, axes)


def _std(x, pivot, rest, axes, count):
  """Returns sqrt(sum((x - pivot - rest)**2) / count), per filter."""
  # In units of the largest weight no square is above 4, and those that matter
  # are not lost, whatever the size: nothing overflows or underflows.
  low, high = _range(x, axes)
  size = jnp.maximum(jnp.maximum(-low, high), jnp.finfo(x.dtype).tiny)
  # Rounding of the mean is harmless here: its error enters squared.
  centred = (x - _over(pivot + rest, x, axes)) * _over(1.0 / size, x, axes)
  return size * jnp.sqrt(jnp.sum(centred * centred, axes) / count)


def _range(x, axes):
  """Returns the smallest and the largest weight of each filter."""
  x = lax.stop_gradient(x)
  return jnp.min(x, axes), jnp.max(x, axes)


# The mean is subtracted in three ways: in `_mean`, in `_std` and here. Shared,
# XLA's CPU backend would store the centred kernel and read it three times;
# written out, each sum recomputes it.
def _centred(x, pivot, rest, axes):
  """Returns the kernel less the mean of each filter."""
  return (x - _over(pivot, x, axes)) - _over(rest, x, axes)


def _over(value, like, axes):
  """Spreads an array per filter over the shape of the kernel."""
  # In one step, because in reverse mode this is then one sum over all the axes.
  # A reshape and a broadcast would leave the axes of size one out of the sum,
  # which is slow on a CPU.
  kept = [i for i in range(like.ndim) if i not in axes]
  sharding = jax.typeof(like).sharding
  return lax.broadcast_in_dim(value, like.shape, kept, out_sharding=sharding)


def _scale(fan_in, convention):
  """Returns the factor that a convention puts on every filter."""
  return fan_in**-0.5 if convention.fan_in_scale else 1.0


def _spread(std, fan_in, convention):
  """Returns the divisor per filter: the standard deviation, kept above eps."""
  eps = convention.eps
  if convention.eps_place == "variance":
    return jnp.hypot(std, eps**0.5)
  if convention.eps_place == "std":
    return std + eps
  if convention.eps_place == "floor_fan_in":
    eps = eps / fan_in
  return jnp.maximum(std, eps**0.5)


def _tame_gradient(wide, axes, convention):
  """Bounds the slope of (nearly) constant filters that are stored in float16.

  Their true slope, up to 1 / sqrt(eps) = 1e5, is beyond what float16 can hold.
  """
  fan_in = _fan_in(wide, axes)
  frozen = lax.stop_gradient(wide)
  _, std = _normalize(frozen, None, axes, convention)
  spread = _spread(std, fan_in, convention)
  slope = 1.0 / spread
  if not convention.center:
    slope *= 1.0 + jnp.max(jnp.abs(frozen), axes) / spread
  share = _over(jnp.minimum(1.0, 2.0**10 / slope), wide, axes)
  return share * wide + (1.0 - share) * frozen


def _fan_in(kernel, axes):
  """Returns the number of weights of one filter."""
  return math.prod(kernel.shape[i] for i in axes)


def _widen(kernel):
  """Returns the kernel in float32, or in float64 if that is its dtype."""
  return kernel.astype(_wide(kernel))


def _wide(kernel):
  """Returns the dtype in which a kernel is standardized."""
  return jnp.float64 if kernel.dtype == jnp.float64 else jnp.float32
