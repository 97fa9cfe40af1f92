"""Checks workers in real processes, with a trainer that only takes time."""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from ws_jax import config
from ws_jax.sweep import grid, rows, runner, shares, slurm, workers
from ws_jax.train import record

ROOT = pathlib.Path(__file__).parents[1]

# Argument 1 is the folder; 2 is `work` for a worker, or the number of workers.
# A run writes a line when it begins and one when it ends, with its seed, its
# norm, its process, and the cores of that process.
PROGRAM = """
import contextlib, json, os, pathlib, signal, sys, time
from ws_jax import config
from ws_jax.base import disk
from ws_jax.sweep import grid, runner, workers

out, what = pathlib.Path(sys.argv[1]), sys.argv[2]

def note(word, c):
  cores = sorted(os.sched_getaffinity(0))
  with (out / "notes").open("a") as file:
    file.write(json.dumps([word, c.seed, c.model.norm, os.getpid(), cores]))
    file.write("\\n")

def train_fn(c, workdir):
  folder = pathlib.Path(workdir)
  note("repeated" if (folder / "status.json").exists() else "began", c)
  if (folder.parent / f"kills-{c.seed}").exists():
    os.kill(os.getpid(), signal.SIGKILL)
  with contextlib.suppress(FileNotFoundError):
    (folder.parent / f"kills-{c.seed}-once").rename(folder / "killed")
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(0.1)
  while (folder.parent / f"stays-{c.seed}").exists():
    time.sleep(0.1)
  status = {"status": "done", "metrics": {"eval/accuracy": 0.5}}
  disk.write_json(folder / "status.json", status)
  note("ended", c)
  return status["metrics"]

points = json.loads((out / "points").read_text())
base = config.default()
try:
  if what == "work":
    workers.work(base, out, train_fn=train_fn)
    time.sleep(0.3)  # About the time that an interpreter takes to end.
    (out / f"ended-{os.getpid()}").touch()
  else:
    workers.Fleet(
      runner.choose(base, grid.plan(points), out),
      out,
      [sys.executable, __file__, str(out), "work"],
      workers=int(what),
      notify=lambda _, run, row: print(row and "ends" or "begins", flush=True),
    ).run()
except KeyboardInterrupt:
  sys.exit(workers.STOPPED)
"""

NORMS = [{"model.norm": "batch"}, {"model.norm": "group"}]


@pytest.fixture
def folder(tmp_path):
  """Returns a folder to sweep in, which holds the program."""
  (tmp_path / "program.py").write_text(PROGRAM)
  return tmp_path


def start(folder, points, workers=2):
  (folder / "points").write_text(json.dumps(list(points)))
  program = [sys.executable, str(folder / "program.py"), str(folder)]
  return popen([*program, str(workers)], folder)


def popen(command, folder):
  """Starts a sweep, and appends what it prints to a file in `folder`."""
  with (folder / "said").open("a") as said:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=said)


def notes(folder, word):
  path = folder / "notes"
  lines = path.read_text().splitlines() if path.exists() else []
  return [rest for first, *rest in map(json.loads, lines) if first == word]


def until(true, seconds=120):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end, "this takes too long"
    time.sleep(0.05)


