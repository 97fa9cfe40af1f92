"""Weight Standardization as a pure function of the parameters.

Qiao et al., "Weight Standardization" (arXiv 1903.10520): every filter of a
convolution is shifted and scaled to mean 0 and variance 1 over its fan-in.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ws_jax.base.names import suggest
from ws_jax.core.conventions import BIT, Convention, get_convention
from ws_jax.core.kernels import (
  Axes,
  Selector,
  conv_kernels,
  fan_in_axes,
  selected_kernels,
)

PyTree = Any


def standardize(
  kernel: jax.typing.ArrayLike,
  *,
  axis: int | Sequence[int] | None = None,
  convention: str | Convention = BIT,
  gain: jax.typing.ArrayLike | None = None,
  mean: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  """Standardizes every filter of one kernel over its fan-in.

  Moments are two-pass and in float32 (float64 for a float64 kernel); the result
  has the dtype of the kernel. Values and gradients are finite for constant,
  zero, tiny and huge kernels in every convention.

  Args:
    kernel: floating-point array `[..., out]`, as `[H, W, in, out]`.
    axis: the fan-in axes, over which the moments are taken. None stands for all
      but the last, which is right for convolution kernels of Flax, grouped and
      depthwise ones too.
    convention: which definition: a name of `CONVENTIONS` or a `Convention`.
    gain: optional factor per filter, of the kernel's shape without the fan-in
      axes, or a scalar.
    mean: optional, of the same form: added to every filter at the end.

  Returns:
    The effective kernel, of the shape and dtype of `kernel`.

  Raises:
    ValueError: unknown convention, axes that the kernel does not have, a gain
      or mean of another shape, or a fan-in below the convention's `min_fan_in`.
    TypeError: the kernel is not real floating point.

  Example:
    >>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 16))
    >>> effective = standardize(0.1 * kernel + 2.0, convention="qiao")
    >>> bool(jnp.allclose(effective.mean((0, 1, 2)), 0.0, atol=1e-5))
    True
    >>> bool(jnp.allclose(effective.std((0, 1, 2), ddof=1), 1.0, atol=1e-3))
    True
  """
  kernel, axes, convention = _checked(kernel, axis, convention)
  if gain is not None:
    gain = _align(jnp.asarray(gain), "gain", kernel.shape, axes)
  if mean is not None:
    mean = _align(jnp.asarray(mean), "mean", kernel.shape, axes)
  return _standardize(kernel, gain, mean, axes=axes, convention=convention)


def weight_standardize(
  params: PyTree,
  *,
  where: Selector = conv_kernels,
  axes: Axes = fan_in_axes,
  convention: str | Convention = BIT,
  gains: Mapping[str, jax.Array] | None = None,
  means: Mapping[str, jax.Array] | None = None,
) -> PyTree:
  """Returns the effective parameters: selected kernels are standardized.

  The parameters given stay the only state: call this inside the function that
  is differentiated, once per optimizer step, in training and in evaluation.

  Args:
    params: any pytree of arrays, as from `model.init`.
    where: `(path, leaf) -> bool`, which leaves are kernels. A path is
      `"block/Conv_0/kernel"`.
    axes: `(path, leaf) -> tuple`, the fan-in axes of a selected leaf.
    convention: a name of `CONVENTIONS` or a `Convention`.
    gains: optional `{path: [out] array}` with one entry per selected kernel, as
      from `init_gains`.
    means: optional, of the same form: the means that `from_plain` kept.

  Returns:
    A tree of the same structure, shapes and dtypes; leaves that are not
    selected are the same objects.

  Raises:
    ValueError: nothing was selected (the message lists the paths), a kernel
      that cannot be standardized (names the path), or gains or means whose
      paths are not the selected ones.

  Example:
    >>> params = {"Conv_0": {"kernel": jnp.arange(72.0).reshape(3, 3, 4, 2)}}
    >>> effective = weight_standardize(params)
    >>> bool(jnp.allclose(effective["Conv_0"]["kernel"].std((0, 1, 2)), 1.0))
    True
    >>> weight_standardize({"Dense_0": {"kernel": jnp.ones((8, 2))}})
    Traceback (most recent call last):
    ValueError: no kernel was selected; paths seen: Dense_0/kernel [8, 2]
  """
  convention = get_convention(convention)
  paths, leaves, treedef = selected_kernels(params, where)
  chosen = [path for path in paths if path is not None]
  for what, given in (("gain", gains), ("mean", means)):
    if given is not None:
      _check_paths(given, what, chosen)
  out = []
  for path, leaf in zip(paths, leaves, strict=True):
    if path is None:
      out.append(leaf)
      continue
    gain = None if gains is None else gains[path]
    mean = None if means is None else means[path]
    try:
      out.append(
        standardize(
          leaf,
          axis=axes(path, leaf),
          convention=convention,
          gain=gain,
          mean=mean,
        )
      )
    except (TypeError, ValueError) as error:
      raise type(error)(f"{path}: {error}") from None
  return jax.tree.unflatten(treedef, out)


def init_gains(
  params: PyTree, *, where: Selector = conv_kernels, axes: Axes = fan_in_axes
) -> dict[str, jax.Array]:
  """Returns gains of one, `{path: [out] float32}`, for the scaled conventions.

  They are a tree of their own, so that an optimizer can leave them out of
  weight decay.

  Example:
    >>> params = {"Conv_0": {"kernel": jnp.zeros((3, 3, 4, 2))}}
    >>> {path: gain.shape for path, gain in init_gains(params).items()}
    {'Conv_0/kernel': (2,)}
  """
  paths, leaves, _ = selected_kernels(params, where)
  gains = {}
  for path, leaf in zip(paths, leaves, strict=True):
    if path is not None:
      reduced = _canonical_axes(axes(path, leaf), leaf.ndim)
      shape = [n for i, n in enumerate(leaf.shape) if i not in reduced]
      gains[path] = jnp.ones(shape, jnp.float32)
  return gains


def scale_and_mean(
  kernel: jax.typing.ArrayLike,
  *,
  axis: int | Sequence[int] | None = None,
  convention: str | Convention = BIT,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gain and the mean that undo `standardize`.

  Args:
    kernel: as in `standardize`.
    axis: as in `standardize`.
    convention: as in `standardize`.

  Returns:
    Two arrays of the kernel's shape without the fan-in axes, float32 (float64
    for a float64 kernel). With them `standardize(kernel, gain=, mean=)` is the
    kernel. The gain of a constant filter is what eps makes of it, not 0.

  Raises:
    ValueError: as `standardize`.
    TypeError: as `standardize`.

  Example:
    >>> kernel = jnp.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    >>> scale_and_mean(kernel)[1].tolist()
    [3.0, 5.0]
  """
  kernel, axes, convention = _checked(kernel, axis, convention)
  return _scale_and_mean(kernel, axes=axes, convention=convention)


