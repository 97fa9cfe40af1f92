"""Additions to any optax optimizer: centralized gradients, a mask, a monitor.

`centralize_gradients` goes first in a chain, `monitor_effective_learning_rates`
last; `kernel_decay_mask` says which parameters decay.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ws_jax.core.kernels import (
  Axes,
  Selector,
  Where,
  by_path,
  conv_kernels,
  dense_kernels,
  fan_in_axes,
  named_kernels,
  path_string,
  replace,
  seeing,
  select,
  select_axes,
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
  *, where: Where = all_kernels, axes: Axes = fan_in_axes
) -> optax.GradientTransformation:
  """Returns a transformation that centres the gradient of every filter.

  It subtracts the mean over the fan-in: Gradient Centralization, Yong et al.
  2020 (arXiv:2004.01461), eq. 1. It goes before momentum and before weight
  decay. A filter keeps the mean it starts with, whereas Weight Standardization
  ignores the mean: behind `weight_standardize` the gradient is centred already,
  and this does nothing.

  `optax.centralize` averages over all axes but the first, which is the fan-in
  of PyTorch's `[out, in, H, W]`, but not of Flax's `[H, W, in, out]`.

  Args:
    where: Selector of the leaves to centre. The default takes those of
      convolutions and dense layers, as the paper does; `conv_kernels` takes
      those of convolutions alone.
    axes: Rule for the fan-in axes of a selected leaf.

  Returns:
    A transformation without state. The mean is taken in float32 (float64 for
    float64 gradients), dtypes are kept.

  Raises:
    ValueError: By `init` and `update`: nothing was selected (the message lists
      the paths), or a leaf has a fan-in of 1, so that its gradient would vanish
      (the message names its path).

  Example:
    >>> params = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 2))}}
    >>> optimizer = optax.chain(centralize_gradients(), optax.sgd(0.1))
    >>> state = optimizer.init(params)
    >>> grads = jax.tree.map(lambda x: x + 5.0, params)
    >>> updates, state = optimizer.update(grads, state, params)
    >>> bool(jnp.abs(updates["Conv_0"]["kernel"]).max() < 1e-6)
    True
  """

  def init(params: PyTree) -> optax.EmptyState:
    jax.eval_shape(centralize, params)  # raises its errors before training
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    return centralize(updates), state

  def centralize(grads: PyTree) -> PyTree:
    centred = {
      path: _centralize(path, grad, fan_in)
      for path, (grad, fan_in) in select_axes(grads, where, axes).items()
    }
    return replace(grads, centred)

  return optax.GradientTransformation(init, update)


def _centralize(path: str, grad: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Returns the gradient of a kernel less the mean of each filter."""
  if math.prod(grad.shape[i] for i in axes) < 2:
    raise ValueError(
      f"{path}: fan-in 1 (shape {list(grad.shape)}, axes {list(axes)}): its "
      "gradient would vanish, leave this kernel out with `where`"
    )
  dtype = jnp.promote_types(grad.dtype, jnp.float32)
  wide = grad.astype(dtype)
  return (wide - wide.mean(axes, keepdims=True)).astype(grad.dtype)


class EffectiveLearningRates(NamedTuple):
  """Numbers that `monitor_effective_learning_rates` measured in the last step.

  Attributes:
    count: Number of steps measured so far, int32 scalar.
    relative_step: Size of the step of each kernel over the size of the kernel,
      `{path: float32 scalar}`.
    effective_learning_rate: Learning rate over the squared size of a filter,
      `{path: float32 scalar}`; empty if no learning rate was given.

  Example:
    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 4, 2))}}
    >>> monitor_effective_learning_rates().init(params).relative_step
    {'conv/kernel': Array(0., dtype=float32)}
  """

  count: jax.Array
  relative_step: dict[str, jax.Array]
  effective_learning_rate: dict[str, jax.Array]


