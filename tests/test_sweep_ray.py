"""Checks sweeps on Ray: its errors without it, and real nodes in the slow tier.

The slow tests need the extra `ray`, and start a cluster of two nodes on this
machine.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from ws_jax import config
from ws_jax.base import disk, extras
from ws_jax.sweep import grid, ray_cluster, ray_tasks, rows, shares
from ws_jax.train import record

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = ROOT / "scripts" / "sweep.py"

needs_ray = pytest.mark.skipif(
  bool(extras.lacking("ray")), reason=f"Ray {extras.lacking('ray')}"
)


@pytest.fixture
def beacon(tmp_path):
  """Returns the file by which nodes know the folder of a sweep."""
  (tmp_path / ".locks").mkdir()
  return tmp_path / ".locks" / "ray-1"


def test_a_node_without_the_folder_of_the_sweep_is_an_error(beacon):
  with pytest.raises(ValueError, match=f"not see {beacon.parents[1]}: --out"):
    ray_cluster.check_folder(beacon)


def test_a_node_that_does_not_share_locks_is_an_error(beacon):
  beacon.touch()
  with pytest.raises(ValueError, match="not who holds a lock there"):
    ray_cluster.check_folder(beacon)


def test_a_node_that_sees_folder_and_lock_is_none(beacon):
  with disk.locked(beacon):
    ray_cluster.check_folder(beacon)


def test_lost_nodes_do_not_count_as_nodes_that_a_run_may_wait_for():
  node = {"Alive": False, "Resources": {"CPU": 8.0}}
  with pytest.raises(ValueError, match="which no node.* has: none is left"):
    ray_cluster.check_request([node], cpus=1, gpus=0)
  node["Alive"] = True
  ray_cluster.check_request([node], cpus=8, gpus=0)
  with pytest.raises(ValueError, match="0.5 GPUs.* largest has 8 CPUs$"):
    ray_cluster.check_request([node], cpus=8, gpus=0.5)


def test_an_address_where_nobody_listens_is_found_at_once():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    port = one.getsockname()[1]
    with pytest.raises(OSError):
      ray_cluster.check_address(f"127.0.0.1:{port}")
    one.listen()
    ray_cluster.check_address(f"127.0.0.1:{port}")
    ray_cluster.check_address(f"ray://127.0.0.1:{port}")
  ray_cluster.check_address("auto")


def test_a_sweep_without_ray_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(extras.MODULES, "ray", ("no_such_ray",))
  with pytest.raises(ValueError, match=r"pip install 'ws_jax\[ray\]'"):
    ray_tasks.train([], config.default(), tmp_path, notify=print)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--launcher=ray", "--workers=2"], "--workers=2 is not for"),
    (
      ["--launcher=slurm", "--gpus=0.5"],
      "--gpus=0.5: a number that is not",
    ),
  ],
)
def test_flags_of_another_launcher_are_an_error(tmp_path, flags, message):
  path = tmp_path / "one.py"
  path.write_text('CONFIG = "configs/quickstart.py"\nsweep = lambda: [{}]\n')
  done = subprocess.run(
    [sys.executable, SWEEP, f"--experiment={path}", f"--out={tmp_path}"]
    + flags,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert (done.returncode, message in done.stdout) == (2, True), done.stdout


def test_processes_take_cores_of_their_own(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 8, 9})
  monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
  # A lock is that of an open file: two calls are like two processes.
  with shares._TAKEN:
    assert [shares.take(2) for _ in range(3)] == [{3, 4}, {5, 8}, None]
    assert shares.take(1) == {9}
  with shares._TAKEN:
    assert shares.take(5) == {3, 4, 5, 8, 9}


# Argument 1 is the folder, 2 the address. A run writes a line when it begins
# and one when it ends, with its seed and its node.
PROGRAM = """
import json, os, pathlib, signal, sys, time
import ray
from ws_jax import config
from ws_jax.base import disk
from ws_jax.sweep import grid, ray_tasks, runner