def gone(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def ends(folder):
  return {r["seed"]: r["status"] for r in rows.read(folder / "runs.csv")}


def test_workers_share_groups_and_outlive_each_other(folder):
  """Checks a run that kills its process once, and one that always does."""
  (folder / "kills-1-once").touch()
  (folder / "kills-4").touch()
  points = [
    arm | {"seed": seed + 3 * i}
    for i, arm in enumerate(NORMS)
    for seed in range(3)
  ]
  assert start(folder, points).wait(timeout=300) == 0
  got = {row["seed"]: row for row in rows.read(folder / "runs.csv")}
  wanted = dict.fromkeys(range(6), "done") | {4: "failed"}
  assert {seed: row["status"] for seed, row in got.items()} == wanted
  assert "died 2 times, signal 9" in got[4]["reason"]
  began = collections.Counter(seed for seed, *_ in notes(folder, "began"))
  # Another worker may take the run up before it can be given up.
  assert began.pop(4) in (2, 3)
  assert began == {0: 1, 1: 2, 2: 1, 3: 1, 5: 1}
  # The last workers ended by themselves: nobody asked them to stop.
  assert len(list(folder.glob("ended-*"))) == 2
  # The first two workers did not begin with the same program.
  firsts = {norm for seed, norm, *_ in notes(folder, "began") if seed in (0, 3)}
  assert firsts == {"batch", "group"}
  cores = {tuple(cores) for *_, cores in notes(folder, "began")}
  mine = sorted(os.sched_getaffinity(0))
  assert {core for share in cores for core in share} <= set(mine)
  if len(mine) > 1:
    assert all(len(share) < len(mine) for share in cores)


def test_workers_that_cannot_begin_end_the_sweep(tmp_path):
  broken = [sys.executable, "-c", "raise SystemExit('no such module')"]
  runs = runner.choose(config.default(), grid.plan([{"seed": 1}]), tmp_path)
  fleet = workers.Fleet(runs, tmp_path, broken, workers=1, notify=print)
  with pytest.raises(ChildProcessError, match=r"exit code 1.*worker-0\.log"):
    fleet.run()
  assert "no such module" in workers.log_of(tmp_path, 0).read_text()


def test_a_worker_that_finds_the_disk_full_ends_the_sweep(tmp_path):
  """Each run that was left would have failed, and stayed so."""
  full = "import sys; print('error: the disk is full', file=sys.stderr)"
  runs = runner.choose(config.default(), grid.plan([{"seed": 1}]), tmp_path)
  command = [sys.executable, "-c", f"{full}; sys.exit(2)"]
  fleet = workers.Fleet(runs, tmp_path, command, workers=1, notify=print)
  with pytest.raises(ChildProcessError, match=r"^error: the disk is full$"):
    fleet.run()
  assert not rows.read(tmp_path / "runs.csv")


def test_stopped_sweep_hands_its_run_to_another(folder):
  """Checks two sweeps on one folder: one is asked to stop, one is killed."""
  (folder / "stays-0").touch()
  (folder / "stays-1").touch()
  points = list(grid.product(seed=range(4)))
  first = start(folder, points, workers=1)
  until(lambda: len(notes(folder, "began")) == 1)
  second = start(folder, points, workers=1)
  until(lambda: len(notes(folder, "began")) == 2)
  # Nobody takes the first run over meanwhile: the second sweep has its own.
  ((seed, _, worker, _), (other, _, orphan, _)) = notes(folder, "began")
  assert {seed, other} == {0, 1}
  os.kill(first.pid, signal.SIGTERM)
  assert first.wait(timeout=60) == workers.STOPPED
  assert gone(worker) and ends(folder) == {seed: "interrupted"}
  os.kill(second.pid, signal.SIGKILL)
  second.wait(timeout=60)
  until(lambda: gone(orphan))  # by itself, having saved
  assert ends(folder) == {0: "interrupted", 1: "interrupted"}
  (folder / "stays-0").unlink()
  (folder / "stays-1").unlink()
  pair = [start(folder, points, workers=1) for _ in range(2)]
  assert [process.wait(timeout=120) for process in pair] == [0, 0]
  assert ends(folder) == dict.fromkeys(range(4), "done")
  ended = [seed for seed, *_ in notes(folder, "ended")]
  assert sorted(ended) == [0, 1, 2, 3]


def kill_again_and_again(folder, begin, times, seconds, look=lambda: None):
  """Kills a sweep and its workers with SIGKILL, at random moments.

  Args:
    folder: Folder of the file to which it prints when a run begins.
    begin: Function that starts the sweep.
    times: Number of kills; every fourth may come while the sweep starts.
    seconds: Longest time to wait before a kill.
    look: Function that is called while nothing runs.

  Returns:
    The exit code of the last sweep, which is not killed.
  """
  rng = random.Random(0)
  (folder / "said").touch()
  begun = lambda: (folder / "said").read_text().count("begins")
  for number in range(times):
    before = begun()
    process = begin()
    while number % 4 and begun() == before and process.poll() is None:
      time.sleep(0.05)
    time.sleep(rng.uniform(0, seconds))
    workers = children(process.pid)
    process.kill()  # This does nothing if it has ended by itself.
    for pid in workers:
      os.kill(pid, signal.SIGKILL)
    process.wait()
    look()
  return begin().wait(timeout=1800)


def children(pid):
  path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
  return (
    [int(child) for child in path.read_text().split()] if path.exists() else []
  )


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_repeated(folder):
  points = list(grid.product(NORMS, seed=range(8)))
  begin = lambda: start(folder, points)
  assert kill_again_and_again(folder, begin, times=4, seconds=2.0) == 0
  got = rows.read(folder / "runs.csv")
  assert len(got) == 16 and {row["status"] for row in got} == {"done"}
  assert not notes(folder, "repeated")


# Real runs, as small as possible.
EXPERIMENT = """
from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model.name=resnet8,width=0.25,num_groups=2,"
  "batch_size=16,train.steps=12,log_every_steps=2,checkpoint_every_steps=2,"
  "eval_every_steps=6"
)
sweep = lambda: product(
  [{"model.norm": "batch"}, {"model.norm": "group"}], seed=range(20)
)
"""


@pytest.mark.slow
def test_forty_runs_killed_twenty_times_are_those_of_an_undisturbed_sweep(
  tmp_path,
):
  (tmp_path / "forty.py").write_text(EXPERIMENT)
  seen, kills = {}, 0

  def begin(out="killed", *more):
    script = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    flags = [f"--experiment={tmp_path / 'forty.py'}", f"--out={tmp_path / out}"]
    return popen([*script, *flags, "--workers=2", *more], tmp_path)

  def finished(out="killed"):
    return {
      row["run"]: row
      for row in rows.read(tmp_path / out / "runs.csv")
      if row["status"] == "done"
    }

  def look():
    nonlocal kills
    kills += 1
    for name, row in finished().items():
      # No two runs take the same seconds, so a repeated one has another row.
      assert seen.setdefault(name, row) == row
    print(f"kill {kills}: {len(seen)} of 40 runs are finished", flush=True)

  # Seconds to start and to do one run of each program, once all is compiled.
  assert begin("killed", "--filter=seed=0").wait(timeout=600) == 0
  began = time.monotonic()
  assert begin("killed", "--filter=seed=1").wait(timeout=600) == 0
  life = time.monotonic() - began
  code = kill_again_and_again(
    tmp_path, begin, times=20, seconds=life, look=look
  )
  assert code == 0
  look()
  assert len(seen) == 40
  assert begin("calm").wait(timeout=1800) == 0
  calm = finished("calm")
  for name, row in seen.items():
    same = [key for key in row if key.startswith(("train/", "eval/", "best"))]
    assert "eval/loss" in same
    assert {key: row[key] for key in same} == {k: calm[name][k] for k in same}
    history = record.read_metrics(tmp_path / "killed" / name)
    assert history == record.read_metrics(tmp_path / "calm" / name)


def ask(*command):
  done = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  return done.stdout


def why_no_slurm():
  try:
    ask("sinfo", "--noheader")
  except FileNotFoundError:
    return "no Slurm: there is no sinfo"
  except (AssertionError, subprocess.TimeoutExpired) as error:
    return f"no Slurm: sinfo does not answer: {error}"
  return ""


@pytest.mark.skipif(bool(why_no_slurm()), reason=why_no_slurm())
def test_preempted_task_of_slurm_saves_queues_again_and_goes_on(
  folder, monkeypatch
):
  """Submits a job array of two programs to a real controller and node."""
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  (folder / "stays-0").touch()
  points = list(grid.product(NORMS, seed=range(2)))
  (folder / "points").write_text(json.dumps(points))
  runs = runner.choose(config.default(), grid.plan(points), folder)
  command = [sys.executable, str(folder / "program.py"), str(folder), "work"]
  jobs = slurm.submit(runs, folder, command, minutes=10, cpus=1)
  array = jobs[0].partition("_")[0]
  assert jobs == [f"{array}_0", f"{array}_1"]
  try:
    # Both stay in the run of seed 0; the first is told to make room.
    until(lambda: len(notes(folder, "began")) == 2)
    ask("scancel", "--signal=USR2", jobs[0])
    until(lambda: rows.read(folder / "runs.csv"))
    (row,) = rows.read(folder / "runs.csv")
    assert (row["status"], row["model.norm"]) == ("interrupted", "batch")
    (folder / "stays-0").unlink()
    # Slurm would start it again in two minutes. It can be told to do so now,
    # but not within the second in which the task was queued.
    waiting = ("squeue", "--noheader", "--states=PENDING", f"--jobs={jobs[0]}")
    until(lambda: ask(*waiting))
    time.sleep(3)
    ask("scontrol", "update", f"JobId={jobs[0]}", "StartTime=now")
    until(lambda: not ask("squeue", "--noheader", f"--name={folder.name}"))
  finally:
    subprocess.run(["scancel", array], check=False)
  logs = "".join(p.read_text() for p in (folder / "slurm").glob("*_log.out"))
  assert logs.count("Requeued job") == 1
  got = rows.read(folder / "runs.csv")
  assert [row["status"] for row in got] == ["done"] * 4
  assert len(notes(folder, "began")) == 5 and not notes(folder, "repeated")


@pytest.mark.parametrize(
  ("platform", "count", "workers", "expected"),
  [
    ("gpu", 4, 2, ["0,1", "2,3"]),
    ("gpu", 3, 2, ["0,1", "2"]),
    ("gpu", 1, 2, ["0", "0"]),
    ("tpu", 4, 4, ["0", "1", "2", "3"]),
  ],
)
def test_every_device_has_its_workers(
  monkeypatch, platform, count, workers, expected
):
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  name = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}[platform]
  envs = [
    shares.share(platform, count, number, workers)[0]
    for number in range(workers)
  ]
  assert [env[name] for env in envs] == expected
  crowded = "XLA_CLIENT_MEM_FRACTION" in envs[0]
  assert crowded == (workers > count)


@pytest.mark.parametrize("old", ["XLA_PYTHON_CLIENT_MEM_FRACTION", ""])
def test_a_share_of_memory_has_one_name(monkeypatch, old):
  """Regression: JAX refused to start where the caller had set the other."""
  names = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"}
  for name in names:
    monkeypatch.delenv(name, raising=False)
  given = old or "XLA_CLIENT_MEM_FRACTION"
  monkeypatch.setenv(given, "0.9")
  together = os.environ | shares.share("gpu", 1, 0, 2)[0]
  assert {name: together[name] for name in names & {*together}} == {
    given: "0.45"
  }


def test_devices_that_a_cluster_has_chosen_are_kept(monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
  env, _ = shares.share("gpu", 2, 1, 2)
  assert env["CUDA_VISIBLE_DEVICES"] == "7"


def test_every_core_has_one_worker_or_is_shared_by_all(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 8, 9})
  cores = [shares.share("cpu", 1, number, 2)[1] for number in range(2)]
  assert cores == [{3, 4}, {5, 8, 9}]
  cores = [shares.share("cpu", 1, number, 7)[1] for number in range(7)]
  assert cores == [{3}, {4}, {5}, {8}, {9}, {3}, {4}]
