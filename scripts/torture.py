"""Kills training, sweeps and reports at random moments, and fills their disk.

  python scripts/torture.py --minutes=30
  python scripts/torture.py --only=train,bytes --kills=5 --seed=7

A network that trains in a second is trained once without disturbance. Then the
same command is killed (kill -9) again and again, started again each time, and
must leave the same: parameters and optimizer to the bit, `metrics.jsonl`, what
TensorBoard draws, the rows of a sweep. Everything takes place in one folder and
on the loopback interface. At the end it prints a table, and exits with 1 if
anything failed; the folders of what failed are kept, and named.

Start reading at `main`. Each `_test` yields the problems of one case at a time.
A case runs in a process of its own, forked from this one, which has imported
everything and has not started JAX.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ws_jax.base import extras

with extras.program("report", by="scripts/torture.py"):
  from absl import app, flags

import numpy as np
import PIL.Image

from ws_jax import config, report
from ws_jax import main as ws_main
from ws_jax.report import figures  # noqa: F401  (imported before the forks)
from ws_jax.sweep import rows, runner
from ws_jax.train import backend, loop, processes, record  # noqa: F401
from ws_jax.weights import steps

_MINUTES = flags.DEFINE_float(
  "minutes", 10.0, "Time after which no new case begins.", lower_bound=0.0
)
_KILLS = flags.DEFINE_integer(
  "kills", 200, "Number of cases of each test, if there is time for them."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments and the bytes.")
_ONLY = flags.DEFINE_list("only", [], "Tests to run. Default: all.")

# Longest time that a run needs to save and end after SIGTERM, in seconds. It
# is seconds that are compiled in, and not saving.
_SAVES_WITHIN = 60
# Whatever takes longer than this hangs.
_HANGS_AFTER = 300

_BASE = {
  "model.name": "resnet8",
  "model.width": 0.25,
  "model.num_groups": 2,
  "data.batch_size": 16,
  "data.eval_batch_size": 12,
  "task.crop_padding": 1,
  "optim.learning_rate": 0.1,
  "optim.ema_decay": 0.5,
  "train.steps": 24,
  "train.log_every_steps": 1,
  "train.eval_every_steps": 8,
  "train.checkpoint_every_steps": 4,
  "train.keep_checkpoints": 2,
}


# What is wrong with each case, one after the other.
Problems = Generator[list[str], None, None]


class Case:
  """The folder of one test, and the process that is at work in it.

  Args:
    folder: Folder for workdirs and logs.
    rng: Source of the moments.
  """

  def __init__(self, folder: pathlib.Path, rng: random.Random):
    self.folder, self.rng = folder, rng
    self.log = folder / "log.txt"
    folder.mkdir(parents=True)

  def start(self, function: Callable[..., object], *args, **named) -> int:
    """Calls a function in a new process; returns its process id."""
    sys.stdout.flush()
    if pid := os.fork():
      return pid
    code = 99
    try:
      with self.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
      function(*args, **named)
      code = 0
    except SystemExit as error:
      code = error.code if isinstance(error.code, int) else 1
    except BaseException:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

  def finish(self, pid: int) -> int:
    """Waits for a process; returns its exit code, minus a signal."""
    end = time.monotonic() + _HANGS_AFTER
    while time.monotonic() < end:
      done, status = os.waitpid(pid, os.WNOHANG)
      if done:
        return os.waitstatus_to_exitcode(status)
      time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"no end within {_HANGS_AFTER} s: {self.log}")

  def run(self, function: Callable[..., object], *args, **named) -> int:
    """Calls a function in a new process; returns its exit code."""
    return self.finish(self.start(function, *args, **named))

  def compare(self, one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns how two finished runs differ; it is found in a new process."""
    answer = self.folder / "answer.json"
    answer.unlink(missing_ok=True)
    write = lambda: answer.write_text(json.dumps(_same(one, other)))
    code = self.run(write)
    return json.loads(answer.read_text()) if not code else [f"exit code {code}"]

  def kill_after(self, pids: list[int], seconds: float) -> list[int]:
    """Kills processes after some seconds; returns how they ended."""
    time.sleep(seconds)
    for pid in pids:
      os.kill(pid, signal.SIGKILL)  # one that has ended is still ours to wait
    return [self.finish(pid) for pid in pids]