out = pathlib.Path(sys.argv[1])

def train_fn(c, workdir):
  folder = pathlib.Path(workdir)

  def note(word):
    node = ray.get_runtime_context().get_node_id()
    with (folder.parent / "notes").open("a") as file:
      file.write(json.dumps([word, c.seed, node, os.getpid()]) + "\\n")

  note("repeated" if (folder / "status.json").exists() else "began")
  if (folder.parent / f"raises-{c.seed}").exists():
    raise RuntimeError("broken")
  if (folder.parent / f"kills-{c.seed}").exists():
    os.kill(os.getpid(), signal.SIGKILL)
  while (folder.parent / f"stays-{c.seed}").exists():
    time.sleep(0.1)
  status = {"status": "done", "metrics": {"eval/accuracy": 0.5}}
  disk.write_json(folder / "status.json", status)
  note("ended")
  return status["metrics"]

ray_tasks._RETRIES = 1
points = json.loads((out / "points").read_text())
base = config.default()
try:
  ray_tasks.train(
    runner.choose(base, grid.plan(points), out),
    base,
    out,
    address=sys.argv[2],
    train_fn=train_fn,
    notify=lambda node, run, row: print(run.name, row["status"], flush=True),
  )
except KeyboardInterrupt as error:
  sys.exit(f"stopped: {error}")
