"""The diagnostics of a real sweep, from the command line."""

import pathlib
import subprocess
import sys

import pytest

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


def run(*command):
  done = subprocess.run(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


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
