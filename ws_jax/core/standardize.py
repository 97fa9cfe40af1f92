"""Weight Standardization as a pure function of the parameters.

Qiao et al., "Weight Standardization" (arXiv 1903.10520): every filter of a
convolution is shifted and scaled to mean 0 and variance 1 over its fan-in.

Here are the functions that users call, and the checks of what they give; the
arithmetic is in `ws_jax.core.numerics`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ws_jax.base.names import suggest
from ws_jax.core import numerics
from ws_jax.core.conventions import BIT, Convention, get_convention
from ws_jax.core.kernels import (
  Axes,
  Where,
  by_path,
  conv_kernels,
  errors_name,
  fan_in_axes,
  replace,
  select,
  select_axes,
)
from ws_jax.core.verdicts import NAMES

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
    kernel: Floating-point array `[..., out]`, for example `[H, W, in, out]`.
    axis: Fan-in axes, over which the moments are taken. None for all but the
      last, which is right for convolution kernels of Flax, grouped and
      depthwise ones too.
    convention: Definition to use: a name of `CONVENTIONS`, or a `Convention`.
    gain: Factor per filter, of the kernel's shape without the fan-in axes, or a
      scalar, or None.
    mean: Mean to add to every filter at the end, of a gain's shape, or None.

  Returns:
    The effective kernel, of the shape and dtype of `kernel`.

  Raises:
    ValueError: The convention is unknown, the kernel does not have these axes,
      the gain or the mean has another shape, or the fan-in is below the
      convention's `min_fan_in`.
    TypeError: The kernel is not real floating point.

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
  return numerics.standardize(
    kernel, gain, mean, axes=axes, convention=convention
  )


def weight_standardize(
  params: PyTree,
  *,
  where: Where = conv_kernels,
  axes: Axes = fan_in_axes,
  convention: str | Convention = BIT,
  gains: Mapping[str, jax.Array] | None = None,
  means: Mapping[str, jax.Array] | None = None,
) -> PyTree:
  """Returns the effective parameters: selected kernels are standardized.

  The parameters given stay the only state: call this inside the function that
  is differentiated, once per optimizer step, in training and in evaluation.

  Args:
    params: Any pytree of arrays, for example from `model.init`.
    where: Where `(path, leaf) -> bool` of the kernels. A path is
      `"block/Conv_0/kernel"`.
    axes: Rule `(path, leaf) -> tuple` for the fan-in axes of a selected leaf.
    convention: Name of `CONVENTIONS`, or a `Convention`.
    gains: Gains `{path: [out] array}`, one for each selected kernel, for
      example from `init_gains`; or None.
    means: Means `{path: [out] array}` that `from_plain` kept, or None.

  Returns:
    A tree of the same structure, shapes and dtypes; leaves that are not
    selected are the same objects.

  Raises:
    ValueError: Nothing was selected (the message lists the paths), it cannot be
      known what a leaf is or which of its axes are fan-in, a kernel cannot be
      standardized (the message names its path), or the paths of the gains or
      means are not the selected ones.
    TypeError: A selected kernel is not real floating point.

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
  kernels = select_axes(params, where, axes)
  for what, given in (("gain", gains), ("mean", means)):
    if given is not None:
      _check_paths(given, what, list(kernels))
  effective = {}
  for path, (kernel, fan_in) in kernels.items():
    with errors_name(path):
      effective[path] = standardize(
        kernel,
        axis=fan_in,
        convention=convention,
        gain=None if gains is None else gains[path],
        mean=None if means is None else means[path],
      )
  return replace(params, effective)


def init_gains(
  params: PyTree, *, where: Where = conv_kernels, axes: Axes = fan_in_axes
) -> dict[str, jax.Array]:
  """Returns gains of one, `{path: [out] float32}`, for the scaled conventions.

  They are a tree of their own, so that an optimizer can leave them out of
  weight decay.

  Args:
    params: Any pytree of arrays.
    where: Where of the kernels, as in `weight_standardize`.
    axes: Rule for their fan-in axes, as in `weight_standardize`.

  Raises:
    ValueError: Nothing was selected, or a kernel does not have these axes.

  Example:
    >>> params = {"Conv_0": {"kernel": jnp.zeros((3, 3, 4, 2))}}
    >>> {path: gain.shape for path, gain in init_gains(params).items()}
    {'Conv_0/kernel': (2,)}
  """
  gains = {}
  for path, (kernel, fan_in) in select_axes(params, where, axes).items():
    with errors_name(path):
      fan_in = _canonical_axes(fan_in, kernel.ndim)
    shape = [n for i, n in enumerate(kernel.shape) if i not in fan_in]
    gains[path] = jnp.ones(shape, jnp.float32)
  return gains