"""


@pytest.fixture
def cluster(monkeypatch):
  """Yields a cluster of two nodes with a core each, and the one to kill."""
  from ray import cluster_utils

  monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes of Ray
  both = cluster_utils.Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1}
  )
  try:
    second = both.add_node(num_cpus=1)
    both.wait_for_nodes()
    yield both, second
  finally:
    both.shutdown()


def start(folder, cluster, points):
  (folder / "points").write_text(json.dumps(list(points)))
  (folder / "program.py").write_text(PROGRAM)
  with (folder / "said").open("a") as said:
    return subprocess.Popen(
      [sys.executable, folder / "program.py", folder, cluster[0].address],
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=said,
      stderr=subprocess.STDOUT,
    )


def notes(folder, word):
  path = folder / "notes"
  lines = path.read_text().splitlines() if path.exists() else []
  return [rest for first, *rest in map(json.loads, lines) if first == word]


def until(true, process, seconds=600):
  end = time.monotonic() + seconds
  while not true():
    assert process.poll() is None, "the sweep has ended"
    assert time.monotonic() < end, "this takes too long"
    time.sleep(0.05)


def ends(folder):
  return {r["seed"]: r["status"] for r in rows.read(folder / "runs.csv")}


@needs_ray
@pytest.mark.slow
def test_a_lost_node_costs_its_run_under_way_and_no_row(tmp_path, cluster):
  for seed in (0, 1):
    (tmp_path / f"stays-{seed}").touch()
  (tmp_path / "raises-2").touch()
  (tmp_path / "kills-3").touch()
  process = start(tmp_path, cluster, grid.product(seed=range(6)))
  until(lambda: len(notes(tmp_path, "began")) == 2, process)
  lost = cluster[1].node_id
  (mine,) = [seed for seed, node, _ in notes(tmp_path, "began") if node == lost]
  cluster[0].remove_node(cluster[1], allow_graceful=False)
  (tmp_path / f"stays-{1 - mine}").unlink()
  # The run of the lost node begins again, on the node that is left.
  again = lambda: [s for s, *_ in notes(tmp_path, "began")].count(mine) == 2
  until(again, process)
  (tmp_path / f"stays-{mine}").unlink()
  assert process.wait(timeout=300) == 0, (tmp_path / "said").read_text()
  expected = dict.fromkeys(range(6), "done") | {2: "failed", 3: "failed"}
  assert ends(tmp_path) == expected
  began = [seed for seed, *_ in notes(tmp_path, "began")]
  # What fails in Python is not repeated; what kills its process is, by Ray.
  times = [began.count(seed) for seed in range(6)]
  assert times == [1 + (mine == 0), 1 + (mine == 1), 1, 2, 1, 1]
  reasons = {r["seed"]: r["reason"] for r in rows.read(tmp_path / "runs.csv")}
  assert reasons[2] == "RuntimeError: broken"
  assert reasons[3].startswith("its process died 2 times")
  assert not notes(tmp_path, "repeated")


@needs_ray
@pytest.mark.slow
def test_a_sweep_that_is_stopped_cancels_its_tasks_and_goes_on(
  tmp_path, cluster
):
  for seed in (1, 2):
    (tmp_path / f"stays-{seed}").touch()
  points = list(grid.product(seed=range(4)))
  process = start(tmp_path, cluster, points)
  until(lambda: len(notes(tmp_path, "began")) == 3, process)
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=120) == 1
  assert (
    "stopped: the runs under way have saved" in (tmp_path / "said").read_text()
  )
  cut = "interrupted"
  assert ends(tmp_path) == {0: "done", 1: cut, 2: cut}
  for seed in (1, 2):
    (tmp_path / f"stays-{seed}").unlink()
  assert start(tmp_path, cluster, points).wait(timeout=300) == 0
  assert ends(tmp_path) == dict.fromkeys(range(4), "done")
  assert [seed for seed, *_ in notes(tmp_path, "ended")].count(0) == 1


# Real runs, as small as possible.
EXPERIMENT = """
from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model.name=resnet8,width=0.25,num_groups=2,"
  "batch_size=16,train.steps=60,log_every_steps=2,checkpoint_every_steps=2,"
  "eval_every_steps=30"
)
sweep = lambda: product(seed=range(2))
"""


@needs_ray
@pytest.mark.slow
def test_runs_of_a_lost_node_are_those_of_an_undisturbed_sweep(
  tmp_path, cluster
):
  """Checks the bits of two runs, one of which goes on elsewhere."""
  (tmp_path / "two.py").write_text(EXPERIMENT)

  def sweep(out, *flags):
    return subprocess.Popen(
      [sys.executable, SWEEP, f"--experiment={tmp_path / 'two.py'}"]
      + [f"--out={tmp_path / out}", *flags],
      cwd=ROOT,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

  def on_second_node():
    """Returns the name of the run that the node to be killed is training."""
    raylet = cluster[1].all_processes["raylet"][0].process.pid
    for log in (tmp_path / "lost" / "ray").glob("*.log"):
      status = pathlib.Path("/proc", log.stem.rpartition("-")[2], "status")
      if f"PPid:\t{raylet}\n" in status.read_text():
        found = re.findall("^seed=.", log.read_text(), re.MULTILINE)
        return found[0] if found else None
    return None

  def reached(step):
    name = on_second_node()
    history = record.read_metrics(tmp_path / "lost" / name) if name else []
    return step in [line["step"] for line in history]

  process = sweep("lost", "--launcher=ray", f"--address={cluster[0].address}")
  until(lambda: reached(20), process)
  mine = on_second_node()
  cluster[0].remove_node(cluster[1], allow_graceful=False)
  written = rows.read(tmp_path / "lost" / "runs.csv")
  assert mine not in [row["run"] for row in written]
  assert process.wait(timeout=600) == 0
  # The order of sums depends on the number of cores: each has one in both.
  with shares.pinned({min(os.sched_getaffinity(0))}):
    assert sweep("calm").wait(timeout=600) == 0
  lost, calm = (
    {row["run"]: row for row in rows.read(tmp_path / out / "runs.csv")}
    for out in ("lost", "calm")
  )
  assert lost.keys() == calm.keys() == {"seed=0", "seed=1"}
  for name in lost:
    same = [key for key in lost[name] if key.startswith(("train/", "eval/"))]
    assert "eval/loss" in same
    assert [lost[name][k] for k in same] == [calm[name][k] for k in same]
    read = lambda out, name=name: record.read_metrics(tmp_path / out / name)
    assert read("lost") == read("calm")
