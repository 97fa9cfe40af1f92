"""The smoothness of a loss, along its gradient and by its Hessian.

A loss is a function `loss(params, *args)` of a pytree of real floats. Outside
of `jax.jit` it is compiled once for each function object, so pass the same
object every time, and what changes (a batch, running statistics) as `args`.
Inside of `jax.jit` the loops here are unrolled.

All of these measures depend on scale: divide the kernels in front of a
normalization by ten, and the same network looks a hundred times sharper.
Compare networks at equal relative steps, or `in_own_units` if their layers may
differ in scale.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ws_jax.core.kernels import Where, conv_kernels, replace, select

PyTree = Any
Loss = Callable[..., jax.Array]

# The smallest divisor, for norms that may be zero.
_TINY = 1e-30


class AlongGradient(NamedTuple):
  """Losses and gradients at several steps down the gradient from one point.

  Attributes:
    loss: Loss at the point itself.
    gradient_norm: Norm of the gradient at the point.
    distances: Length of each step, in the units of the parameters, [n].
    losses: Loss at the end of each step, [n].
    gradient_changes: Norm of the difference between the gradient at the end of
      each step and that at the point, [n].
  """

  loss: jax.Array
  gradient_norm: jax.Array
  distances: jax.Array
  losses: jax.Array
  gradient_changes: jax.Array

  @property
  def loss_variation(self) -> jax.Array:
    """Largest minus smallest loss of all steps and the point itself."""
    highest = jnp.maximum(self.loss, self.losses.max())
    return highest - jnp.minimum(self.loss, self.losses.min())

  @property
  def predictiveness(self) -> jax.Array:
    """Largest change of the gradient over its norm; 0 for a plane."""
    return self.gradient_changes.max() / jnp.maximum(self.gradient_norm, _TINY)

  @property
  def beta_smoothness(self) -> jax.Array:
    """Largest change of the gradient over the length of the step."""
    return jnp.max(self.gradient_changes / self.distances)


def along_gradient(
  loss: Loss, params: PyTree, relative_steps: Sequence[float], *args: Any
) -> AlongGradient:
  """Measures loss variation, predictiveness and beta-smoothness.

  It takes steps of several lengths down the gradient, as in Santurkar et al.
  2018 (arXiv:1805.11604), Fig. 4, with one change: the steps are relative,
  r = rate * |gradient| / |params|, because at equal rates the three measures
  say more about the scale of the parameters than about the network.

  Args:
    loss: Function `loss(params, *args)` that returns a scalar.
    params: Point to start from, any pytree of real floats, not all zero.
    relative_steps: Lengths of the steps as parts of the norm of `params`.
    *args: Other arguments of `loss`.

  Returns:
    An `AlongGradient`, whose properties are the three measures.

  Example:
    >>> walk = along_gradient(lambda x: 3 * jnp.sum(x * x), jnp.ones(4), [0.1])
    >>> round(float(walk.beta_smoothness), 3)
    6.0
  """
  value, grads = _value_and_grad(loss, params, args)
  norm = optax.tree.norm(grads)
  # A gradient of zero is no error: all steps then end at the point itself.
  downhill = optax.tree.scale(-1 / jnp.maximum(norm, _TINY), grads)
  distances = jnp.asarray(relative_steps) * optax.tree.norm(params)
  losses, changes = [], []
  for distance in distances:
    there = optax.tree.add_scale(params, distance, downhill)
    loss_there, grads_there = _value_and_grad(loss, there, args)
    losses.append(loss_there)
    changes.append(optax.tree.norm(optax.tree.sub(grads_there, grads)))
  return AlongGradient(
    value, norm, distances, jnp.stack(losses), jnp.stack(changes)
  )


class Sharpness(NamedTuple):
  """The largest eigenvalue of a Hessian, and a bound on its error.

  Attributes:
    eigenvalue: Largest eigenvalue, not the largest in magnitude.
    residual: Norm |H v - eigenvalue v| for the unit vector v that was found;
      there is an eigenvalue no further than this from `eigenvalue`.
  """

  eigenvalue: jax.Array
  residual: jax.Array


def sharpness(
  loss: Loss,
  params: PyTree,
  *args: Any,
  seed: int = 0,
  num_iterations: int = 30,
) -> Sharpness:
  """Returns the largest eigenvalue of the Hessian, by power iteration.

  Power iteration finds the eigenvalue of the largest magnitude. If it is
  negative, a second round iterates on the Hessian minus this eigenvalue, whose
  eigenvalues are all positive, and so finds the largest. If it is positive, the
  second round makes it more exact.

  To compare two networks, multiply by the squared norm of `params`, or measure
  `in_own_units`.

  Args:
    loss: Function `loss(params, *args)` that returns a scalar and can be
      differentiated twice.
    params: Point to measure at, any pytree of real floats.
    *args: Other arguments of `loss`.
    seed: Seed of the first vector.
    num_iterations: Number of Hessian-vector products in each of the two rounds.

  Returns:
    The eigenvalue and its residual.

  Example:
    >>> curvatures = jnp.array([3.0, 1.0, -5.0])
    >>> saddle = lambda x: 0.5 * jnp.sum(curvatures * x * x)
    >>> round(float(sharpness(saddle, jnp.ones(3)).eigenvalue), 3)
    3.0
  """
  first, second = jax.random.split(jax.random.key(seed))

  def iterate(vector, shift):
    for _ in range(num_iterations - 1):
      vector, *_ = _iterate(loss, params, vector, shift, args)
    return _iterate(loss, params, vector, shift, args)

  start = optax.tree.random_like(first, params)
  vector, largest, _ = iterate(start, 0.0)
  # A vector that has converged to the wrong end of the spectrum has nothing of
  # the right end left in it.
  fresh = optax.tree.random_like(second, params)
  vector = optax.tree.where(largest < 0, fresh, vector)
  _, eigenvalue, residual = iterate(vector, jnp.minimum(largest, 0))
  return Sharpness(eigenvalue, residual)


def in_own_units(
  loss: Loss, params: PyTree, *, where: Where = conv_kernels
) -> tuple[Loss, dict[str, jax.Array], PyTree]:
  """Returns a loss of each kernel in units of its norm, with the rest fixed.

  A normalization makes the scale of the kernel before it meaningless: BN that
  of each filter, GN that of a whole kernel, WS that of each filter again. In
  units of its own norm such a kernel looks the same at any scale, and so does
  everything that this module measures. A relative step then moves every kernel
  by a part of itself, and for one kernel alone the sharpness is the usual
  eigenvalue times the squared norm. The scale of all other parameters (the head
  and the scales of the norms) does matter, so they are fixed.

  Args:
    loss: Function `loss(params, *args)`.
    params: Parameters of the network.
    where: Where `(path, leaf) -> bool` of the leaves to measure.

  Returns:
    A loss `scaled(coordinates, frame, *args)`, the same object whenever `loss`
    is; the coordinates `{path: kernel of norm 1}`; and the frame, a pytree of
    all that is fixed: pass it as the first of the `args`.

  Raises:
    ValueError: Nothing is selected.

  Example:
    >>> params = {"conv": {"kernel": jnp.full((3, 3, 4, 2), 7.0)}}
    >>> loss = lambda params, x: jnp.sum(params["conv"]["kernel"]) * x
    >>> scaled, coordinates, frame = in_own_units(loss, params)
    >>> round(float(optax.tree.norm(coordinates)), 3)
    1.0
    >>> bool(jnp.isclose(scaled(coordinates, frame, 2.0), loss(params, 2.0)))
    True
  """
  chosen = select(params, where)
  norms: dict[str, Any] = {
    path: jnp.sqrt(jnp.sum(leaf * leaf)) for path, leaf in chosen.items()
  }
  coordinates = {path: leaf / norms[path] for path, leaf in chosen.items()}
  return _scaled(loss), coordinates, (params, norms)


@functools.cache
def _scaled(loss):
  """Returns the loss of the coordinates; one object for each loss."""

  def scaled(coordinates, frame, *args):
    params, norms = frame
    kernels = {path: x * norms[path] for path, x in coordinates.items()}
    return loss(replace(params, kernels), *args)

  return scaled


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(loss, params, args):
  return jax.value_and_grad(loss)(params, *args)


@functools.partial(jax.jit, static_argnums=0)
def _iterate(loss, params, vector, shift, args):
  """Takes one step of power iteration on H - shift.

  Returns:
    The next vector, and the eigenvalue and the residual of the vector given.
  """
  unit = optax.tree.scale(1 / optax.tree.norm(vector), vector)

  # Reverse mode twice: a layer with a backward pass of its own, such as our
  # norms, has no forward mode.
  def slope(params):
    return optax.tree.vdot(jax.grad(loss)(params, *args), unit)

  product = jax.grad(slope)(params)
  eigenvalue = jnp.asarray(optax.tree.vdot(unit, product))
  rest = optax.tree.add_scale(product, -eigenvalue, unit)
  following = optax.tree.add_scale(product, -shift, unit)
  return following, eigenvalue, optax.tree.norm(rest)
