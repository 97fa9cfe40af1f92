"""Several runs in one program, for devices that a small network leaves idle.

The runs of such a stack differ in what is data of the step and not a part of
its program: the learning rate, weight decay, momentum and seed. Every array of
the state has a leading axis, one entry for each run, and the step is mapped
over it by `jax.vmap`. The training set lies on the device once.

A convolution with a kernel for each run is a convolution in groups, which a
CPU computes slowly: `scripts/sweep.py --stack` is for accelerators.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ws_jax import config as config_lib
from ws_jax import native
from ws_jax.data import place
from ws_jax.data.memory import Arrays, MemorySource
from ws_jax.train import backend, sharding

PyTree = Any

# What a stack cannot do otherwise.
_NEEDS = {
  "data.source": "memory",
  "mesh.model": 1,
  "mesh.params": "replicated",
}


def over(
  function: Callable[..., PyTree],
  like: jax.Array,
  axes: tuple[int | None, ...],
) -> Callable[..., PyTree]:
  """Returns a function over the runs of a stack, or as it is for one run.

  Args:
    function: Function of one run.
    like: Scalar of the state, which has an axis if there are several runs.
    axes: The axis of the runs of each argument, None where they share it.
  """
  if not like.ndim:
    return function

  def mapped(*arguments):
    with native.portable():  # foreign code takes one run at a time
      return jax.vmap(function, axes)(*arguments)

  return mapped


def join(states: Sequence[PyTree], mesh: Mesh) -> PyTree:
  """Returns the states of several runs as one; of one run its own."""
  if len(states) == 1:
    return states[0]
  states = jax.device_get(list(states))
  joined = jax.tree.map(lambda *parts: np.stack(parts), *states)
  return place.put(joined, sharding.whole(mesh))


def parts(tree: PyTree, runs: int) -> list[PyTree]:
  """Returns what each of several runs has of a tree, in host memory.

  Of one run it is the tree itself, where it lies.

  Example:
    >>> parts({"loss": np.array([1.0, 2.0])}, runs=2)[1]["loss"].item()
    2.0
  """
  if runs == 1:
    return [tree]
  leaves, structure = jax.tree.flatten(jax.device_get(tree))
  each = zip(*leaves, strict=True) if leaves else [()] * runs
  return [structure.unflatten(one) for one in each]


class Sources:
  """The sources of several runs as one: the same data, other examples of them.

  Args:
    sources: Source of each run, in memory; they share the data.
  """

  def __init__(self, sources: Sequence[Any]):
    self._sources: list[MemorySource] = list(sources)

  def block(self, step: int, num_steps: int) -> tuple[Arrays, np.ndarray]:
    """Returns the arrays of `num_steps` steps, and the examples of each run.

    Returns:
      The arrays, on the device, and positions in them: int32
      [steps, runs, micro-batches, examples of each].
    """
    drawn = [source.indices(step, num_steps) for source in self._sources]
    return self._sources[0].arrays, np.stack(drawn, axis=1)

  def batches(self, size: int) -> Iterator[tuple[Arrays, Any, Any]]:
    """Yields the evaluation set, as `MemorySource.batches`."""
    yield from self._sources[0].batches(size)


def check(configs: Sequence[ml_collections.ConfigDict]) -> None:
  """Raises an error unless these runs can be one program.

  Args:
    configs: Configuration of each run, resolved.

  Raises:
    ValueError: there is no run, they differ in more than `TRACED`, or one that
      is trained alone is asked for.
  """
  if not configs:
    raise ValueError("a stack has at least one run, and none is given")
  first, *others = map(config_lib.flatten, configs)
  for other in others:
    for key in sorted(first | other):
      if key not in config_lib.TRACED and first.get(key) != other.get(key):
        raise ValueError(
          f"runs of a stack may differ in {', '.join(config_lib.TRACED)}; these"
          f" have {key}={first.get(key)!r} and {other.get(key)!r}"
        )
  if not others:
    return
  for key, needed in _NEEDS.items():
    if first[key] != needed:
      raise ValueError(
        f"{key}={first[key]} is for one run at a time: a stack needs"
        f" {key}={needed}, or --stack=1"
      )
  if jax.process_count() > 1:
    raise ValueError(
      f"a stack is of one process, and there are {jax.process_count()}: give"
      " each runs of its own (--workers), or --stack=1"
    )
  if flag := backend.debug_flag():
    raise ValueError(
      f"{flag.upper()} stops a whole stack at the first run that diverges:"
      " use --stack=1 with it"
    )
