"""Two processes train one run, each with two of the four devices."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ws_jax import weights
from ws_jax.train import processes, record

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
  *("--config=configs/fashion_mnist_10k.py", "--config.model.name=resnet8"),
  *("--config.model.width=0.25", "--config.model.num_groups=2"),
  *("--config.data.batch_size=16", "--config.data.eval_batch_size=12"),
  *("--config.optim.learning_rate=0.1", "--config.train.steps=6"),
  *("--config.train.log_every_steps=2", "--config.optim.ema_decay=0.5"),
  *("--config.train.checkpoint_every_steps=2",),
)
MODELS = {
  "BN": ("model.norm=batch", "model.ws=false"),
  "BN of 8": ("model.norm=batch", "model.ws=false", "model.norm_batch_size=8"),
  "BN per device": (
    *("model.norm=batch", "model.ws=false", "mesh.batch_norm=device"),
  ),
  "GN+WS": (),
}
MESHES = {
  "4x1": (),
  "4x1 sharded": ("mesh.params=sharded",),
  "2x2": ("mesh.model=2",),
  "2x2 sharded": ("mesh.model=2", "mesh.params=sharded"),
}


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start(workdir, data, *keys, count=2, devices=2, flags=()):
  """Starts the processes of a run; they are not waited for."""
  port = free_port()
  several = lambda i: (
    f"--coordinator=127.0.0.1:{port}",
    f"--num_processes={count}",
    f"--process_id={i}",
  )
  device_flag = f"--xla_force_host_platform_device_count={devices}"
  env = os.environ | {"XLA_FLAGS": device_flag}
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "ws_jax.main", f"--workdir={workdir}", *FLAGS),
        *(f"--config.data.name={data}", *(f"--config.{key}" for key in keys)),
        *(several(i) if count > 1 else ()),
        *flags,
      ],
      cwd=ROOT,
      env=env,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


def finish(started, timeout=300):
  """Waits for all; returns their exit codes and what they said."""
  said = [one.communicate(timeout=timeout)[1] for one in started]
  return [one.returncode for one in started], said


def run(*args, **kwargs):
  codes, said = finish(start(*args, **kwargs))
  assert not any(codes), "\n".join(said)
  return said


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A small set of images whose brightness tells the class; 29 to test on."""
  rng = np.random.default_rng(0)
  made = {}
  for split, size in (("train", 100), ("test", 29)):
    labels = np.arange(size, dtype=np.int32) % 3
    noise = rng.integers(0, 100, (size, 8, 8, 1))
    images = noise + 70 * labels[:, None, None, None]
    made |= {f"{split}_x": images.astype(np.uint8), f"{split}_y": labels}
  path = tmp_path_factory.mktemp("data") / "small.npz"
  np.savez(path, **made)
  return path


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
  """Returns the workdir of one process on one device, by model."""
  known = {}

  def trained(model):
    if model not in known:
      known[model] = tmp_path_factory.mktemp("alone") / "run"
      keys = MODELS[model]
      if model == "BN per device":  # which are four, of 16 examples
        keys = (*keys[:2], "model.norm_batch_size=4")
      run(known[model], data, *keys, count=1, devices=1)
    return known[model]

  return trained


def assert_equal_runs(got, expected):
  """Metrics and final parameters, within the rounding of float32."""
  rows = record.read_metrics(got)
  others = record.read_metrics(expected)
  assert [row["step"] for row in rows] == [row["step"] for row in others]
  for row, other in zip(rows, others, strict=True):
    assert row == pytest.approx(other, rel=2e-4, abs=2e-5)
  ours, theirs = map(weights.read_raw_variables, (got, expected))
  equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  import jax

  jax.tree.map(equal, ours, theirs)


CASES = [
  pytest.param(
    mesh, model, marks=[] if (mesh, model) == ("2x2 sharded", "GN+WS") else slow
  )
  for slow in [pytest.mark.slow]
  for mesh in MESHES
  for model in MODELS
  if model != "BN per device" or mesh.startswith("4x1")
]


@pytest.mark.parametrize(("mesh", "model"), CASES)
def test_two_processes_equal_one(data, alone, tmp_path, mesh, model):
  said = run(tmp_path / "run", data, *MODELS[model], *MESHES[mesh])
  for i, text in enumerate(said):
    assert f"process {i} of 2 (--coordinator=" in text
    assert "with 2 of 4 devices" in text
  # The first alone writes, and says how it ended.
  assert "eval/accuracy" in said[0] and "eval/accuracy" not in said[1]
  assert "step 6/6" in said[0] and "step 6/6" not in said[1]
  events = list((tmp_path / "run").glob("events.*"))
  assert len(events) == 1
  assert_equal_runs(tmp_path / "run", alone(model))


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_goes_on(data, tmp_path):
  """To the same bits as without it."""
  run(tmp_path / "whole", data, "train.steps=60")
  workdir = tmp_path / "killed"
  started = start(workdir, data, "train.steps=60")
  deadline = time.monotonic() + 240
  while len(record.read_metrics(workdir)) < 5:
    assert time.monotonic() < deadline
    assert all(one.poll() is None for one in started), finish(started)
    time.sleep(0.05)
  started[1].kill()
  began = time.monotonic()
  codes, said = finish(started, timeout=2 * processes.LOST_AFTER)
  assert time.monotonic() - began < processes.LOST_AFTER + 30
  assert codes == [processes.LOST, -signal.SIGKILL], said[0]
  assert "another process of this run is gone" in said[0].splitlines()[-1]
  status = json.loads((workdir / "status.json").read_text())
  assert status["status"] == "failed" and status["step"] < 60

  run(workdir, data, "train.steps=60")
  texts = [
    (folder / "metrics.jsonl").read_text()
    for folder in (workdir, tmp_path / "whole")
  ]
  assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_behind_one_step(data, tmp_path):
  started = start(tmp_path / "run", data, "train.steps=4000")
  while len(record.read_metrics(tmp_path / "run")) < 2:
    assert all(one.poll() is None for one in started), finish(started)
    time.sleep(0.05)
  started[1].send_signal(signal.SIGTERM)
  codes, said = finish(started)
  assert codes == [143, 143], said
  steps = {text.partition("after step ")[2].split(":")[0] for text in said}
  assert len(steps) == 1 and steps.pop().isdecimal()


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (("h:1", None, None), "--coordinator needs --num_processes and --process"),
    ((None, 2, None), "--num_processes needs --coordinator and --process_id"),
    (("localhost", 2, 0), "--coordinator=localhost must be HOST:PORT"),
    (("h:1", 2, 2), "--process_id=2 must be from 0 to .* which is 1"),
  ],
)
def test_flags_that_do_not_fit(given, message):
  with pytest.raises(ValueError, match=message):
    processes.join(*given)


@pytest.mark.parametrize(
  ("env", "name"),
  [
    ({}, None),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # a batch script
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "Slurm"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
  ],
)
def test_schedulers_are_known_by_their_environment(env, name):
  assert processes._scheduler(env) == name


def test_a_process_on_its_own_agrees_with_itself():
  assert not processes.several() and processes.first()
  assert processes.agree(None) is None
  assert processes.agree(15) == 15
