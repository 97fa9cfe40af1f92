"""TensorBoard's event files, without TensorFlow."""

import importlib
import itertools
import os
import pathlib
import socket
import sys
import time
import types
from collections.abc import Mapping
from typing import Any

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
    now, host, pid = time.time(), socket.gethostname(), os.getpid()
    name = f"events.out.tfevents.{int(now):010}.{host}.{pid}.{next(_numbers)}"
    self._file = (workdir / name).open("xb")
    self._records = RecordWriter(self._file)
    self._add(0, file_version="brain.Event:2")
    begins = protos.SessionLog(status=protos.SessionLog.START)
    self._add(step + 1, session_log=begins)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds a value of each metric."""
    # `simple_value`, because EventAccumulator drops nothing of a tensor.
    values = [
      self._summary.Value(tag=name, simple_value=value)
      for name, value in metrics.items()
    ]
    self._add(step, summary=self._summary(value=values))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _add(self, step: int, **content) -> None:
    event = self._event(step=step, wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())
    self._file.flush()