@functools.partial(jax.jit, static_argnames=("axes", "convention"))
def _scale_and_mean(kernel, *, axes, convention):
  fan_in = math.prod(kernel.shape[i] for i in axes)
  wide = _widen(kernel)
  low, shift = _mean(wide, axes)
  if convention.rescale:
    std = _std(wide, low, shift, axes, fan_in - convention.ddof)
    scale = _spread(std, fan_in, convention)
    if convention.fan_in_scale:
      scale = scale * fan_in**0.5
  else:
    scale = jnp.ones_like(low)
  return scale, low + shift if convention.center else jnp.zeros_like(low)


# Jitted so that kernels of one shape share a trace, and eager calls are one
# dispatch.
@functools.partial(jax.jit, static_argnames=("axes", "convention"))
def _standardize(kernel, gain, mean, *, axes, convention):
  fan_in = math.prod(kernel.shape[i] for i in axes)
  wide = _widen(kernel)
  if gain is not None:
    gain = gain.astype(wide.dtype)
  if kernel.dtype == jnp.float16 and convention.rescale:
    wide = _tame_gradient(wide, axes, convention)
  if convention.rescale:
    out, std = _normalize(wide, gain, axes, convention)
    if not convention.center:
      spread = _spread(std, fan_in, convention)
      # A mean that is too large to be differentiated times slope zero is NaN.
      spread = jnp.where(std > 0, spread, lax.stop_gradient(spread))
      low, shift = _mean(wide, axes)
      kept = (low + shift) * _scale(fan_in, convention) / spread
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


