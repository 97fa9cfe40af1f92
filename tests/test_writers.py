import os
import pty
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing import event_accumulator

from ws_jax.base import disk
from ws_jax.train import progress, record
from ws_jax.train.clock import Clock

CONFIG = {"train": {"steps": 4, "log_every_steps": 1}, "seed": 0}


def make_run(folder, config=CONFIG, cadence=()):
  return record.Run(
    folder,
    config,
    cadence=cadence,
    about={"device": "x"},
    clock=Clock(),
  )


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "status.json"
  disk.write_json(path, {"step": 1})
  broken = {}
  broken["self"] = broken
  with pytest.raises(ValueError, match="Circular"):
    disk.write_json(path, broken)
  assert disk.read_json(path) == {"step": 1}
  assert disk.read_json(tmp_path / "other.json") is None


def test_rows_go_to_both_places_and_later_ones_are_dropped(tmp_path):
  first = record.MetricWriter(tmp_path, 0)
  for step in (1, 2, 3):
    first.write(step, {"train/loss": 1.0 / step})
  first.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "train/lo')  # cut off by a crash
  second = record.MetricWriter(tmp_path, 2)
  second.write(3, {"train/loss": 0.5})
  second.close()
  assert record.read_metrics(tmp_path) == [
    {"step": 1, "train/loss": 1.0},
    {"step": 2, "train/loss": 0.5},
    {"step": 3, "train/loss": 0.5},
  ]
  events = event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  assert "train/loss" in {
    *events.Tags()["tensors"],
    *events.Tags()["scalars"],
  }


def test_a_run_continues_its_seconds_and_metrics(tmp_path):
  run = make_run(tmp_path)
  run.start(0)
  run.clock.seconds["train"] = 5.0
  run.advance(2)
  run.write({"train/loss": 0.5})
  run.status("interrupted", 2, "received SIGTERM")
  run.close()
  again = make_run(tmp_path)
  again.start(2)
  assert again.clock.seconds["train"] == 5.0
  assert again.metrics == {"train/loss": 0.5}
  again.close()


def test_only_the_cadence_may_change(tmp_path):
  make_run(tmp_path).close()
  changed = {"train": {"steps": 4, "log_every_steps": 2}, "seed": 0}
  with pytest.raises(ValueError, match=r"train.log_every_steps was 1, is 2\."):
    make_run(tmp_path, changed)
  make_run(tmp_path, changed, cadence=("train.log_every_steps",)).close()


def test_plain_lines_where_there_is_no_terminal(capsys):
  bar = progress.Progress(2, 0, "name")
  bar.update(1, None)
  bar.update(2, {"train/loss": 0.5})
  bar.close()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("name step 2/2 ")
  assert line.endswith("train/loss=0.5")


def test_a_bar_on_a_terminal():
  code = (
    "from ws_jax.train import progress\n"
    "p = progress.Progress(40, 0, 'name')\n"
    "p.update(10, {'train/loss': 0.5})\n"
    "p._bar.refresh(); p.close()"
  )
  ours, theirs = pty.openpty()
  with subprocess.Popen(
    [sys.executable, "-c", code], stderr=theirs, stdout=theirs
  ) as process:
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
      shown += chunk
  os.close(ours)
  assert process.returncode == 0, shown
  assert b"10/40" in shown
  assert b"steps/s" in shown


def _read(descriptor):
  try:
    return os.read(descriptor, 4096)
  except OSError:  # how a pseudo-terminal says that its other end is closed
    return b""
