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
    (["--config.optim.lr", "3"], "unknown config key 'optim.lr'"),
    (["--config.optim.clip_norm=0"], "optim.clip_norm=0.0 must be finite and"),
    (["--config.optim.boundaries=(4,6)"], "must be parts of the run"),
    (["--config.seed=4294967295"], "seed=4294967295 must be from 0 to"),
    (["--workdir="], "--workdir is missing"),
    (["--config=README.md"], "a config is a .py file"),
    (["--confg=x"], "Unknown command line flag 'confg'"),
    (["--evaluate=nowhere"], "--evaluate takes no --config"),
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


def test_a_config_behind_a_space_gives_the_same_message(tmp_path):
  """Absl's own message for it was escaped, and of several lines."""
  done = subprocess.run(
    [sys.executable, "-m", "ws_jax.main", "--config", CONFIG, "--workdir"]
    + [str(tmp_path / "run"), "--config.model.nrm=group"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.splitlines() == [
    "error: unknown config key 'model.nrm': did you mean 'model.norm'?"
  ]


def test_help_lists_every_key_with_its_meaning(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "ws_jax.main", f"--config={CONFIG}", "--help"],
    cwd=tmp_path,  # a config of the project is found from anywhere
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  assert "model.width=0.25" in done.stdout
  assert "largest global norm of the gradient" in done.stdout
  assert "--evaluate" in done.stdout


def test_what_is_said_fits_a_terminal(tmp_path):
  result = run(tmp_path, "--config.train.steps=2")
  assert result.returncode == 0, result.stderr
  assert max(map(len, result.stderr.splitlines())) <= 160