# A rule of its own, because what JAX derives keeps more of the kernel's size in
# memory, and has a NaN slope where a filter is constant. As a rule of forward
# mode it serves every mode and order.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _normalize(wide, gain, axes, convention):
  """Returns (wide - mean) / spread * scale * gain, and the deviation."""
  fan_in = math.prod(wide.shape[i] for i in axes)
  low, shift = _mean(wide, axes)
  std = _std(wide, low, shift, axes, fan_in - convention.ddof)
  factor = _scale(fan_in, convention) / _spread(std, fan_in, convention)
  if gain is not None:
    factor = factor * gain
  return _centred(wide, low, shift, axes) * _over(factor, wide, axes), std


@_normalize.defjvp
def _normalize_jvp(axes, convention, primals, tangents):
  (wide, gain), (tangent, gain_tangent) = primals, tangents
  over = functools.partial(_over, like=wide, axes=axes)
  fan_in = math.prod(wide.shape[i] for i in axes)
  scale = _scale(fan_in, convention)
  unit, std = _normalize(wide, None, axes, convention)
  spread = _spread(std, fan_in, convention)
  count = fan_in - convention.ddof
  along = jnp.sum(unit * tangent, axes) / (scale * count)
  # How much of a change of the standard deviation reaches the spread, relative
  # to both. It is 0 at a constant filter, which has no direction in which its
  # deviation grows first: the subgradient that keeps the slope finite.
  alive = std > jnp.sqrt(jnp.finfo(std.dtype).tiny)
  ratio = spread / jnp.where(alive, std, spread)
  if convention.eps_place == "variance":
    share = 1.0
  elif convention.eps_place == "std":
    share = jnp.where(alive, ratio, 0.0)
  else:
    share = jnp.where(spread == std, 1.0, 0.0)
  slope = 1.0 / spread if gain is None else gain / spread
  # Sums of the tangent itself, and what is one number a filter multiplied
  # first: read backwards, each term sums the gradient as it comes in, and no
  # product of the kernel's size is kept.
  mean = jnp.sum(tangent, axes) / fan_in
  centred = tangent * over(scale * slope) - over(mean * (scale * slope))
  out, out_tangent = unit, centred - unit * over(share * along * slope)
  if gain is not None:
    out_tangent = out_tangent + unit * over(gain_tangent)
    out = unit * over(gain)
  return (out, std), (out_tangent, jnp.where(alive, ratio, 0.0) * along)


def _mean(x, axes):
  """The mean of each filter in two parts, its smallest weight and the rest."""
  # Measured from one of its own weights a filter loses no digits, however far
  # its mean is from zero, and a constant one becomes exactly zero. The slope of
  # the result does not depend on where one measures from. (The smallest weight
  # rather than the first: a sharded axis can be reduced, but not sliced.)
  low = lax.stop_gradient(jnp.min(x, axes))
  fan_in = math.prod(x.shape[i] for i in axes)
  return low, jnp.sum(x + _over(-low, x, axes), axes) / fan_in


def _std(x, low, shift, axes, count):
  """sqrt(sum((x - low - shift)**2) / count)."""
  # In units of the shift no square is larger than fan_in**2, and that of the
  # smallest weight is 1: nothing overflows or is lost, whatever the size.
  size = jnp.maximum(shift, jnp.finfo(x.dtype).tiny)
  # Here the mean may be rounded: what it is off by counts squared.
  centred = (x - _over(low + shift, x, axes)) * _over(1.0 / size, x, axes)
  return size * jnp.sqrt(jnp.sum(centred * centred, axes) / count)


# The mean is taken off in three ways, in `_mean`, `_std` and here. Were it one,
# XLA's CPU backend would write an array down and read it three times, instead
# of finding it again within each sum.
def _centred(x, low, shift, axes):
  return (x - _over(low, x, axes)) - _over(shift, x, axes)


