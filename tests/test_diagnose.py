"""The diagnostics at the checkpoints of a sweep, and their command line."""

import pathlib
import subprocess
import sys

import pytest

from ws_jax import config
from ws_jax.base import disk
from ws_jax.diagnostics import checkpoints
from ws_jax.sweep import rows

ROOT = pathlib.Path(__file__).parents[1]

EXPERIMENT = """
CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.25,"
  "num_groups=2,batch_size=32,train.steps=2,checkpoint_every_steps=1,"
  "keep_checkpoints=2"
)


def sweep():
  yield {"model.norm": "batch", "model.ws": True}
"""


def run(*command, code=0):
  done = subprocess.run(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout if code == 0 else done.stderr


def test_steps_are_those_of_the_checkpoints_and_the_start(tmp_path):
  for name in ("9", "104", "13", "13.orbax-checkpoint-tmp"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert checkpoints.kept_steps(tmp_path) == [0, 9, 13, 104]


def test_a_run_that_kept_no_checkpoint_has_its_start(tmp_path):
  assert checkpoints.kept_steps(tmp_path) == [0]


def test_a_folder_that_is_no_run_is_named(tmp_path):
  with pytest.raises(ValueError, match=f"no config.json in {tmp_path}"):
    checkpoints.read_config(tmp_path)


def test_the_configuration_of_a_run_is_read_back(tmp_path):
  c = config.load("configs/resnet8_small.py:norm=batch,ws=false")
  disk.write_json(tmp_path / "config.json", c.to_dict())
  assert checkpoints.read_config(tmp_path).to_dict() == c.to_dict()


def test_a_line_for_each_arm_and_a_point_for_each_seed():
  names = ("own.loss_variation", "own.predictiveness", "own.beta")
  names += ("own.sharpness", "removed", "dead")
  table = [
    {"arm": arm, "seed": seed, "step": step} | dict.fromkeys(names, 1.0 + seed)
    for arm in ("BN", "GN+WS")
    for seed in (0, 1)
    for step in (0, 10)
  ]
  axes = checkpoints.draw(table).axes
  assert len(axes) == 6
  for ax in axes:
    means = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in means] == ["BN", "GN+WS"]
    assert [list(line.get_ydata()) for line in means] == [[1.5, 1.5]] * 2
    points = [line for line in ax.lines if line not in means]
    assert [list(line.get_ydata()) for line in points] == [[1.0, 2.0]] * 4


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--steps=0,last"], "'last' is no step"),
    (["--steps=9"], "no run kept a step of --steps; a kept 0"),
  ],
)
def test_a_mistake_is_one_line(flags, message, tmp_path):
  rows.write(tmp_path / "runs.csv", [{"run": "a", "status": "done"}])
  said = run("scripts/diagnose.py", tmp_path, *flags, code=1)
  assert said.startswith("error: ") and message in said
  assert len(said.splitlines()) == 1


def test_a_sweep_without_a_finished_run_is_named(tmp_path):
  said = run("scripts/diagnose.py", tmp_path / "none", code=1)
  assert said == f"error: no finished run in {tmp_path / 'none' / 'runs.csv'}\n"
  assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_every_checkpoint_is_measured_once(tmp_path):
  experiment = tmp_path / "tiny.py"
  experiment.write_text(EXPERIMENT)
  out = tmp_path / "out"
  run("scripts/sweep.py", f"--experiment={experiment}", f"--out={out}")
  look = ("scripts/diagnose.py", out, "--probe=64")
  run(*look, "--steps=0,1")
  first = rows.read(out / "diagnostics.csv")
  assert [row["step"] for row in first] == [0, 1]
  said = run(*look)
  table = rows.read(out / "diagnostics.csv")
  assert [row["step"] for row in table] == [0, 1, 2]
  assert table[:2] == first and said.count("loss") == 1
  assert (out / "diagnostics.png").stat().st_size > 10_000
  for row in table:
    # BN lets nothing along a filter through, so only the mean is left to WS.
    assert row["removed.radial"] < 1e-3 < row["removed.mean"] < 1
    assert 0 <= row["dead"] < 1 and row["own.loss_variation"] > 0
  assert table[0]["loss"] != table[2]["loss"]
