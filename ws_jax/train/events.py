"""TensorBoard's event files, without TensorFlow."""

import importlib
import pathlib
import sys
import time
import types
from collections.abc import Mapping
from typing import Any


class Events:
  """Writes scalars for TensorBoard.

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
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    self._event, self._summary = protos.Event, summaries.Summary
    self._file = EventFileWriter(str(workdir))
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
    """Writes what is left, and closes the file."""
    self._file.close()

  def _add(self, step: int, **content) -> None:
    self._file.add_event(
      self._event(step=step, wall_time=time.time(), **content)
    )
