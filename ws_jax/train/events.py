"""TensorBoard's event files, without TensorFlow."""

import importlib
import itertools
import os
import pathlib
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from ws_jax.base import disk

_PREFIX = "events.out.tfevents."
# Files that one process begins within a second need names of their own.
_numbers = itertools.count()


class Events:
  """Writes scalars for TensorBoard.

  An event is in the file when `write` returns: TensorBoard's own writer keeps
  some for two minutes, and those would be lost if the process were killed.

  Args:
    workdir: Folder of the run.
    step: Step that the run goes on from. TensorBoard then drops what an earlier
      attempt wrote of later steps; without being told, it draws both.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    # Where TensorFlow is installed, TensorBoard would import it to open a file:
    # that takes seconds, and prints. A module of this name tells it not to.
    name = "tensorboard.compat.notf"
    sys.modules.setdefault(name, types.ModuleType(name))
    # What protobuf makes has no types that a checker could read.
    folder = "tensorboard.compat.proto"
    protos: Any = importlib.import_module(f"{folder}.event_pb2")
    summaries: Any = importlib.import_module(f"{folder}.summary_pb2")
    from tensorboard.summary.writer.record_writer import RecordWriter

    self._event, self._summary = protos.Event, summaries.Summary
    self._begins = protos.SessionLog(status=protos.SessionLog.START)
    self._writer, self._workdir = RecordWriter, workdir
    self._open(_path(workdir).open("xb"), step + 1)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds a value of each metric."""
    # `simple_value`, because EventAccumulator drops nothing of a tensor.
    values = [
      self._summary.Value(tag=name, simple_value=value)
      for name, value in metrics.items()
    ]
    self._add(step, summary=self._summary(value=values))

  def thin(self, stays: Callable[[int, list[str]], bool]) -> None:
    """Puts one file with the events that stay into the place of all files.

    Args:
      stays: Function of the step of an event and the names of its metrics.
    """
    self._file.close()
    old = sorted(self._workdir.glob(f"{_PREFIX}*"))
    drawn = self._drawn(old, stays)
    path = _path(self._workdir)
    with disk.whole(path) as file:
      self._open(file, 0)  # from step 0 on it takes the place of the others
      for _, record in drawn:
        self._records.write(record)
    self._file = path.open("ab")
    self._records = self._writer(self._file)
    for path in old:
      path.unlink(missing_ok=True)

  def _drawn(
    self, paths: list[pathlib.Path], stays: Callable[[int, list[str]], bool]
  ) -> list[tuple[int, bytes]]:
    """Returns steps and bytes of the events that TensorBoard draws, and stay.

    A session that begins at a step takes the place of what was there from it
    on.
    """
    drawn: list[tuple[int, bytes]] = []
    for path in paths:
      for record in _records(path):
        try:
          event = self._event.FromString(record)
        except Exception:  # what protobuf raises for bytes that are damaged
          continue
        if event.HasField("session_log"):
          while drawn and drawn[-1][0] >= event.step:
            drawn.pop()
        elif stays(event.step, names := [x.tag for x in event.summary.value]):
          drawn += [(event.step, record)] if names else []
    return drawn

  def _open(self, file: IO[bytes], step: int) -> None:
    """Begins a file of a session that has its first event at `step`."""
    self._file, self._records = file, self._writer(file)
    self._add(0, file_version="brain.Event:2")
    self._add(step, session_log=self._begins)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _add(self, step: int, **content) -> None:
    event = self._event(step=step, wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())
    self._file.flush()


def _path(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the path of a file that comes after all others of the folder."""
  now, host, pid = time.time(), socket.gethostname(), os.getpid()
  return workdir / f"{_PREFIX}{int(now):010}.{host}.{pid}.{next(_numbers):06}"


def _records(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a file, up to one that a crash has cut.

  Each is its length in 8 bytes, a checksum in 4, its bytes and 4 more.
  """
  left = path.stat().st_size
  with path.open("rb") as file:
    while len(head := file.read(12)) == 12:
      size = int.from_bytes(head[:8], "little")
      left -= 16 + size
      if left < 0:
        return
      yield file.read(size + 4)[:-4]
