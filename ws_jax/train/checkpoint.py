"""Checkpoints of a training state, written by orbax."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

# Name of the folder of the checkpoints in that of a run.
FOLDER = "checkpoints"

_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def newest_step(workdir: pathlib.Path) -> int:
  """Returns the step that a run would go on from; 0 without a checkpoint."""
  folders = (workdir / FOLDER).glob("[0-9]*")
  return max((int(x.name) for x in folders if x.name.isdecimal()), default=0)


class Checkpoints:
  """The newest few states of a run, under one folder.

  Writing is asynchronous and atomic: a folder named after its step appears
  when everything in it is on disk, and never before.

  Args:
    folder: Folder of all of them; made when the first is written.
    keep: Number of checkpoints to keep, the newest; 0 turns writing and
      reading off.
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
    """Returns the newest step on disk, or None."""
    newest = self._checkpointer and self._checkpointer.latest
    return newest.step if newest else None

  def save(self, step: int, state: PyTree) -> None:
    """Starts to write `state` as `step`; returns once it may be changed."""
    if self._checkpointer and self.latest() != step:
      # A copy, since the caller donates its buffers to the next step while
      # the writer, which on a CPU shares them, is still at work.
      self._checkpointer.save_async(step, _copy(state))

  def newest(self, fresh: PyTree) -> tuple[PyTree, int]:
    """Returns the newest state on disk and its step, or `fresh` and 0."""
    step = self.latest()
    return (fresh, 0) if step is None else (self.load(step, fresh), step)

  def load(self, step: int, like: PyTree) -> PyTree:
    """Returns the state written as `step`.

    Args:
      step: Step of the checkpoint.
      like: State of the same shapes and shardings. Fields that an older version
        of ws_jax did not write keep their values of it.
    """
    assert self._checkpointer is not None
    if not dataclasses.is_dataclass(like):
      return self._checkpointer.load(step, _abstract(like))
    stored: Any = self._checkpointer.metadata(step).metadata
    fields = [field.name for field in dataclasses.fields(like)]
    known = {name: getattr(like, name) for name in fields if name in stored}
    loaded = self._checkpointer.load(step, _abstract(known))
    return dataclasses.replace(like, **loaded)

  def abandon(self) -> None:
    """Gives up what is not on disk yet, without a wait."""
    self._checkpointer = None

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._checkpointer:
      self._checkpointer.close()
      self._checkpointer = None
