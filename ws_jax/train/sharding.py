"""Where the arrays of a run lie: a mesh of devices, and who holds which part.

The mesh has two axes. The examples of a batch are split over `data`. The
devices along `model` work on the same examples: each holds a part of every
kernel, and the compiler splits the convolutions accordingly.

Parameters and optimizer state may be split over `data` as well
(`mesh.params=sharded`): every device then stores and updates its own part, and
a step gathers each kernel where it is used, in the forward pass and again in
the backward pass (ZeRO stage 3: Rajbhandari et al., 2019, arXiv:1910.02054).
Weight Standardization works on the parts: a fan-in that is split costs a sum of
two numbers per filter.

What is split is decided by shapes alone, in `spec`. A run on one device goes
through none of this.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any

_GATHERED = "gathered"


def make_mesh(model: int = 1) -> Mesh:
  """Returns all devices, of all processes, as a mesh `data` x `model`.

  Args:
    model: Number of devices that split each kernel; the rest split the batch.

  Raises:
    ValueError: that number does not divide the devices.
  """
  devices = np.array(jax.devices())
  if devices.size % model:
    raise ValueError(
      f"mesh.model={model} does not divide the {devices.size} devices"
    )
  return Mesh(devices.reshape(-1, model), ("data", "model"))


def spec(shape: tuple[int, ...], mesh: Mesh, *, sharded: bool) -> PartitionSpec:
  """Returns how a parameter, or an array of the optimizer, is split.

  Each axis of the mesh takes the largest dimension that it divides and that is
  still whole, of equal ones the last: of a convolution mostly the outputs.
  Vectors and scalars (scales, biases, running statistics) stay whole.

  Args:
    shape: Shape of the array.
    mesh: Devices.
    sharded: Whether it is split over `data` as well.

  Example:
    >>> mesh = jax.sharding.AbstractMesh((2, 2), ("data", "model"))
    >>> spec((3, 3, 64, 128), mesh, sharded=True)
    P(None, None, 'data', 'model')
    >>> spec((128,), mesh, sharded=True)
    P()
  """
  if len(shape) < 2:
    return PartitionSpec()
  places: list[str | None] = [None] * len(shape)
  for axis in ("model", *(("data",) if sharded else ())):
    parts = mesh.shape.get(axis, 1)
    free = [
      i
      for i, size in enumerate(shape)
      if places[i] is None and size and size % parts == 0
    ]
    if parts > 1 and free:
      places[max(free, key=lambda i: (shape[i], i))] = axis
  return PartitionSpec(*places)


def place_of(
  shape: tuple[int, ...], mesh: Mesh, *, sharded: bool
) -> NamedSharding:
  """Returns the sharding of an array that is split as `spec` says."""
  return NamedSharding(mesh, spec(shape, mesh, sharded=sharded))


def whole(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds as a whole."""
  return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Returns the sharding of an array whose examples are along `axis`."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def split(tree: PyTree, mesh: Mesh, *, sharded: bool) -> PyTree:
  """Says inside a compiled program that arrays lie in their parts.

  Args:
    tree: Parameters, gradients or optimizer state.
    mesh: Devices.
    sharded: Whether they are split over `data`.
  """
  if not (sharded or mesh.shape.get("model", 1) > 1) or mesh.size == 1:
    return tree
  return jax.tree.map(lambda x: _constrain(x, mesh, sharded), tree)


def gather(tree: PyTree, mesh: Mesh, *, sharded: bool) -> PyTree:
  """Returns parameters as a step uses them: no longer split over `data`."""
  if not sharded or mesh.size == 1:
    return tree
  gathered = jax.tree.map(lambda x: _constrain(x, mesh, False), tree)
  return checkpoint_name(gathered, _GATHERED)


def gathers_again(function: Any, mesh: Mesh) -> Any:
  """Returns a function whose backward pass gathers parameters a second time.

  Otherwise the gathered ones of all layers stay in memory in between. (XLA's
  compiler for CPUs makes one gathering of the two, and keeps them anyway.)
  """
  if mesh.size == 1:
    return function
  but = jax.checkpoint_policies.save_anything_except_these_names
  return jax.checkpoint(function, policy=but(_GATHERED))


def bytes_on_a_device(tree: PyTree) -> int:
  """Returns the bytes of a tree of arrays that one device holds."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _constrain(x: jax.Array, mesh: Mesh, sharded: bool) -> jax.Array:
  place = place_of(x.shape, mesh, sharded=sharded)
  return jax.lax.with_sharding_constraint(x, place)
