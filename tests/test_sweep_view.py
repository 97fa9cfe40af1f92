"""Checks the display of a sweep, with and without a terminal."""

import io
import re

import pytest
import rich.console

from ws_jax.sweep import grid, view, workers


@pytest.fixture
def clock(monkeypatch):
  """Returns a clock that stands still until it is set: `clock[0] = seconds`."""
  now = [100.0]
  monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
  return now


def plan():
  arms = [{"model.norm": "batch"}, {"model.norm": "group"}]
  return grid.plan(grid.product(arms, seed=range(2)))


def row(status):
  return {"status": status, "step": 3, "reason": "inf", "eval/accuracy": 0.5}


def play(shown, clock):
  """Ends two runs of one program, after 10 and 30 s, and begins another."""
  runs = plan()
  shown.update(0, runs[0], None)
  clock[0] += 10
  shown.update(0, runs[0], row("done"))
  shown.update(0, runs[1], None)
  shown.update(1, runs[2], None)
  clock[0] += 30
  shown.update(0, runs[1], row("diverged"))


def test_time_left_is_that_of_the_runs_of_each_program(tmp_path, clock, capsys):
  shown = view.View(plan(), tmp_path, 2)
  assert shown.seconds_left() is None
  play(shown, clock)
  # The second program is taken to need 20 s a run, as the first one does. Its
  # run under way has had that time; the other one is still to come.
  assert shown.seconds_left() == (0 + 20) / 2
  clock[0] += 15  # 45 s after it began
  shown.update(1, plan()[2], row("done"))
  assert shown.seconds_left() == 45 / 2


def test_without_a_terminal_there_are_plain_lines(tmp_path, clock, capsys):
  with view.View(plan(), tmp_path, 2) as shown:
    play(shown, clock)
  assert capsys.readouterr().out.splitlines() == [
    "[0/4] worker 0: norm=batch,seed=0: begins",
    "[1/4] worker 0: norm=batch,seed=0: done, eval/accuracy 0.5000, 0 s",
    "[1/4] worker 0: norm=batch,seed=1: begins",
    "[1/4] worker 1: norm=group,seed=0: begins",
    "[2/4] worker 0: norm=batch,seed=1: diverged at step 3, 0 s: inf",
  ]


def test_terminal_shows_programs_workers_and_the_time_left(tmp_path, clock):
  workers.log_of(tmp_path, 1).write_text(
    "norm=group,seed=0 step 1/9\nnorm=group,seed=0 step 4/9 2 steps/s\nW: odd\n"
  )
  screen = io.StringIO()
  console = rich.console.Console(
    file=screen, force_terminal=True, width=100, color_system=None
  )
  with view.View(plan(), tmp_path, 2, console) as shown:
    play(shown, clock)
    console.print(shown.table())
  shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
  words = [line.split() for line in shown.splitlines()]
  titles = ["program", "runs", "running", "done", "diverged", "failed"]
  assert [*titles, "interrupted"] in words
  assert ["norm=batch", "2", "1", "1"] in words  # runs, done, diverged
  assert ["norm=group", "2", "1"] in words  # runs, running
  assert "worker 1: norm=group,seed=0 step 4/9 2 steps/s".split() in words
  assert "2 of 4 runs ended, 0:00:40 gone, about 0:00:10 left".split() in words
  ended = "[1/4] worker 0: norm=batch,seed=0: done, eval/accuracy 0.5000, 0 s"
  assert shown.count(ended) == 1  # above the table, once
