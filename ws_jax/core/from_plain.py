"""A start for WS from a model that was trained without it."""

from typing import Any

import jax

from ws_jax.core.conventions import BIT, Convention
from ws_jax.core.kernels import (
  Axes,
  Where,
  conv_kernels,
  errors_name,
  fan_in_axes,
  select_axes,
)
from ws_jax.core.standardize import scale_and_mean

PyTree = Any


def from_plain(
  params: PyTree,
  *,
  where: Where = conv_kernels,
  axes: Axes = fan_in_axes,
  convention: str | Convention = BIT,
) -> tuple[PyTree, dict[str, jax.Array], dict[str, jax.Array]]:
  """Turns a plain model into a scaled one that computes the same function.

  Standardizing takes the mean and the spread of each filter away. This function
  returns both, as means and gains: `weight_standardize` with them gives the
  plain parameters again, to round-off. Train the raw parameters and the gains.
  Keep the means constant, or train them as well: then the model can compute
  whatever the plain one could.

  The raw kernels are the plain ones, not rescaled. Their gradient is then the
  plain one without its mean and without its component along the filter, so
  that learning rates keep their meaning.

  Args:
    params: Parameters of the plain model, any pytree of arrays.
    where: Where of the kernels; use the same in `weight_standardize`.
    axes: Rule for their fan-in axes; use the same there.
    convention: Convention to follow; use the same there.

  Returns:
    The raw parameters (`params`, untouched), the gains and the kept means, both
    `{path: [out] array}`, float32 (float64 for float64 kernels).

  Raises:
    ValueError: Nothing was selected, or a kernel cannot be standardized (the
      message names its path).
    TypeError: A selected kernel is not real floating point.

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
  gains, means = {}, {}
  for path, (kernel, fan_in) in select_axes(params, where, axes).items():
    with errors_name(path):
      gains[path], means[path] = scale_and_mean(
        kernel, axis=fan_in, convention=convention
      )
  return params, gains, means