def _train(workdir: pathlib.Path, number: int = 0, port: int = 0, **more):
  """Runs the command that trains."""
  keys = _BASE | {k.replace("__", "."): x for k, x in more.items()}
  name = {"model.name": keys.pop("model.name")}  # it decides what others mean
  argv = ["ws_jax.main", "--config=configs/fashion_mnist_10k.py"]
  argv += [f"--config.{key}={x}" for key, x in (name | keys).items()]
  argv += [f"--workdir={workdir}"]
  if port:
    argv += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    argv += [f"--process_id={number}"]
  ws_main.main(ws_main.parse(argv))


def _same(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Returns how two finished runs differ, and what should not be there."""
  import jax
  from orbax.checkpoint import v1 as ocp
  from tensorboard.backend.event_processing import event_accumulator

  def drawn(workdir):
    events = event_accumulator.EventAccumulator(str(workdir))
    events.Reload()
    tags: Any = events.Tags()["scalars"]
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in tags}

  def arrays(workdir):
    folder = steps.steps(workdir)[0]
    shapes: Any = ocp.metadata(str(folder)).metadata
    empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
    state = jax.tree.leaves_with_path(ocp.load(str(folder), empty))
    assert steps.check(folder) and len(state) > 50, folder  # all of it
    named = {jax.tree_util.keystr(p): np.asarray(x) for p, x in state}
    return folder.name, named

  problems = []
  (at, ours), (end, theirs) = arrays(one), arrays(other)
  if at != end or ours.keys() != theirs.keys():
    problems.append(f"the last checkpoint is {at}, not {end}")
  elif off := [
    name for name, x in ours.items() if x.tobytes() != theirs[name].tobytes()
  ]:
    problems.append(f"{len(off)} arrays differ, as {off[0]}")
  texts = [(w / "metrics.jsonl").read_text() for w in (one, other)]
  if texts[0] != texts[1]:
    problems.append("metrics.jsonl differs")
  if drawn(one) != drawn(other):
    problems.append("TensorBoard draws something else")
  status = json.loads((one / "status.json").read_text())
  if status["status"] != "done":
    problems.append(f"status.json says {status['status']}")
  kinds = lambda workdir: {p.name.split(".out.")[0] for p in workdir.iterdir()}
  if left := kinds(one) ^ kinds(other):
    problems.append(f"files left or missing: {sorted(left)}")
  folders = lambda workdir: {
    p.name
    for p in (workdir / "checkpoints").iterdir()
    if not p.name.endswith(".damaged")  # we did that
  }
  if folders(one) != folders(other):
    problems.append(f"checkpoints are {sorted(folders(one))}")
  return problems


def _damage(case: Case, workdir: pathlib.Path) -> None:
  """Flips a byte of the newest checkpoint, sometimes, if there is an older."""
  found = steps.steps(workdir)
  if len(found) > 1 and case.rng.random() < 0.3:
    files = [path for path in sorted(found[0].rglob("*")) if path.is_file()]
    path = case.rng.choice([path for path in files if path.stat().st_size])
    path.write_bytes(_flip(case, path.read_bytes()))


def _flip(case: Case, content: bytes) -> bytes:
  """Returns the content of a file with one bit of it flipped."""
  flipped = bytearray(content)
  flipped[case.rng.randrange(len(content))] ^= 1 << case.rng.randrange(8)
  return bytes(flipped)


def _killed(case: Case, **more) -> Problems:
  """Kills a run several times, lets it end, and compares it."""
  reference = case.folder / "reference"
  begun = time.monotonic()
  if case.run(_train, reference, **more):
    yield [f"it does not even run: {case.log}"]
    return
  took, number = time.monotonic() - begun, 0
  while True:
    number += 1
    workdir = case.folder / f"run{number}"
    train = functools.partial(_train, workdir, **more)
    ended = []
    for _ in range(case.rng.randint(1, 4)):
      pid = case.start(train)
      (code,) = case.kill_after([pid], case.rng.uniform(0.1, 1.1) * took)
      _damage(case, workdir)
      bad = code not in (0, -signal.SIGKILL)
      ended.append([f"exit code {code}"] if bad else [])
    code = case.run(train)
    problems = [f"exit code {code}"] if code else []
    problems += case.compare(workdir, reference)
    yield [f"{workdir}: {problem}" for problem in problems]
    yield from ended
    if not problems:
      shutil.rmtree(workdir)


def _test_train(case: Case) -> Problems:
  """Kills training on arrays in memory."""
  yield from _killed(case, data__name=_images(case.folder / "images.npz"))


def _test_rows(case: Case) -> Problems:
  """Kills a run whose log rows are thinned out again and again."""
  images = _images(case.folder / "images.npz")
  yield from _killed(case, data__name=images, train__keep_log_rows=3)


def _test_stream(case: Case) -> Problems:
  """Kills training on images that are decoded meanwhile."""
  _jpegs(case.folder / "jpegs")
  more = {
    "data__name": case.folder / "jpegs",
    "data__source": "stream",
    "data__image_size": 8,
    "data__eval_resize": 9,
  }
  yield from _killed(case, **more)


def _test_processes(case: Case) -> Problems:
  """Kills two processes that train one run."""
  images = _images(case.folder / "images.npz")

  def both(workdir):
    with socket.socket() as one:
      one.bind(("127.0.0.1", 0))
      port = one.getsockname()[1]
    more = {"port": port, "data__name": images}
    part = lambda i: functools.partial(_train, workdir, i, **more)
    return [case.start(part(i)) for i in range(2)]

  reference = case.folder / "reference"
  begun = time.monotonic()
  codes = [case.finish(pid) for pid in both(reference)]
  if any(codes):
    yield [f"they do not even run: {case.log}"]
    return
  took, number = time.monotonic() - begun, 0
  while True:
    number += 1
    workdir = case.folder / f"run{number}"
    kills = case.rng.randint(1, 3)
    for _ in range(kills):
      case.kill_after(both(workdir), case.rng.uniform(0.2, 1.1) * took)
      _damage(case, workdir)
    codes = [case.finish(pid) for pid in both(workdir)]
    problems = [f"exit codes {codes}"] if any(codes) else []
    problems += case.compare(workdir, reference)
    yield [f"{workdir}: {problem}" for problem in problems]
    yield from [[]] * kills


def _test_sigterm(case: Case) -> Problems:
  """Sends SIGTERM at a random moment, and looks as a scheduler does."""
  images = _images(case.folder / "images.npz")
  reference, workdir = case.folder / "reference", case.folder / "run"
  train = functools.partial(_train, data__name=images)
  begun = time.monotonic()
  case.run(train, reference)
  took = time.monotonic() - begun
  while True:
    shutil.rmtree(workdir, ignore_errors=True)
    pid = case.start(train, workdir)
    time.sleep(case.rng.uniform(0, 1) * took)
    os.kill(pid, signal.SIGTERM)
    sent = time.monotonic()
    code = case.finish(pid)
    wait, problems = time.monotonic() - sent, []
    if wait > _SAVES_WITHIN:
      problems.append(f"it took {wait:.0f} s to save and end")
    # Before it has begun to train, the signal has its usual effect.
    if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
      problems.append(f"exit code {code}")
    if code == 128 + signal.SIGTERM:
      status = json.loads((workdir / "status.json").read_text())
      kept = steps.steps(workdir)
      if not kept or int(kept[0].name) != status["step"]:
        problems.append(f"step {status['step']} is not saved")
    if case.run(train, workdir):
      problems.append("it does not go on")
    problems += case.compare(workdir, reference)
    yield problems


def _test_sweep(case: Case) -> Problems:
  """Kills the one or two processes that do a sweep."""
  base = config.apply(
    config.load("configs/fashion_mnist_10k.py"),
    _BASE | {"data.name": str(_images(case.folder / "images.npz"))},
  )
  points = [{"optim.learning_rate": x, "train.steps": 8} for x in (0.1, 0.2)]
  points += [{"optim.learning_rate": x, "train.steps": 12} for x in (0.1, 9e9)]

  def work(out):
    backend.configure()
    runner.run_sweep(base, points, out)

  def table(out):
    # Somebody may commit while this runs.
    kept = [
      {k: x for k, x in row.items() if not k.startswith(("seconds.", "commit"))}
      for row in rows.read(out / "runs.csv")
    ]
    return sorted(kept, key=lambda row: row["key"])

  reference = case.folder / "reference"
  begun = time.monotonic()
  if case.run(work, reference):
    yield [f"it does not even run: {case.log}"]
    return
  took, number = time.monotonic() - begun, 0
  while True:
    number += 1
    out = case.folder / f"sweep{number}"
    ended = []
    for _ in range(case.rng.randint(1, 4)):
      pids = [case.start(work, out) for _ in range(number % 2 + 1)]
      codes = case.kill_after(pids, case.rng.uniform(0, 1) * took)
      bad = set(codes) - {0, -signal.SIGKILL}
      ended.append([f"exit codes {codes}"] if bad else [])
    code = case.run(work, out)
    problems = [f"exit code {code}"] if code else []
    if str(table(out)) != str(table(reference)):
      problems.append("its rows are others")
    yield [f"{out}: {problem}" for problem in problems]
    yield from ended


def _test_report(case: Case) -> Problems:
  """Kills the writing of a report: each file is whole or not there."""
  out = case.folder / "sweep"
  base = config.apply(
    config.load("configs/fashion_mnist_10k.py"),
    _BASE | {"data.name": str(_images(case.folder / "images.npz"))},
  )
  points = [{"seed": x, "train.steps": 8} for x in (0, 1)]
  case.run(runner.run_sweep, base, points, out)
  reference, target = case.folder / "reference", case.folder / "report"
  begun = time.monotonic()
  if case.run(report.write, out, reference, "x"):
    yield [f"it does not even run: {case.log}"]
    return
  took = time.monotonic() - begun
  whole = {p.name: p.read_bytes() for p in reference.iterdir()}
  while True:
    shutil.rmtree(target, ignore_errors=True)
    pid = case.start(report.write, out, target, "x")
    case.kill_after([pid], case.rng.uniform(0.2, 1) * took)
    problems = [
      f"{path} is not whole"
      for path in (target.iterdir() if target.exists() else ())
      if not path.name.startswith(".") and path.read_bytes() != whole[path.name]
    ]
    if case.run(report.write, out, target, "x"):
      problems.append("it cannot be written again")
    yield problems


def _test_disk(case: Case) -> Problems:
  """Fills the disk but for some bytes, or makes it read-only."""
  images = _images(case.folder / "images.npz")
  reference, disk = case.folder / "reference", case.folder / "disk"
  train = functools.partial(_train, data__name=images)
  case.run(train, reference)
  used = sum(p.stat().st_size for p in reference.rglob("*") if p.is_file())
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={8 * used}", "none", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    print("  disk: left out, as no tmpfs can be mounted here", flush=True)
    return
  workdir, ballast = disk / "run", disk / "ballast"
  try:
    for number in range(10**9):
      shutil.rmtree(workdir, ignore_errors=True)
      left = int(case.rng.random() ** 2 * 2 * used)
      _fill(ballast, disk, left)
      case.log.write_bytes(b"")
      code = case.run(train, workdir)
      said = case.log.read_text()
      problems = _of_failure(workdir, code, said)
      ballast.unlink()
      if number % 4 == 1:
        problems += _read_only(case, disk, workdir, train)
      if number % 4 == 2:
        problems += _gone(case, workdir, train)
      if case.run(train, workdir):
        problems.append("it does not go on when there is place again")
      problems += case.compare(workdir, reference)
      yield [f"with {left} bytes left: {problem}" for problem in problems]
  finally:
    subprocess.run(["umount", str(disk)], check=False)


def _read_only(case, disk, workdir, train) -> list[str]:
  """Returns what is wrong where the disk may only be read."""
  remount = lambda how: subprocess.run(
    ["mount", "-o", f"remount,{how}", str(disk)], check=True
  )
  remount("ro")
  case.log.write_bytes(b"")
  code = case.run(train, workdir)
  remount("rw")
  return _of_failure(workdir, code, case.log.read_text(), wrote=False)


def _gone(case, workdir, train) -> list[str]:
  """Returns what is wrong where the folder of a run is deleted meanwhile."""
  shutil.rmtree(workdir, ignore_errors=True)
  case.log.write_bytes(b"")
  pid = case.start(train, workdir)
  while not (workdir / "metrics.jsonl").exists():
    time.sleep(0.01)
  time.sleep(case.rng.uniform(0, 1))
  shutil.rmtree(workdir, ignore_errors=True)
  code = case.finish(pid)
  return _of_failure(workdir, code, case.log.read_text())


def _of_failure(workdir, code, said, wrote=True) -> list[str]:
  """Returns what is wrong with how a run ended on a full disk."""
  if code == 0:
    return []
  problems = []
  lines = [line for line in said.splitlines() if line.startswith("error: ")]
  if code not in (1, 2) or len(lines) != 1 or "Traceback" in said:
    problems.append(f"exit code {code}, and it said: {said[-2000:]}")
  with contextlib.suppress(OSError, ValueError):
    status = json.loads((workdir / "status.json").read_text())["status"]
    if wrote and status != "failed":
      problems.append(f"status.json says {status}")
  return problems


def _fill(ballast: pathlib.Path, disk: pathlib.Path, left: int) -> None:
  """Fills a disk but for some bytes."""
  stat = os.statvfs(disk)
  size = max(0, stat.f_bavail * stat.f_frsize - left)
  ballast.write_bytes(bytes(size))


def _test_bytes(case: Case) -> Problems:
  """Flips a bit of a checkpoint, or cuts a file short, to be found."""
  images = _images(case.folder / "images.npz")
  workdir = case.folder / "run"
  more = {"data__name": images, "train__steps": 8}
  if case.run(_train, workdir, **more):
    yield [f"it does not even run: {case.log}"]
    return
  newest, older = steps.steps(workdir)[:2]
  files = [p for p in sorted(newest.rglob("*")) if p.stat().st_size]
  files = [p for p in files if p.is_file()]
  while True:
    path = case.rng.choice(files)
    content = path.read_bytes()
    cut = content[: case.rng.randrange(len(content))]
    broken = case.rng.choice([_flip(case, content), cut])
    path.write_bytes(broken)
    with contextlib.redirect_stderr(io.StringIO()):
      _, read, _ = steps.read_newest(workdir, lambda folder: None)
    path.write_bytes(content)
    if (
      broken.strip() != content.strip()
    ):  # a line's end at the end means nothing
      yield [] if read == older else [f"{path}: {broken!r:.200}"]


def _test_fuzz(case: Case) -> Problems:
  """Feeds commands with random and damaged input; see `fuzz.py`."""
  script = pathlib.Path(__file__).with_name("fuzz.py")
  flags = ["--cases=2000", "--minutes=10"]
  env = os.environ | {"TMPDIR": str(case.folder)}
  while True:
    more = [*flags, f"--seed={case.rng.randrange(2**20)}"]
    command = [sys.executable, str(script), *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    yield [done.stdout + done.stderr] if done.returncode else []


def _images(path: pathlib.Path) -> pathlib.Path:
  """Writes images whose brightness tells the class; returns the path."""
  rng = np.random.default_rng(0)
  made: dict[str, Any] = {}
  for split, size in (("train", 100), ("test", 29)):
    labels = np.arange(size, dtype=np.int32) % 4
    noise = rng.integers(0, 80, (size, 8, 8, 1))
    made[f"{split}_x"] = (noise + 50 * labels[:, None, None, None]).astype("u1")
    made[f"{split}_y"] = labels
  np.savez(path, **made)
  return path


def _jpegs(folder: pathlib.Path) -> None:
  """Writes a folder of images, `SPLIT/CLASS/*.jpg`."""
  rng = np.random.default_rng(0)
  for split, each in (("train", 25), ("test", 7)):
    for label in range(4):
      inner = folder / split / f"class{label}"
      inner.mkdir(parents=True)
      for i in range(each):
        pixels = rng.integers(0, 80, (12, 14, 3)) + 50 * label
        PIL.Image.fromarray(pixels.astype("u1")).save(inner / f"{i}.jpg")


TESTS = {
  "train": _test_train,
  "rows": _test_rows,
  "stream": _test_stream,
  "processes": _test_processes,
  "sigterm": _test_sigterm,
  "sweep": _test_sweep,
  "report": _test_report,
  "disk": _test_disk,
  "bytes": _test_bytes,
  "fuzz": _test_fuzz,
}


def main(argv: list[str]) -> None:
  """Runs the tests one after the other, and prints the table."""
  del argv
  names = _ONLY.value or list(TESTS)
  if unknown := [name for name in names if name not in TESTS]:
    sys.exit(f"error: no test {unknown[0]!r}; there are {', '.join(TESTS)}")
  root = pathlib.Path(tempfile.mkdtemp(prefix="torture"))
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  end = time.monotonic() + 60 * _MINUTES.value
  table = []
  for i, name in enumerate(names):
    until = time.monotonic() + (end - time.monotonic()) / (len(names) - i)
    case = Case(root / name, random.Random(f"{name} {_SEED.value}"))
    cases, failed = 0, []
    with contextlib.closing(TESTS[name](case)) as running:
      for problems in running:
        cases += 1
        failed += problems[:1]
        for problem in problems:
          print(f"  {name}: {problem}", flush=True)
        if cases >= _KILLS.value or time.monotonic() > until:
          break
    table.append((name, cases, len(failed)))
    print(f"{name}: {cases} cases, {len(failed)} failures", flush=True)
    if not failed:
      shutil.rmtree(root / name)
  print("\n| test | cases | failures |\n|---|---|---|")
  for line in table:
    print("| {} | {} | {} |".format(*line))
  if any(failures for _, _, failures in table):
    sys.exit(f"what failed is in {root}")
  shutil.rmtree(root)


if __name__ == "__main__":
  app.run(main)
