"""How smooth a loss is: along its gradient, and by its Hessian.

A loss is a function `loss(params, *args)` of a pytree of real floats. Outside
of `jax.jit` it is compiled once for each function object, so hand in the same
one again and again and what changes (a batch, running statistics) as `args`;
inside of `jax.jit` the loops here are unrolled.

None of these measures survives a change of scale: divide the kernels in front
of a normalization by ten, and the same network looks a hundred times sharper.
Networks are compared here at equal relative steps, or better, where layers may
differ in scale, `in_own_units`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ws_jax.core.kernels import Selector, conv_kernels, selected_kernels

PyTree = Any
Loss = Callable[..., jax.Array]

# Of what may be zero and is divided by.
_TINY = 1e-30


class AlongGradient(NamedTuple):
  """What is met on the way down the gradient from one point.

  Attributes:
    loss: at the point itself.
    gradient_norm: there.
    distances: length of each step, in the units of the parameters, [n].
    losses: at the end of each step, [n].
    gradient_changes: how far the gradient there is from that at the point, as
      the norm of the difference, [n].
  """

  loss: jax.Array
  gradient_norm: jax.Array
  distances: jax.Array
  losses: jax.Array
  gradient_changes: jax.Array

  @property
  def loss_variation(self) -> jax.Array:
    """Largest minus smallest loss on the way, the point itself included."""
    highest = jnp.maximum(self.loss, self.losses.max())
    return highest - jnp.minimum(self.loss, self.losses.min())

  @property
  def predictiveness(self) -> jax.Array:
    """The largest change of the gradient over its norm; 0 is a plane."""
    return self.gradient_changes.max() / jnp.maximum(self.gradient_norm, _TINY)

  @property
  def beta_smoothness(self) -> jax.Array:
    """The largest change of the gradient over the length of the step."""
    return jnp.max(self.gradient_changes / self.distances)


def along_gradient(
  loss: Loss, params: PyTree, relative_steps: Sequence[float], *args: Any
) -> AlongGradient:
  """Walks down the gradient: loss variation, predictiveness, beta-smoothness.

  Santurkar et al. 2018 (arXiv:1805.11604), Fig. 4, with one change: the steps
  are relative, r = rate * |gradient| / |params|, as the three measures at equal
  rates say more of the scale of the parameters than of the network.

  Args:
    loss: `loss(params, *args)`, a scalar.
    params: the point, any pytree of real floats, not all zero.
    relative_steps: lengths of the steps as parts of the norm of `params`.
    *args: passed on to `loss`.

  Returns:
    An `AlongGradient`; its properties are the three measures.

  Example:
    >>> walk = along_gradient(lambda x: 3 * jnp.sum(x * x), jnp.ones(4), [0.1])
    >>> round(float(walk.beta_smoothness), 3)
    6.0
  """
  value, grads = _value_and_grad(loss, params, args)
  norm = optax.tree.norm(grads)
  # A gradient of zero leads nowhere, which is not an error.
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
  """The largest eigenvalue of a Hessian, and how well it is known.

  Attributes:
    eigenvalue: the largest, not the largest in magnitude.
    residual: |H v - eigenvalue v| for the unit vector v that was found; there
      is an eigenvalue no further than this from `eigenvalue`.
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
  """The largest eigenvalue of the Hessian, by power iteration.

  Power iteration finds the eigenvalue of the largest magnitude. If that one is
  negative a second round, on the Hessian less this eigenvalue, whose own are
  all positive, finds the largest; if not, it makes the first more exact.

  Multiply by the squared norm of `params` before two networks are compared, or
  take it `in_own_units`.

  Args:
    loss: `loss(params, *args)`, a scalar that can be differentiated twice.
    params: the point, any pytree of real floats.
    *args: passed on to `loss`.
    seed: of the first vector.
    num_iterations: Hessian-vector products in each of the two rounds.

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
  # What has converged to the wrong end holds nothing of the right one.
  fresh = optax.tree.random_like(second, params)
  vector = optax.tree.where(largest < 0, fresh, vector)
  _, eigenvalue, residual = iterate(vector, jnp.minimum(largest, 0))
  return Sharpness(eigenvalue, residual)


def in_own_units(
  loss: Loss, params: PyTree, *, where: Selector = conv_kernels
) -> tuple[Loss, dict[str, jax.Array], PyTree]:
  """Measures each kernel in units of its own norm, and holds the rest fixed.

  A normalization makes the scale of the kernel before it meaningless: BN of
  each filter, GN of a whole kernel, WS of each filter again. In units of its
  own norm such a kernel looks the same at any scale, and so does all that this
  module measures; a relative step moves every kernel by a part of itself, and
  for one kernel alone the sharpness is the usual eigenvalue times squared norm.
  The rest, the head and the scales of the norms, have no such freedom.

  Args:
    loss: `loss(params, *args)`.
    params: the parameters.
    where: `(path, leaf) -> bool`, which leaves are measured.

  Returns:
    A loss `scaled(coordinates, frame, *args)`, the same object whenever `loss`
    is; the coordinates `{path: kernel of norm 1}`; and the frame, a pytree that
    holds what is fixed: pass it as the first of the `args`.

  Raises:
    ValueError: nothing is selected.

  Example:
    >>> params = {"conv": {"kernel": jnp.full((3, 3, 4, 2), 7.0)}}
    >>> loss = lambda params, x: jnp.sum(params["conv"]["kernel"]) * x
    >>> scaled, coordinates, frame = in_own_units(loss, params)
    >>> round(float(optax.tree.norm(coordinates)), 3)
    1.0
    >>> bool(scaled(coordinates, frame, 2.0) == loss(params, 2.0))
    True
  """
  paths, leaves, _ = selected_kernels(params, where)
  chosen: dict[str, jax.Array] = {
    path: leaf
    for path, leaf in zip(paths, leaves, strict=True)
    if path is not None
  }
  norms: dict[str, Any] = {
    path: jnp.sqrt(jnp.sum(leaf * leaf)) for path, leaf in chosen.items()
  }
  coordinates = {path: leaf / norms[path] for path, leaf in chosen.items()}
  return _scaled(loss), coordinates, (params, norms)


@functools.cache
def _scaled(loss):
  def scaled(coordinates, frame, *args):
    params, norms = frame
    chosen = lambda path, _: path in coordinates
    paths, leaves, treedef = selected_kernels(params, chosen)
    leaves = [
      leaf if path is None else coordinates[path] * norms[path]
      for path, leaf in zip(paths, leaves, strict=True)
    ]
    return loss(jax.tree.unflatten(treedef, leaves), *args)

  return scaled


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(loss, params, args):
  return jax.value_and_grad(loss)(params, *args)


@functools.partial(jax.jit, static_argnums=0)
def _iterate(loss, params, vector, shift, args):
  """One step on H - shift: the next vector; eigenvalue and residual of now."""
  unit = optax.tree.scale(1 / optax.tree.norm(vector), vector)

  # Reverse mode twice: a layer with a backward pass of its own, as our norms
  # have, knows no forward mode.
  def slope(params):
    return optax.tree.vdot(jax.grad(loss)(params, *args), unit)

  product = jax.grad(slope)(params)
  eigenvalue = jnp.asarray(optax.tree.vdot(unit, product))
  rest = optax.tree.add_scale(product, -eigenvalue, unit)
  following = optax.tree.add_scale(product, -shift, unit)
  return following, eigenvalue, optax.tree.norm(rest)
