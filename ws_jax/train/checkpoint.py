"""Checkpoints of a training state, written by orbax.

A checkpoint is a folder named after its step, with the checksums of its files.
It takes its name when all of it is on the disk, and loses it before it is
deleted: whenever the process is killed, a folder with such a name is whole.
"""

import contextlib
import dataclasses
import errno
import logging
import pathlib
import shutil
import threading
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ws_jax.train import processes
from ws_jax.weights import steps

PyTree = Any

# In the name of what is not whole yet, or not whole any more.
_DRAFT = ".draft"
# What older versions, and orbax itself, have in such a name.
_DRAFTS = (_DRAFT, ".orbax-checkpoint-tmp")

_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def newest_step(workdir: pathlib.Path) -> int:
  """Returns the step that a run would go on from.

  It is 0 without a checkpoint, and -1 where none is whole.
  """
  found = steps.steps(workdir)
  for folder in found:
    with contextlib.suppress(ValueError):
      steps.check(folder)
      return int(folder.name)
  return -1 if found else 0


class Checkpoints:
  """The newest few states of a run, under one folder.

  Writing is asynchronous; an error of it is raised by the next call of `save`
  or `close`.

  Args:
    folder: Folder of all of them; made when the first is written.
    keep: Number of checkpoints to keep, the newest; 0 turns writing and
      reading off.
    config: Configuration of the run, as in its `config.json`.
    may_change: Dotted keys of it that say nothing of which run it is.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    keep: int,
    config: Mapping[str, Any] | None = None,
    may_change: Collection[str] = (),
  ):
    self._folder, self._keep = folder.absolute(), keep
    self._about = (config, may_change)
    self._makes_parents = not folder.parent.is_dir()
    self._thread: threading.Thread | None = None
    self._error: Exception | None = None
    self._known: int | None = None  # the step that was read or written last
    if keep and folder.is_dir() and processes.first():
      _clean(self._folder)

  @property
  def folder(self) -> pathlib.Path:
    """Folder of all of them."""
    return self._folder

  def latest(self) -> int | None:
    """Returns the newest step on disk, or None."""
    found = steps.steps(self._folder) if self._keep else []
    return int(found[0].name) if found else None

  def save(self, step: int, state: PyTree) -> None:
    """Starts to write `state` as `step`; returns once it may be changed.

    Raises:
      OSError: this or the one before could not be written, as on a full disk.
    """
    if not self._keep:
      return
    self._wait()
    if step == self._known:
      return
    self._known = step
    from orbax.checkpoint import v1 as ocp

    _silence()
    draft = self._folder / f"{step}{_DRAFT}"
    try:
      if processes.first():  # orbax would make a workdir anew that is gone
        self._folder.mkdir(exist_ok=True, parents=self._makes_parents)
      # A copy, since the caller donates its buffers to the next step while
      # the writer, which on a CPU shares them, is still at work.
      written = ocp.save_async(str(draft), _copy(state))
    except Exception as error:
      raise self._failed(step, error) from error
    self._thread = threading.Thread(
      target=self._finish, args=(step, draft, written), name="checkpoint"
    )
    self._thread.start()

  def _finish(self, step: int, draft: pathlib.Path, written: Any) -> None:
    """Waits for orbax, seals what it wrote, and drops what is too old."""
    try:
      written.result()  # in every process: it is whole when all have written
      if processes.first():
        steps.seal(draft, step, *self._about)
        draft.rename(self._folder / str(step))
        for old in steps.steps(self._folder)[self._keep :]:
          _remove(old)
    except Exception as error:
      self._error = self._failed(step, error)

  def _failed(self, step: int, error: Exception) -> Exception:
    """Frees the place of a draft; returns an error that names what is lost."""
    if processes.first():
      _clean(self._folder)
    gone = (TimeoutError, jax.errors.JaxRuntimeError)
    if processes.several() and isinstance(error, gone):
      # Orbax waited for a process that is gone: that is no fault of the disk.
      return jax.errors.JaxRuntimeError(str(error))
    path, said = self._folder / str(step), " ".join(str(error).split())
    return OSError(errno.EIO, f"checkpoint not written: {said}", str(path))

  def _wait(self) -> None:
    if self._thread:
      self._thread.join()
      self._thread = None
    error, self._error = self._error, None
    if error:
      raise error

  def newest(self, fresh: PyTree) -> tuple[PyTree, int]:
    """Returns the newest state on disk that is whole, and its step.

    A line on stderr names each that is broken; it is moved out of the way, and
    stays as `STEP.damaged`.

    Args:
      fresh: State of the same shapes; it is returned, with 0, if none is on
        disk.

    Raises:
      ValueError: none on disk is whole.
    """
    if not self._keep:
      return fresh, 0
    if processes.several():
      folder = self._choose()
      state = fresh if folder is None else _load(folder, fresh)
    elif self.latest() is None:
      state, folder = fresh, None
    else:
      read = lambda folder: _load(folder, fresh)
      try:
        state, folder, broken = steps.read_newest(self._folder, read)
      except ValueError as error:
        raise self._none(str(error)) from error
      _set_aside(broken)
    self._known = None if folder is None else int(folder.name)
    return state, self._known or 0

  def _choose(self) -> pathlib.Path | None:
    """Returns the newest whole checkpoint, the same to all processes."""
    step, said = -1, "see what process 0 says"
    if processes.first() and self.latest() is not None:
      try:
        _, folder, broken = steps.read_newest(self._folder, lambda _: None)
        _set_aside(broken)
        step = int(folder.name)
      except ValueError as error:
        step, said = -2, str(error)
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == -2:
      raise self._none(said)
    return None if step < 0 else self._folder / str(step)

  def _none(self, said: str) -> ValueError:
    return ValueError(
      f"no checkpoint in {self._folder} can be used: {said}. Delete that folder"
      " to start from the beginning, or give another --workdir"
    )

  def load(self, step: int, like: PyTree) -> PyTree:
    """Returns the state written as `step`.

    Args:
      step: Step of the checkpoint.
      like: State of the same shapes and shardings. Fields that an older version
        of ws_jax did not write keep their values of it.
    """
    return _load(self._folder / str(step), like)

  def abandon(self) -> None:
    """Gives up what is not on disk yet, without a wait."""
    self._keep, self._thread, self._error = 0, None, None

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      OSError: the last one could not be written.
    """
    self._wait()