def _over(value, like, axes):
  """One number a filter, as an array of the kernel's shape."""
  # In one step: backwards this is one sum over all the axes, where those of
  # size one would be left out of a step of their own, and be slow on a CPU.
  kept = [i for i in range(like.ndim) if i not in axes]
  sharding = jax.typeof(like).sharding
  return lax.broadcast_in_dim(value, like.shape, kept, out_sharding=sharding)


def _scale(fan_in, convention):
  return fan_in**-0.5 if convention.fan_in_scale else 1.0


def _spread(std, fan_in, convention):
  """What the centred kernel is divided by, from its standard deviation."""
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
  fan_in = math.prod(wide.shape[i] for i in axes)
  frozen = lax.stop_gradient(wide)
  _, std = _normalize(frozen, None, axes, convention)
  spread = _spread(std, fan_in, convention)
  slope = 1.0 / spread
  if not convention.center:
    slope *= 1.0 + jnp.max(jnp.abs(frozen), axes) / spread
  share = _over(jnp.minimum(1.0, 2.0**10 / slope), wide, axes)
  return share * wide + (1.0 - share) * frozen


def _widen(kernel):
  return kernel.astype(
    jnp.float64 if kernel.dtype == jnp.float64 else jnp.float32
  )


def _checked(
  kernel: jax.typing.ArrayLike,
  axis: int | Sequence[int] | None,
  convention: str | Convention,
) -> tuple[jax.Array, tuple[int, ...], Convention]:
  kernel = jnp.asarray(kernel)
  convention = get_convention(convention)
  if not jnp.issubdtype(kernel.dtype, jnp.floating):
    raise TypeError(f"a kernel must be floating point, got {kernel.dtype}")
  axes = _canonical_axes(axis, kernel.ndim)
  _check_fan_in(kernel.shape, axes, convention)
  return kernel, axes, convention


def _canonical_axes(
  axis: int | Sequence[int] | None, ndim: int
) -> tuple[int, ...]:
  if axis is None:
    axis = range(ndim - 1)
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  if not axes:
    raise ValueError(f"a kernel needs a fan-in axis, got {ndim} dimensions")
  if not all(isinstance(i, int) and -ndim <= i < ndim for i in axes):
    raise ValueError(f"no axes {axes} in a kernel of {ndim} dimensions")
  unique = tuple(sorted({i % ndim for i in axes}))
  if len(unique) != len(axes):
    raise ValueError(f"axes {axes} name one axis twice")
  return unique


def _check_fan_in(
  shape: tuple[int, ...], axes: tuple[int, ...], convention: Convention
) -> None:
  fan_in = math.prod(shape[i] for i in axes)
  if fan_in >= convention.min_fan_in:
    return
  where = f"fan-in {fan_in} (shape {list(shape)}, axes {list(axes)})"
  if fan_in < 2:
    raise ValueError(
      f"{where} has no standard deviation: leave this kernel out with `where`, "
      "or check the axes"
    )
  raise ValueError(
    f"{where} is below min_fan_in={convention.min_fan_in}: two weights become "
    "+-1 whatever their values. Leave this kernel out with `where`, choose a "
    "scaled or centred convention ('nfnet', 'timm_scaled', 'center'), or allow "
    "it with dataclasses.replace(convention, min_fan_in=2)"
  )


def _align(
  value: jax.Array, what: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> jax.Array:
  kept = tuple(n for i, n in enumerate(shape) if i not in axes)
  if value.ndim and value.shape != kept:
    raise ValueError(
      f"{what} of shape {list(value.shape)} for a kernel {list(shape)} with "
      f"fan-in axes {list(axes)}: must be {list(kept)} or a scalar"
    )
  return jnp.broadcast_to(value, kept)


def _check_paths(given: Mapping[str, Any], what: str, paths: list[str]) -> None:
  for path in sorted(set(given) - set(paths)):
    raise ValueError(
      f"{what} for unknown kernel {path!r}: {suggest(path, paths)}"
    )
  missing = sorted(set(paths) - set(given))
  if missing:
    raise ValueError(f"kernels without a {what}: {', '.join(missing)}")