def monitor_effective_learning_rates(
  learning_rate: optax.ScalarOrSchedule | None = None,
  *,
  where: Where = conv_kernels,
  axes: Axes = fan_in_axes,
  center: bool = True,
) -> optax.GradientTransformation:
  """Returns a transformation that measures updates, and changes none.

  Placed last in a chain it sees the step that is taken. Where a kernel's scale
  does not matter, as behind `weight_standardize`, only its direction learns,
  and two numbers say how fast:

      relative_step            ||update|| / ||kernel||
      effective_learning_rate  learning_rate / ||filter||**2

  The first is nearly the angle by which the direction turns. It needs no
  learning rate, and holds for every optimizer; with weight decay it settles
  near sqrt(2 * learning_rate * weight_decay) for plain SGD. The second is the
  rate at which gradient descent on filters of length one would make the same
  step (van Laarhoven 2017, arXiv:1706.05350, sec. 2; Hoffer et al. 2018,
  arXiv:1803.01814, sec. 3); the square is the mean over the kernel's filters.
  It needs the rate itself, since an update is the product of rate and
  direction.

  Args:
    learning_rate: Number or schedule that the optimizer uses, or None.
    where: Selector of the leaves to measure.
    axes: Rule for the fan-in axes of a kernel.
    center: Whether filters are measured without their mean, which matters as
      little as their scale if they are standardized. Use False for a model
      without WS.

  Returns:
    A transformation whose state `effective_learning_rates` reads.

  Raises:
    ValueError: By `init`: nothing was selected (the message lists the paths).
      By `update`: no parameters were given to it.

  Example:
    >>> params = {"Conv_0": {"kernel": jnp.arange(72.0).reshape(3, 3, 4, 2)}}
    >>> optimizer = optax.chain(
    ...   optax.sgd(0.1), monitor_effective_learning_rates(0.1)
    ... )
    >>> state = optimizer.init(params)
    >>> _, state = optimizer.update(params, state, params)
    >>> seen = effective_learning_rates(state)
    >>> round(float(seen.relative_step["Conv_0/kernel"]), 3)
    0.1
    >>> float(seen.effective_learning_rate["Conv_0/kernel"])  # 0.1 / 15540
    6.43...e-06
  """

  def init(params: PyTree) -> EffectiveLearningRates:
    chosen = select(params, where)
    # Each is an array of its own, because a state may be donated, and a buffer
    # can be donated only once.
    zeros = lambda: {path: jnp.zeros((), jnp.float32) for path in chosen}
    rates = {} if learning_rate is None else zeros()
    return EffectiveLearningRates(jnp.zeros((), jnp.int32), zeros(), rates)

  def update(updates, state, params=None):
    if params is None:
      raise ValueError(
        "the monitor needs the parameters: call update(grads, state, params)"
      )
    rate = learning_rate
    if callable(rate):
      rate = rate(state.count)
    steps, rates, moved = {}, {}, by_path(updates)
    for path, (kernel, fan_in) in select_axes(params, where, axes).items():
      filters = kernel.size // math.prod(kernel.shape[i] for i in fan_in)
      square = _square(kernel, fan_in, center)
      steps[path] = jnp.sqrt(_square(moved[path], fan_in, center) / square)
      if rate is not None:
        rates[path] = jnp.asarray(rate * filters / square, jnp.float32)
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, EffectiveLearningRates(count, steps, rates)

  return optax.GradientTransformation(init, update)


def effective_learning_rates(opt_state: PyTree) -> EffectiveLearningRates:
  """Returns the numbers of the monitor in the state of a whole optimizer.

  Args:
    opt_state: State of the optimizer, for example of a chain of any depth.

  Raises:
    ValueError: The optimizer has no monitor, or more than one.

  Example:
    >>> optimizer = optax.chain(
    ...   optax.adam(1e-3), monitor_effective_learning_rates()
    ... )
    >>> state = optimizer.init({"conv": {"kernel": jnp.ones((3, 3, 4, 2))}})
    >>> list(effective_learning_rates(state).relative_step)
    ['conv/kernel']
  """
  is_monitor = lambda x: isinstance(x, EffectiveLearningRates)
  found = [x for x in jax.tree.leaves(opt_state, is_monitor) if is_monitor(x)]
  if len(found) != 1:
    raise ValueError(
      f"{len(found)} monitors in the state of this optimizer; chain one "
      "ws_jax.monitor_effective_learning_rates() behind it"
    )
  return found[0]


def _square(x: jax.Array, axes: tuple[int, ...], center: bool) -> jax.Array:
  """Returns the sum of squares of a kernel's filters, in float32."""
  wide = x.astype(jnp.float32)
  if center:
    wide -= wide.mean(axes, keepdims=True)
  return jnp.sum(wide * wide)


def kernel_decay_mask(
  params: PyTree,
  *,
  where: Selector = named_kernels,
  leave_out: tuple[str, ...] = ("gains", "means"),
) -> PyTree:
  """Returns which leaves decay: kernels, and never gains or kept means.

  Decay of a gain shrinks what its filter computes. Decay of a raw kernel does
  not: the kernel only turns faster. Pass the function itself to optax:
  `optax.adamw(1e-3, mask=ws_jax.kernel_decay_mask)`.

  Args:
    params: Tree of parameters, which may also hold the gains and the means of
      `init_gains` and `from_plain`.
    where: Selector of the leaves that decay. The default takes the kernels of
      convolutions, dense layers and attention.
    leave_out: Keys under which nothing decays.

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

  with seeing(params):
    return jax.tree_util.tree_map_with_path(decays, params)
