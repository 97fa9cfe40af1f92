"""The rows that a run logs, of which there may be a million."""

import json
import random
import resource
import time

import pytest
from tensorboard.backend.event_processing import event_accumulator

from ws_jax.train import history

ROW = {f"train/{name}": 0.123456789 for name in ("loss", "accuracy", "rate")}


def log(folder, start, stop, keep, seed=None, every=2):
  """Logs the rows of some steps, with an evaluation each 7 rows."""
  writer = history.MetricWriter(folder, start, keep=keep, every=every)
  for step in range(start + 1, stop + 1):
    if step % every == 0:
      writer.write(step, {"train/loss": step / 2})
    if step % (7 * every) == 0:
      writer.write(step, {"eval/loss": step / 4})
  writer.close()


def drawn(folder):
  events = event_accumulator.EventAccumulator(
    str(folder), size_guidance={event_accumulator.SCALARS: 0}
  )
  events.Reload()
  tags = events.Tags()["scalars"]
  return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in tags}


def steps_of(folder, kind):
  rows = history.read_metrics(folder)
  return [row["step"] for row in rows if f"{kind}/loss" in row]


def test_older_rows_are_thinned_out_and_evaluations_stay(tmp_path):
  log(tmp_path, 0, 2 * 100, keep=8)
  kept = steps_of(tmp_path, "train")
  # 96 rows are 12 times 8: of these each 16th, and those of since then.
  assert kept == [*range(32, 193, 32), *range(194, 201, 2)]
  assert steps_of(tmp_path, "eval") == list(range(14, 201, 14))
  events = drawn(tmp_path)
  assert events["train/loss"] == [(step, step / 2) for step in kept]
  assert [step for step, _ in events["eval/loss"]] == list(range(14, 201, 14))
  assert len(list(tmp_path.glob("events.out.*"))) == 1


@pytest.mark.parametrize("keep", [2, 5, 32])
def test_there_are_never_more_than_twice_as_many_rows(tmp_path, keep):
  sizes = []
  for rows in range(10 * keep + 1):
    apart = history.spacing(rows // keep * keep, keep) if rows >= keep else 1
    thinned = rows // keep * keep
    sizes.append(thinned // apart + rows - thinned + 1)
  assert max(sizes) <= 2 * keep


def test_a_run_that_is_killed_leaves_the_rows_of_one_that_was_not(tmp_path):
  rng, whole = random.Random(0), tmp_path / "whole"
  whole.mkdir()
  log(whole, 0, 150, keep=4)
  for number in range(5):
    folder = tmp_path / str(number)
    folder.mkdir()
    saved = 0
    while saved < 150:
      reached = min(150, saved + rng.randint(1, 60))
      log(folder, saved, reached, keep=4)
      with (folder / history.NAME).open("ab") as file:
        file.write(b'{"step": 151, "train/lo'[: rng.randint(0, 20)])
      saved = reached if reached == 150 else rng.randint(saved, reached)
    history.cut(folder / history.NAME, 150)
    text = (folder / history.NAME).read_text()
    assert text == (whole / history.NAME).read_text()
    assert drawn(folder) == drawn(whole)


def test_a_cut_leaves_whole_lines_up_to_a_step(tmp_path):
  path = tmp_path / history.NAME
  lines = [json.dumps({"step": i, "train/loss": i}) for i in (1, 2, 2, 3)]
  for text, step, expected in [
    ("\n".join(lines) + "\n", 2, lines[:3]),
    ("\n".join(lines), 9, lines),
    ("\n".join(lines[:2]) + '\n{"step": 3, "tr', 9, lines[:2]),
    ("\n".join(lines), 0, []),
    ("\0" * 5000, 9, []),
    ("", 9, []),
  ]:
    path.write_text(text)
    history.cut(path, step)
    assert path.read_text() == "".join(f"{line}\n" for line in expected)
  path.unlink()
  history.cut(path, 3)
  assert not path.exists()


def test_the_newest_metrics_are_found_over_borders_of_blocks(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(history, "_BLOCK", 7)
  log(tmp_path, 0, 40, keep=None)
  metrics = {"train/loss": 20.0, "eval/loss": 7.0}
  assert history.newest(tmp_path) == (metrics, 28)
  lines = (tmp_path / history.NAME).read_bytes().splitlines(keepends=True)
  with (tmp_path / history.NAME).open("rb") as file:
    found = list(history._backwards(file))
  assert [line for _, line in found] == lines[::-1]
  assert [at for at, _ in found][-2:] == [len(lines[0]), 0]


@pytest.mark.slow
def test_a_run_of_a_million_rows_goes_on_within_seconds(tmp_path):
  """It took a minute and 1.7 GB: each row was read, parsed and written."""
  with (tmp_path / history.NAME).open("w") as file:
    file.writelines(
      json.dumps({"step": step, **ROW}) + "\n" for step in range(1_000_000)
    )
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  begun = time.monotonic()
  writer = history.MetricWriter(tmp_path, 999_000)
  found = history.newest(tmp_path)
  writer.close()
  assert time.monotonic() - begun < 5
  assert found == (ROW, None)
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert used < 100_000  # KiB
