"""From a model trained without Weight Standardization into one with it."""

from typing import Any

import jax

from ws_jax.core.conventions import BIT, Convention
from ws_jax.core.kernels import (
  Axes,
  Selector,
  conv_kernels,
  fan_in_axes,
  selected_kernels,
)
from ws_jax.core.standardize import scale_and_mean

PyTree = Any


def from_plain(
  params: PyTree,
  *,
  where: Selector = conv_kernels,
  axes: Axes = fan_in_axes,
  convention: str | Convention = BIT,
) -> tuple[PyTree, dict[str, jax.Array], dict[str, jax.Array]]:
  """Turns a plain model into a scaled one that computes the same function.

  What standardizing takes away from a filter, its mean and its spread, is kept
  beside it; `weight_standardize` with both is the plain parameters again, to
  round-off. Train the raw parameters and the gains. The means are constants,
  or trained as well: then the model can do whatever the plain one could.

  The raw kernels are the plain ones and not rescaled, since then their gradient
  is the plain one without its mean and without its component along the filter:
  learning rates keep their meaning.

  Args:
    params: the parameters of the plain model, any pytree of arrays.
    where: as in `weight_standardize`, and to be the same there.
    axes: likewise.
    convention: likewise.

  Returns:
    The raw parameters (`params`, untouched), the gains and the kept means, both
    `{path: [out] array}`, float32 (float64 for float64 kernels).

  Raises:
    ValueError: nothing was selected, or a kernel that cannot be standardized
      (names the path).
    TypeError: a selected kernel is not real floating point.

  Example:
    >>> import jax.numpy as jnp
    >>> from ws_jax import weight_standardize
    >>> plain = {"Conv_0": {"kernel": jnp.arange(72.0).reshape(3, 3, 4, 2)}}
    >>> raw, gains, means = from_plain(plain)
    >>> same = weight_standardize(raw, gains=gains, means=means)
    >>> error = same["Conv_0"]["kernel"] - plain["Conv_0"]["kernel"]
    >>> bool(jnp.abs(error).max() < 1e-5)
    True
    >>> means["Conv_0/kernel"].round(3).tolist()
    [35.0, 36.0]
  """
  paths, leaves, _ = selected_kernels(params, where)
  gains, means = {}, {}
  for path, leaf in zip(paths, leaves, strict=True):
    if path is None:
      continue
    try:
      gains[path], means[path] = scale_and_mean(
        leaf, axis=axes(path, leaf), convention=convention
      )
    except (TypeError, ValueError) as error:
      raise type(error)(f"{path}: {error}") from None
  return params, gains, means
