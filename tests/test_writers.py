import errno
import json
import math
import os
import pty
import subprocess
import sys
import threading

import pytest
from tensorboard.backend.event_processing import event_accumulator

from ws_jax import config
from ws_jax.base import disk
from ws_jax.train import progress, record
from ws_jax.train.clock import Clock


def resolved(**overrides):
  settings = {"train.steps": 4, "train.log_every_steps": 1}
  settings |= {k.replace("__", "."): x for k, x in overrides.items()}
  c = config.apply(config.default(), settings)
  return config.resolve(c, num_examples=1000, num_devices=1)


def make_run(folder, may_change=(), **overrides):
  return record.Run(
    folder,
    resolved(**overrides),
    may_change=may_change,
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


def test_only_what_does_not_affect_results_may_change(tmp_path):
  make_run(tmp_path).close()
  changed = {"train__log_every_steps": 2}
  with pytest.raises(ValueError, match=r"train.log_every_steps was 1, is 2\."):
    make_run(tmp_path, **changed)
  make_run(tmp_path, ("train.log_every_steps",), **changed).close()


def test_a_key_that_an_older_version_did_not_have_is_at_its_default(tmp_path):
  make_run(tmp_path).close()
  old = disk.read_json(tmp_path / "config.json")
  old["optim"].pop("kwargs")
  old["data"]["crop_padding"] = old["task"].pop("crop_padding")  # its old name
  old.pop("init_from")
  disk.write_json(tmp_path / "config.json", old)
  make_run(tmp_path).close()
  with pytest.raises(ValueError, match=r"task.crop_padding was 2, is 1"):
    make_run(tmp_path, task__crop_padding=1)


@pytest.mark.parametrize("text", ["", '{"seed": 1', "[]", '{"model": 3}'])
def test_a_damaged_config_is_named_with_the_remedy(tmp_path, text):
  make_run(tmp_path).close()
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config\.json.*") as caught:
    make_run(tmp_path)
  assert "delete" in str(caught.value)


def test_a_damaged_status_is_made_anew(tmp_path):
  make_run(tmp_path).close()
  (tmp_path / "status.json").write_text("")
  run = make_run(tmp_path)
  run.start(0)
  run.close()
  assert disk.read_json(tmp_path / "status.json")["status"] == "running"


def test_a_finished_run_may_be_made_longer_and_no_other(tmp_path):
  run = make_run(tmp_path)
  run.start(0)
  run.close()
  with pytest.raises(ValueError, match="train.steps was 4, is 8"):
    make_run(tmp_path, train__steps=8)
  run.status("done")
  with pytest.raises(ValueError, match="train.steps was 4, is 2"):
    make_run(tmp_path, train__steps=2)
  with pytest.raises(ValueError, match="train.steps was 4, is 8"):
    make_run(tmp_path, train__steps=8)  # it has no checkpoint to go on from
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  make_run(tmp_path, train__steps=8).close()


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


def test_tensorboard_draws_no_step_twice_after_a_crash(tmp_path):
  """It drew a zigzag: the steps of the first attempt and those of the next."""
  for start, steps in ((0, (5, 10, 15, 20, 25)), (12, (15, 20, 25, 30))):
    writer = record.MetricWriter(tmp_path, start)
    for step in steps:
      writer.write(step, {"train/loss": 100 * start + step})
    writer.close()
  events = event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  drawn = [(event.step, event.value) for event in events.Scalars("train/loss")]
  first, second = [(5, 5), (10, 10)], [(n, 1200 + n) for n in (15, 20, 25, 30)]
  assert drawn == first + second


def test_json_is_strict_and_keeps_numbers_that_are_not_finite(tmp_path):
  row = {"step": 1, "loss": math.nan, "rates": (math.inf, -math.inf, 0.1)}
  refuse = lambda name: pytest.fail(f"{name} is no JSON")
  text = disk.to_json(row)
  json.loads(text, parse_constant=refuse)
  assert str(disk.from_json(text)) == str(row | {"rates": list(row["rates"])})
  writer = record.MetricWriter(tmp_path, 0)
  writer.write(1, {"train/loss": math.nan})
  writer.close()
  json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
  assert math.isnan(record.read_metrics(tmp_path)[0]["train/loss"])


def test_a_second_process_says_who_holds_the_run(tmp_path):
  """Two on one workdir ended in a traceback of orbax, or mixed their rows."""
  code = (
    "import pathlib, sys, time\n"
    "from ws_jax.base import disk\n"
    "with disk.locked(pathlib.Path(sys.argv[1])):\n"
    "  print('locked', flush=True); time.sleep(60)"
  )
  lock = tmp_path / ".lock"
  other = subprocess.Popen(
    [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE
  )
  with other:
    assert other.stdout and other.stdout.readline()
    with pytest.raises(ValueError, match=f"in use: process {other.pid} on "):
      make_run(tmp_path)
    assert not (tmp_path / "config.json").exists()
    other.kill()
  assert lock.exists()  # it is left, and holds nobody off
  make_run(tmp_path).close()
  assert not lock.exists()


def test_a_lock_that_is_let_go_of_is_free_to_all_who_wait(tmp_path):
  """Its file is deleted: one who waits for the old file must see the new."""
  lock, inside, most = tmp_path / "lock", [], []

  def work():
    for _ in range(20):
      with disk.locked(lock):
        inside.append(1)
        most.append(len(inside))
        inside.pop()

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] * 80


def test_a_failure_is_recorded_on_a_full_disk(tmp_path, monkeypatch):
  run = make_run(tmp_path)
  run.start(0)

  def full(path, content):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))

  monkeypatch.setattr(record, "write_json", full)
  run.status("failed", 3, "a full disk")
  run.close()
  status = disk.read_json(tmp_path / "status.json")
  assert (status["status"], status["reason"]) == ("failed", "a full disk")


def test_a_run_says_that_it_goes_on_where_other_bits_come_out(tmp_path, capsys):
  """The number of cores decides the order of sums: it was mixed in silence."""

  def begin(step, cores):
    run = make_run(tmp_path)
    run._about = {"cpu_count": cores, "versions": {"jax": "1"}}
    run.start(step)
    run.status("running")
    run.close()
    return disk.read_json(tmp_path / "status.json")

  begin(0, 2)
  assert "mixed" not in begin(0, 1)  # nothing was kept of the first
  assert "mixed" not in begin(1, 1)
  capsys.readouterr()
  mixed = ["CPU cores 1, now 2 (from step 2)"]
  assert begin(2, 2)["mixed"] == mixed
  assert f": {mixed[0]}: the bits are not" in capsys.readouterr().err
  assert begin(3, 2)["mixed"] == mixed
  ended = begin(4, 7)  # of 4: nothing is computed
  assert (ended["mixed"], ended["cpu_count"]) == (mixed, 2)


def test_one_damaged_row_takes_no_other_with_it(tmp_path):
  lines = [b'{"step": 1}', b'{"step": \xff}', b"[2]", b'{"step": 3}', b'{"ste']
  (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
  assert record.read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]


def test_rows_are_in_tensorboard_s_file_at_once(tmp_path):
  """Its own writer keeps rows for two minutes, which a kill would lose."""
  writer = record.MetricWriter(tmp_path, 0)
  writer.write(1, {"train/loss": 0.5})
  events = event_accumulator.EventAccumulator(str(tmp_path))
  events.Reload()
  assert [e.step for e in events.Scalars("train/loss")] == [1]
  writer.close()
