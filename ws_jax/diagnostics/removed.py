"""The two parts of a gradient that Weight Standardization takes away."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ws_jax.core.kernels import (
  Axes,
  Where,
  by_path,
  conv_kernels,
  fan_in_axes,
  select_axes,
)
from ws_jax.core.standardize import standardize

PyTree = Any


class RemovedTerms(NamedTuple):
  """Parts of one kernel's squared gradient that WS removes.

  Attributes:
    mean: Part along the constant filter, <1, g>^2 / (I |g|^2).
    radial: Part along the filter itself, <W, g>^2 / (I |g|^2).
    squared_norm: Whole squared gradient |g|^2, which the two are parts of.
  """

  mean: jax.Array
  radial: jax.Array
  squared_norm: jax.Array


def removed_terms(
  grads: PyTree,
  params: PyTree,
  *,
  where: Where = conv_kernels,
  axes: Axes = fan_in_axes,
) -> dict[str, RemovedTerms]:
  """Returns the parts of each kernel's gradient that WS removes.

  With g the gradient of one filter of fan-in I by its effective value, and W
  the standardized filter, the raw gradient obeys

      std^2 |dL/draw|^2 = |g|^2 - <1, g>^2 / I - <W, g>^2 / I

  (Qiao et al. 2019, arXiv:1903.10520: why WS smooths). Both fractions are
  between 0 and 1 and do not depend on scale. In a network without WS the
  effective kernels are the parameters themselves, and the fractions say what WS
  would remove.

  Args:
    grads: Gradient of the loss by the effective parameters, a tree like
      `params`.
    params: Raw or effective parameters; standardizing makes them the same.
    where: Where `(path, leaf) -> bool` of the kernels.
    axes: Rule `(path, leaf) -> tuple` for their fan-in axes.

  Returns:
    The parts as `{path: RemovedTerms}`, with numerators and denominators summed
    over the filters of a kernel; fractions of a gradient of zero are zero.

  Raises:
    ValueError: Nothing is selected.

  Example:
    >>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 2))
    >>> terms = removed_terms({"w": kernel * 0 + 2.0}, {"w": kernel})["w"]
    >>> round(float(terms.mean), 3), round(float(terms.radial), 3)
    (1.0, 0.0)
  """
  grads_of, found = by_path(grads), {}
  for path, (kernel, fan_in) in select_axes(params, where, axes).items():
    grad = grads_of[path]
    size = math.prod(kernel.shape[i] for i in fan_in)
    squared_norm = jnp.sum(grad * grad)
    whole = size * jnp.where(squared_norm > 0, squared_norm, 1)
    along = standardize(kernel, axis=fan_in) * grad
    found[path] = RemovedTerms(
      jnp.sum(jnp.sum(grad, fan_in) ** 2) / whole,
      jnp.sum(jnp.sum(along, fan_in) ** 2) / whole,
      squared_norm,
    )
  return found