def _load(folder: pathlib.Path, like: PyTree) -> PyTree:
  from orbax.checkpoint import v1 as ocp

  load: Any = ocp.load  # its annotations allow no tree
  if not dataclasses.is_dataclass(like):
    return load(str(folder), _abstract(like))
  stored: Any = ocp.metadata(str(folder)).metadata
  fields = [field.name for field in dataclasses.fields(like)]
  known = {name: getattr(like, name) for name in fields if name in stored}
  loaded = load(str(folder), _abstract(known))
  return dataclasses.replace(like, **loaded)


def _remove(folder: pathlib.Path) -> None:
  """Deletes a checkpoint; it loses its name first."""
  draft = folder.with_name(f"{folder.name}.old{_DRAFT}")
  folder.rename(draft)
  shutil.rmtree(draft, ignore_errors=True)


def _clean(folder: pathlib.Path) -> None:
  """Deletes what earlier processes have left unfinished."""
  for path in folder.glob("*"):
    if path.name[:1].isdecimal() and any(x in path.name for x in _DRAFTS):
      shutil.rmtree(path, ignore_errors=True)


def _set_aside(broken: list[pathlib.Path]) -> None:
  """Takes the names of broken checkpoints, as the run will need them."""
  for folder in broken:
    if folder.exists():
      aside = folder.with_name(f"{folder.name}.damaged")
      shutil.rmtree(aside, ignore_errors=True)
      folder.rename(aside)


def _silence() -> None:
  """Drops what orbax's threads say of an error, which is raised as well."""
  steps.hush_threads()
  logger = logging.getLogger("absl")
  if _of_orbax not in logger.filters:
    logger.addFilter(_of_orbax)


def _of_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in record.pathname or not record.exc_info
