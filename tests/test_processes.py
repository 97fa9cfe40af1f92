"""Two processes train one run, each with two of the four devices."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import PIL.Image
import pytest

from tests import small
from ws_jax import config, weights
from ws_jax.train import loop, processes, record

ROOT = pathlib.Path(__file__).parents[1]
BATCH_NORM = {"model.norm": "batch", "model.ws": False}
MODELS = {
  "BN": BATCH_NORM,
  "BN of 8": BATCH_NORM | {"model.norm_batch_size": 8},
  "BN of devices": BATCH_NORM | {"mesh.batch_norm": "device"},
  "GN+WS": {},
}
MESHES = {
  "4x1": {},
  "4x1 sharded": {"mesh.params": "sharded"},
  "2x2": {"mesh.model": 2},
  "2x2 sharded": {"mesh.model": 2, "mesh.params": "sharded"},
}
TABLE = [(mesh, model) for mesh in MESHES for model in MODELS]


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def environment(devices):
  flag = f"--xla_force_host_platform_device_count={devices}"
  return os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)}


def start(workdir, **overrides):
  """Starts two processes by the command line; they are not waited for."""
  port, keys = free_port(), small.OVERRIDES | overrides
  config_file = "--config=configs/fashion_mnist_10k.py"
  name = {"model.name": keys.pop("model.name")}  # it decides what others mean
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "ws_jax.main", config_file),
        *(f"--config.{key}={value}" for key, value in (name | keys).items()),
        *(f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}"),
        *("--num_processes=2", f"--process_id={i}"),
      ],
      cwd=ROOT,
      env=environment(devices=2),
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def finish(started, timeout=300):
  """Waits for both; returns their exit codes and what they said."""
  said = [one.communicate(timeout=timeout)[1] for one in started]
  return [one.returncode for one in started], said


def assert_equal_runs(got, expected):
  """Metrics and final parameters, within the rounding of float32."""
  rows, others = map(record.read_metrics, (got, expected))
  assert [row["step"] for row in rows] == [row["step"] for row in others]
  assert len(rows) == 4  # three of training, one of evaluation
  for row, other in zip(rows, others, strict=True):
    assert row == pytest.approx(other, rel=2e-4, abs=2e-5)
  ours, theirs = map(weights.read_raw_variables, (got, expected))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, ours, theirs)


def test_two_processes_equal_one(tmp_path):
  started = start(tmp_path / "two", **MESHES["2x2 sharded"])
  one = config.apply(config.default(), small.OVERRIDES)
  loop.train_and_evaluate(one, tmp_path / "one")
  codes, said = finish(started)
  assert codes == [0, 0], said
  for i, text in enumerate(said):
    assert f"process {i} of 2, with 2 of 4 devices" in text
  # The first alone writes, and says how it ended.
  assert "eval/accuracy" in said[0] and "eval/accuracy" not in said[1]
  assert "step 6/6" in said[0] and "step 6/6" not in said[1]
  assert len(list((tmp_path / "two").glob("events.*"))) == 1
  assert_equal_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_stream_what_one_does(tmp_path):
  """Each decodes the rows of a batch that its own devices hold."""
  rng = np.random.default_rng(0)
  for split, each in (("train", 25), ("test", 7)):
    for label in range(4):
      folder = tmp_path / "images" / split / f"class{label}"
      folder.mkdir(parents=True)
      for i in range(each):
        pixels = rng.integers(0, 80, (12, 14, 3)) + 50 * label
        image = PIL.Image.fromarray(pixels.astype(np.uint8))
        image.save(folder / f"{label}{i}.jpg")
  streamed = {
    "data.source": "stream",
    "data.name": str(tmp_path / "images"),
    "data.image_size": 8,
    "data.eval_resize": 9,
    "optim.micro_batch_size": 8,
    "task.crop_padding": 0,
    "model.norm": "batch",
  }
  started = start(tmp_path / "two", **streamed, **MESHES["4x1 sharded"])
  one = config.apply(config.default(), small.OVERRIDES | streamed)
  loop.train_and_evaluate(one, tmp_path / "one")
  codes, said = finish(started)
  assert codes == [0, 0], said
  assert_equal_runs(tmp_path / "two", tmp_path / "one")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """All runs of the table, by two processes and by one on one device."""
  folder, port = tmp_path_factory.mktemp("table"), free_port()
  wide = {f"{a} {b}": MODELS[b] | MESHES[a] for a, b in TABLE}
  alone = dict(MODELS)
  for devices in (4, 2):  # of the batch of 16
    name = f"BN of devices, {devices}"
    alone[name] = BATCH_NORM | {"model.norm_batch_size": 16 // devices}
  runs = [(wide, "two", 2, i, 2) for i in range(2)]
  runs += [(alone, "one", 1, 0, 1)]
  started = []
  for given, place, count, number, devices in runs:
    one = subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.small", str(folder / place)),
        *map(str, (port, count, number)),
      ],
      cwd=ROOT,
      env=environment(devices),
      stdin=subprocess.PIPE,
      text=True,
    )
    one.stdin.write(json.dumps(given))
    one.stdin.close()
    started.append(one)
  assert [one.wait(timeout=1800) for one in started] == [0, 0, 0]
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "model"), TABLE)
def test_a_run_of_two_processes_equals_one_device(table, mesh, model):
  alone = model
  if model == "BN of devices":
    alone += ", 2" if mesh.startswith("2x2") else ", 4"
  assert_equal_runs(table / "two" / f"{mesh} {model}", table / "one" / alone)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path):
  """To the same bits as without it."""
  codes, said = finish(start(tmp_path / "whole", **{"train.steps": 100}))
  assert codes == [0, 0], said
  workdir = tmp_path / "killed"
  started = start(workdir, **{"train.steps": 100})
  while len(record.read_metrics(workdir)) < 5:
    assert all(one.poll() is None for one in started), finish(started)
    time.sleep(0.01)
  started[1].kill()
  began = time.monotonic()
  codes, said = finish(started)
  assert time.monotonic() - began < processes.LOST_AFTER + 30
  assert codes == [processes.LOST, -signal.SIGKILL], said[0]
  assert "another process of this run is gone" in said[0].splitlines()[-1]
  status = json.loads((workdir / "status.json").read_text())
  assert status["status"] == "failed" and status["step"] < 100

  codes, said = finish(start(workdir, **{"train.steps": 100}))
  assert codes == [0, 0], said
  texts = [
    (folder / "metrics.jsonl").read_text()
    for folder in (workdir, tmp_path / "whole")
  ]
  assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_behind_one_step(tmp_path):
  started = start(tmp_path / "run", **{"train.steps": 20_000})
  while len(record.read_metrics(tmp_path / "run")) < 2:
    assert all(one.poll() is None for one in started), finish(started)
    time.sleep(0.01)
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