def gains_beside(
  params: PyTree, *, where: Where = conv_kernels, axes: Axes = fan_in_axes
) -> dict[str, jax.Array] | None:
  """Returns the gains that a tree keeps beside its kernels, as `gain`.

  Norm-free nets have them: the effective kernel holds its gain, and the module
  applies the kernel alone.

  Args:
    params: Any pytree of arrays.
    where: Where of the kernels, as in `weight_standardize`.
    axes: Rule for their fan-in axes, as in `weight_standardize`.

  Returns:
    Gains `{path of the kernel: [out] array}`; ones for a kernel without a gain,
    where another has one. None if no kernel has one.

  Raises:
    ValueError: Nothing was selected, or a gain has not one number for each
      filter.

  Example:
    >>> conv = {"kernel": jnp.zeros((3, 3, 4, 2)), "gain": jnp.array([2.0, 3])}
    >>> {path: x.tolist() for path, x in gains_beside({"conv": conv}).items()}
    {'conv/kernel': [2.0, 3.0]}
  """
  leaves = by_path(params)
  beside = {}
  for path in select(params, where):
    for name in NAMES:
      gain = f"{path.removesuffix(name)}gain"
      if path.split("/")[-1] == name and gain in leaves:
        beside[path] = leaves[gain]
  if not beside:
    return None
  gains = init_gains(params, where=where, axes=axes)
  for path, gain in beside.items():
    # PyTorch's are [out, 1, 1, 1].
    if jnp.size(gain) != gains[path].size:
      raise ValueError(
        f"{path}: a gain of shape {list(jnp.shape(gain))} beside a kernel of"
        f" {gains[path].size} filters"
      )
    gains[path] = jnp.reshape(gain, gains[path].shape)
  return gains


def scale_and_mean(
  kernel: jax.typing.ArrayLike,
  *,
  axis: int | Sequence[int] | None = None,
  convention: str | Convention = BIT,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gain and the mean that undo `standardize`.

  Args:
    kernel: Kernel, as in `standardize`.
    axis: Fan-in axes, as in `standardize`.
    convention: Convention, as in `standardize`.

  Returns:
    Two arrays of the kernel's shape without the fan-in axes, float32 (float64
    for a float64 kernel). `standardize(kernel, gain=, mean=)` with them is the
    kernel again. The gain of a constant filter is not 0, but the spread that
    eps leaves it.

  Raises:
    ValueError: As in `standardize`.
    TypeError: As in `standardize`.

  Example:
    >>> kernel = jnp.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    >>> scale_and_mean(kernel)[1].tolist()
    [3.0, 5.0]
  """
  kernel, axes, convention = _checked(kernel, axis, convention)
  return numerics.scale_and_mean(kernel, axes=axes, convention=convention)


def _checked(
  kernel: jax.typing.ArrayLike,
  axis: int | Sequence[int] | None,
  convention: str | Convention,
) -> tuple[jax.Array, tuple[int, ...], Convention]:
  """Returns the arguments in canonical form, or raises an error."""
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
  """Returns the fan-in axes sorted, and counted from the front."""
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
  """Refuses filters with fewer weights than the convention needs."""
  fan_in = math.prod(shape[i] for i in axes)
  if fan_in >= convention.min_fan_in:
    return
  given = f"fan-in {fan_in} (shape {list(shape)}, axes {list(axes)})"
  if fan_in < 2:
    raise ValueError(
      f"{given} has no standard deviation: leave this kernel out with `where`, "
      "or check the axes"
    )
  raise ValueError(
    f"{given} is below min_fan_in={convention.min_fan_in}: two weights become "
    "+-1 whatever their values. Leave this kernel out with `where`, choose a "
    "scaled or centred convention ('nfnet', 'timm_scaled', 'center'), or allow "
    "it with dataclasses.replace(convention, min_fan_in=2)"
  )


def _align(
  value: jax.Array, what: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> jax.Array:
  """Returns a gain or mean as one number per filter, or refuses its shape."""
  kept = tuple(n for i, n in enumerate(shape) if i not in axes)
  if value.ndim and value.shape != kept:
    raise ValueError(
      f"{what} of shape {list(value.shape)} for a kernel {list(shape)} with "
      f"fan-in axes {list(axes)}: must be {list(kept)} or a scalar"
    )
  return jnp.broadcast_to(value, kept)


def _check_paths(given: Mapping[str, Any], what: str, paths: list[str]) -> None:
  """Refuses gains or means of other paths than those of the kernels."""
  for path in sorted(set(given) - set(paths)):
    raise ValueError(
      f"{what} for unknown kernel {path!r}: {suggest(path, paths)}"
    )
  missing = sorted(set(paths) - set(given))
  if missing:
    raise ValueError(f"kernels without a {what}: {', '.join(missing)}")
