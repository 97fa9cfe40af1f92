"""Puts arrays of host memory onto the devices of a mesh.

A mesh may span several processes. Each of them then calls `put` with the same
array, and feeds the parts that lie on its own devices; nothing is sent.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

PyTree = Any


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
  """Returns arrays on the devices of a sharding.

  Args:
    tree: Arrays in host memory, whole and the same in every process.
    sharding: Devices, and the part of each array that each of them holds.

  Example:
    >>> mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    >>> by_example = NamedSharding(mesh, jax.P("data"))
    >>> put({"label": np.arange(3)}, by_example)["label"].tolist()
    [0, 1, 2]
  """
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def feed(array):
    array = np.asarray(array)
    part = lambda index: array[index]
    return jax.make_array_from_callback(array.shape, sharding, part)

  return jax.tree.map(feed, tree)
