"""The command line, in processes of its own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "configs/fashion_mnist_10k.py:model=resnet8,width=0.25,num_groups=2"


def command(workdir, *flags, config=CONFIG):
  return [
    *(sys.executable, "-m", "ws_jax.main"),
    *(f"--config={config}", f"--workdir={workdir}", *flags),
  ]


def run(workdir, *flags, **kwargs):
  return subprocess.run(
    command(workdir, *flags, **kwargs),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"XLA_FLAGS": ""},
  )


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config.model.nrm=group"], "did you mean 'model.norm'?"),
    (["--config.optim.learning_rate=fast"], "optim.learning_rate=fast"),
    (["--config.model.norm=batchnorm"], "did you mean 'batch'?"),
    (["--config.data.name=cifar10", "--config.data.dir=/nowhere"], "cifar10"),
    (["extra"], "unexpected arguments extra"),
  ],
)
def test_a_mistake_is_one_line_and_exit_2(flags, message, tmp_path):
  result = run(tmp_path / "run", *flags)
  assert result.returncode == 2, result.stderr
  assert "Traceback" not in result.stderr
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error: "))
  assert message in line
  assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
  flags = ["--config.train.steps=400", "--config.train.log_every_steps=1"]
  process = subprocess.Popen(
    command(tmp_path, *flags),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {"XLA_FLAGS": ""},
  )
  rows = tmp_path / "metrics.jsonl"
  deadline = time.monotonic() + 240
  while not (rows.exists() and rows.read_text().count("\n") >= 2):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  stderr = process.communicate(timeout=60)[1]
  assert process.returncode == 130, stderr
  assert "run the same command to go on" in stderr.splitlines()[-1]
  assert "Traceback" not in stderr
  step = json.loads((tmp_path / "status.json").read_text())["step"]
  assert 2 <= step < 400

  before = rows.read_text()
  result = run(tmp_path, *flags, "--config.train.eval_every_steps=400")
  assert result.returncode == 2  # another configuration
  assert "eval_every_steps" in result.stderr
  assert rows.read_text() == before


def test_a_diverging_run_exits_3(tmp_path):
  result = run(
    tmp_path,
    "--config.model.norm=none",
    "--config.model.ws=false",
    "--config.optim.learning_rate=1e9",
    "--config.train.steps=5",
  )
  assert result.returncode == 3, result.stderr
  assert "diverged at step" in result.stderr.splitlines()[-1]
  assert "compiled programs are kept in" in result.stderr
