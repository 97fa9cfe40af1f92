"""Plain parameters for the plain model, made of raw ones."""

from collections.abc import Mapping
from typing import Any

import jax

from ws_jax.core.conventions import BIT, Convention
from ws_jax.core.kernels import Axes, Where, conv_kernels, fan_in_axes
from ws_jax.core.standardize import weight_standardize

PyTree = Any


def fold(
  params: PyTree,
  *,
  where: Where = conv_kernels,
  axes: Axes = fan_in_axes,
  convention: str | Convention = BIT,
  gains: Mapping[str, jax.Array] | None = None,
  means: Mapping[str, jax.Array] | None = None,
) -> PyTree:
  """Returns plain parameters with which the plain model computes the same.

  Fold for deployment. Do not train on from folded parameters, and do not fold
  them again: they are no longer the raw ones, and nothing in the tree says so.
  A file that `ws_jax.weights.write_params` wrote says it.

  Args:
    params: Raw parameters, any pytree of arrays.
    where: Where of the kernels, as in training.
    axes: Rule for their fan-in axes, as in training.
    convention: Convention of the training.
    gains: Gains of the training `{path: [out] array}`, or None.
    means: Means that `from_plain` kept `{path: [out] array}`, or None.

  Raises:
    ValueError: As `weight_standardize`.
    TypeError: As `weight_standardize`.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"Conv_0": {"kernel": jnp.arange(72.0).reshape(3, 3, 4, 2)}}
    >>> round(float(fold(params)["Conv_0"]["kernel"].max()), 2)
    1.68
  """
  return weight_standardize(
    params,
    where=where,
    axes=axes,
    convention=convention,
    gains=gains,
    means=means,
  )
