"""Gradient Centralization, and which leaves decay, for any optax optimizer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ws_jax.kernels import (
  Axes,
  Selector,
  conv_kernels,
  dense_kernels,
  fan_in_axes,
  path_string,
  selected_kernels,
)

PyTree = Any


def all_kernels(path: str, leaf: Any) -> bool:
  """Selects the kernels of convolutions and of dense layers.

  Example:
    >>> all_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    True
    >>> all_kernels("Dense_0/bias", jnp.zeros(16))
    False
  """
  return conv_kernels(path, leaf) or dense_kernels(path, leaf)


def centralize_gradients(
  *, where: Selector = all_kernels, axes: Axes = fan_in_axes
) -> optax.GradientTransformation:
  """Takes from the gradient of every filter its mean over the fan-in.

  Gradient Centralization, Yong et al. 2020 (arXiv:2004.01461), eq. 1. It goes
  before momentum and before weight decay. A filter keeps the mean it starts
  with, where Weight Standardization ignores the mean: behind
  `weight_standardize` the gradient is centred already and this does nothing.

  `optax.centralize` averages over all axes but the first, which is the fan-in
  of PyTorch's `[out, in, H, W]`, but not of Flax's `[H, W, in, out]`.

  Args:
    where: which leaves; those of convolutions and dense layers, as in the
      paper. `conv_kernels` for convolutions alone.
    axes: the fan-in axes of a selected leaf.

  Returns:
    A transformation without state. The mean is taken in float32 (float64 for
    float64 gradients), dtypes are kept.

  Raises:
    ValueError: by `init` and `update`: nothing was selected (the message lists
      the paths), or a fan-in of 1, whose gradient would vanish (names the
      path).

  Example:
    >>> params = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 2))}}
    >>> optimizer = optax.chain(centralize_gradients(), optax.sgd(0.1))
    >>> state = optimizer.init(params)
    >>> grads = jax.tree.map(lambda x: x + 5.0, params)
    >>> updates, state = optimizer.update(grads, state, params)
    >>> float(jnp.abs(updates["Conv_0"]["kernel"]).max())
    0.0
  """

  def init(params: PyTree) -> optax.EmptyState:
    jax.eval_shape(centralize, params)  # for its errors, before training
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    return centralize(updates), state

  def centralize(grads: PyTree) -> PyTree:
    paths, leaves, treedef = selected_kernels(grads, where)
    centred = [
      leaf if path is None else _centralize(path, leaf, axes(path, leaf))
      for path, leaf in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, centred)

  return optax.GradientTransformation(init, update)


def _centralize(path: str, grad: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  if math.prod(grad.shape[i] for i in axes) < 2:
    raise ValueError(
      f"{path}: fan-in 1 (shape {list(grad.shape)}, axes {list(axes)}): its "
      "gradient would vanish, leave this kernel out with `where`"
    )
  dtype = jnp.promote_types(grad.dtype, jnp.float32)
  wide = grad.astype(dtype)
  return (wide - wide.mean(axes, keepdims=True)).astype(grad.dtype)


def kernel_decay_mask(
  params: PyTree,
  *,
  where: Selector = all_kernels,
  leave_out: tuple[str, ...] = ("gains", "means"),
) -> PyTree:
  """Says which leaves decay: kernels, and never gains or kept means.

  A gain that decays shrinks what its filter computes; a raw kernel that decays
  does not, it only turns faster. Pass it as it is to optax:
  `optax.adamw(1e-3, mask=ws_jax.kernel_decay_mask)`.

  Args:
    params: a tree of parameters, or one that also holds the gains and the means
      of `init_gains` and `from_plain`.
    where: which leaves are kernels.
    leave_out: keys under which nothing decays.

  Returns:
    A tree of bools of the same structure.

  Example:
    >>> params = {"bias": jnp.ones(2), "kernel": jnp.ones((8, 2))}
    >>> gains = {"kernel": jnp.ones(2)}
    >>> kernel_decay_mask({"params": params, "gains": gains})
    {'gains': {'kernel': False}, 'params': {'bias': False, 'kernel': True}}
  """

  def decays(keys: tuple[Any, ...], leaf: Any) -> bool:
    path = path_string(keys)
    left_out = any(path_string((key,)) in leave_out for key in keys)
    return not left_out and where(path, leaf)

  return jax.tree_util.tree_map_with_path(decays, params)
