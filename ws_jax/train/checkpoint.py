"""Checkpoints of a training state: orbax, and the only file that knows it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Checkpoints:
  """The newest few states of a run, under one folder.

  Writing is asynchronous and atomic: a folder named after its step appears
  when everything in it is on disk, and never before.

  Args:
    folder: where they lie; made when the first is written.
    keep: how many to keep, the newest. 0 turns writing and reading off.
  """

  def __init__(self, folder: pathlib.Path, *, keep: int):
    self._checkpointer = None
    if keep:
      from orbax.checkpoint import v1 as ocp

      # Its own policies do not fit its own annotations.
      training: Any = ocp.training
      every_step = training.save_decision_policies.FixedIntervalPolicy(1)
      self._checkpointer = training.Checkpointer(
        str(folder.absolute()),
        save_decision_policy=every_step,
        preservation_policy=training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
      )

  def latest(self) -> int | None:
    """The newest step on disk, or None."""
    found = self._checkpointer and self._checkpointer.latest
    return found.step if found else None

  def save(self, step: int, state: PyTree) -> None:
    """Starts to write `state` as `step`; returns once it may be changed."""
    if self._checkpointer and self.latest() != step:
      # A copy, since the caller donates its buffers to the next step while
      # the writer, which on a CPU shares them, is still at work.
      self._checkpointer.save_async(step, _copy(state))

  def load(self, step: int, like: PyTree) -> PyTree:
    """The state written as `step`, with the shapes and shardings of `like`."""
    assert self._checkpointer is not None
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      like,
    )
    return self._checkpointer.load(step, abstract)

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._checkpointer:
      self._checkpointer.close()
      self._checkpointer = None
