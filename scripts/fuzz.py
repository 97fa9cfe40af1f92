"""Feeds commands with random and damaged input: none may end in a traceback.

  python scripts/fuzz.py --minutes=30
  python scripts/fuzz.py --only=json,rows --cases=20000 --seed=7
  python scripts/fuzz.py --cases=1000000 --minutes=600 --workers=16
  python scripts/fuzz.py --engine=atheris --only=weights

Of each kind of input `fuzzing/` has a strategy of hypothesis and what is
done with a case: the functions that a command calls. A case ends well or with
one of the errors of which the command makes one line. Everything else is a
failure: another error, an end after more than ten seconds, a jump in memory, a
file written outside of the folder, a process, a connection, a pickle. Kinds and
workers have processes of their own. At the end it prints a table, and exits
with 1 if anything failed. What failed is kept, and named.

Start reading at `main`.
"""

import contextlib
import faulthandler
import hashlib
import importlib
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self
from unittest import mock

from ws_jax.base import extras

with extras.program("report", by="scripts/fuzz.py"):
  from absl import app, flags

import hypothesis  # of the extra `test`

_MINUTES = flags.DEFINE_float(
  "minutes", 10.0, "Time after which no new case begins.", lower_bound=0.0
)
_CASES = flags.DEFINE_integer(
  "cases", 1_000_000, "Number of cases of all kinds, if there is time for them."
)
_ONLY = flags.DEFINE_list("only", [], "Kinds of input. Default: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the cases.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes that work at a time.")
_ENGINE = flags.DEFINE_enum(
  "engine",
  "hypothesis",
  ["hypothesis", "atheris"],
  "atheris is guided by the lines of this package that a case reaches, and must"
  " be installed besides.",
)
_WORK = flags.DEFINE_string("work", None, "For the processes it starts itself.")

# Whatever takes longer than this hangs, in seconds; and in native code, which
# no signal ends.
_HANGS_AFTER, _IS_DEAD_AFTER = 10, 120
# A case may not take more memory than this, in MiB. It is what Pillow needs for
# the largest image that is read, and to convert it.
_MEMORY = 640
# hypothesis remembers all cases of a test: a test has no more than these.
_TOGETHER = 1000

# What no input may make a program do, as `sys.addaudithook` names it.
_FORBIDDEN = {
  *("os.exec", "os.fork", "os.posix_spawn", "os.system", "pickle.find_class"),
  *("socket.connect", "socket.getaddrinfo", "subprocess.Popen"),
}
_WRITES = {
  *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"),
  *("os.truncate", "os.chmod", "shutil.rmtree", "shutil.move"),
}
_MAY_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Hang(BaseException):
  """A case that takes too long; nothing that handles errors handles it."""


class Watch:
  """Runs cases, and keeps what is wrong with them.

  It is a context: what ends a case that hangs, and at last the process, is
  taken back when the context ends.

  Args:
    folder: Folder that a case may write in.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.cases, self.failures = 0, dict[str, str]()
    self.first = self.peak = _peak()
    self._inside = False
    self._bad: list[str] = []

  def __enter__(self) -> Self:
    self._before = signal.signal(signal.SIGALRM, self._alarm)
    if not _watches:  # a hook cannot be taken off again
      sys.addaudithook(lambda event, args: _watches[-1].audit(event, args))
    _watches.append(self)
    return self

  def __exit__(self, *error: object) -> None:
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, self._before)

  def run(self, case: Callable[[Any], None], value: Any) -> None:
    """Runs a case; what is wrong with it becomes a failure."""
    if self.cases % 50 == 0:
      error: Any = sys.__stderr__
      faulthandler.dump_traceback_later(_IS_DEAD_AFTER, exit=True, file=error)
    before = self.peak
    problem = self._problem(case, value)
    self.peak = _peak()
    if self.cases < 20:
      self.first = self.peak  # what is loaded once
    elif not problem and self.peak - before > _MEMORY:
      problem = f"takes {self.peak - before} MiB"
    self.cases += 1
    if problem and (key := _key(problem)) not in self.failures:
      self.failures[key] = f"{problem}\ninput: {_shown(value)}"

  def _problem(self, case: Callable[[Any], None], value: Any) -> str:
    self._bad.clear()
    signal.alarm(_HANGS_AFTER)
    said = io.StringIO()
    try:
      with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
        mock.patch.object(os, "fsync"),
        # The first import of a module may write its bytecode beside it.
        mock.patch.object(sys, "dont_write_bytecode", True),
      ):
        warnings.simplefilter("ignore")
        self._inside = True
        try:
          case(value)
        finally:
          self._inside = False
          signal.alarm(0)
    except (KeyboardInterrupt, hypothesis.errors.UnsatisfiedAssumption):
      raise
    except Hang as error:
      return "".join(traceback.format_tb(error.__traceback__)) + "hangs"
    except BaseException:
      return traceback.format_exc()
    if "Traceback (most recent call last)" in said.getvalue():
      return f"it said: {said.getvalue()}"
    return self._bad[0] if self._bad else ""

  def _alarm(self, number: int, frame: Any) -> None:
    raise Hang

  def audit(self, event: str, args: tuple[Any, ...]) -> None:
    """Notes what no input may bring about."""
    if not self._inside:
      return
    if event in _FORBIDDEN:
      self._bad.append(f"{event}{args!r:.300}")
    writes = event in _WRITES
    if event == "open":
      _, mode, how = args
      writes = bool(how & _MAY_WRITE) if mode is None else set(mode) & {*"wax+"}
    if writes and isinstance(args[0], (str, bytes, os.PathLike)):
      path = os.path.realpath(os.fsdecode(args[0]))
      cache = os.path.realpath(os.environ.get("XDG_CACHE_HOME", self.folder))
      allowed = f"{os.path.realpath(self.folder)}/", f"{cache}/"
      if not path.startswith((*allowed, "/dev/null", "/proc/")):
        self._bad.append(f"{event} outside of the folder: {args!r:.300}")


_watches: list[Watch] = []


def _peak() -> int:
  """Returns the largest resident memory so far, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _key(problem: str) -> str:
  """Returns what failures of one cause have in common."""
  lines = [line.strip() for line in problem.splitlines()]
  places = [line for line in lines if line.startswith("File ")]
  own = [line for line in places if "/ws_jax/" in line] or places
  return f"{own[-1] if own else ''} {lines[-1].partition(':')[0][:80]}"


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) < 20_000 else f"{text[:20_000]}..."


def fuzz(
  kind: str, cases: int, seed: int, folder: pathlib.Path, until: float
) -> Iterator[Watch]:
  """Runs cases of a kind of input; yields after each thousand.

  Args:
    kind: Name of the kind.
    cases: Number of cases.
    seed: Seed of the cases.
    folder: Folder to work in.
    until: Time by `time.monotonic` after which no thousand begins.
  """
  strategy, case = kinds()[kind](folder)
  with Watch(folder) as watch:
    while watch.cases < cases and (not watch.cases or time.monotonic() < until):
      left = min(_TOGETHER, cases - watch.cases)
      test = _test(strategy, lambda value: watch.run(case, value), left, until)
      hypothesis.seed(f"{kind} {seed} {watch.cases}")(test)()
      yield watch


def kinds() -> dict[str, Callable[[pathlib.Path], tuple[Any, Any]]]:
  """Returns the kinds of input; the import takes seconds."""
  return importlib.import_module("fuzzing").KINDS


def _test(
  strategy: Any, run: Callable[[Any], None], cases: int, until: float
) -> Any:
  """Returns a test of hypothesis that runs that many cases."""

  @hypothesis.settings(
    max_examples=cases,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[*hypothesis.HealthCheck],
  )
  @hypothesis.given(strategy)
  def test(value):
    if time.monotonic() < until:
      run(value)

  return test


def _guided(
  kind: str, cases: int, seed: int, folder: pathlib.Path, until: float
) -> None:
  """Runs cases that atheris chooses; prints its report and ends the process."""
  atheris: Any = importlib.import_module("atheris")
  with atheris.instrument_imports(include=["ws_jax"]):
    strategy, case = kinds()[kind](folder)

  def run(value: Any) -> None:
    watch.run(case, value)
    if watch.cases % 100 == 0 or watch.cases >= cases:
      _tell(watch)
    if watch.cases >= cases or time.monotonic() > until:
      _tell(watch)
      os._exit(0)

  test = _test(strategy, run, cases, float("inf"))
  sys.stderr.flush()
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libFuzzer says much
  atheris.Setup(
    [sys.argv[0], f"-seed={seed + 1}"], test.hypothesis.fuzz_one_input
  )
  with Watch(folder) as watch:
    atheris.Fuzz()


def _tell(watch: Watch) -> None:
  """Prints what a worker has found so far, as a line of JSON."""
  found = {
    "cases": watch.cases,
    "failures": watch.failures,
    "grown": watch.peak - watch.first,
  }
  print(json.dumps(found), flush=True)


def _work(
  kind: str, cases: int, seed: int, folder: str, minutes: float
) -> None:
  """Runs the cases of one worker."""
  until = time.monotonic() + 60 * minutes
  if _ENGINE.value == "atheris":
    _guided(kind, cases, seed, pathlib.Path(folder), until)
  for watch in fuzz(kind, cases, seed, pathlib.Path(folder), until):
    _tell(watch)


def _together(
  kind: str, cases: int, root: pathlib.Path, minutes: float
) -> dict[str, Any]:
  """Runs a kind of input in all workers; returns what they have found."""
  began, started = time.monotonic(), []
  for i in range(_WORKERS.value):
    folder = root / kind / str(i)
    folder.mkdir(parents=True)
    seed = _SEED.value * 1000 + i
    share = -(-cases // _WORKERS.value)
    work = json.dumps([kind, share, seed, str(folder / "in"), minutes])
    (folder / "in").mkdir()
    command = [sys.executable, __file__, f"--work={work}"]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
      started.append(
        subprocess.Popen(
          [*command, f"--engine={_ENGINE.value}"],
          stdout=out,
          stderr=err,
          cwd=folder / "in",
          env=os.environ | _environment(folder / "in"),
        )
      )
  total: dict[str, Any] = {"cases": 0, "failures": {}, "grown": 0}
  for i, process in enumerate(started):
    try:
      code = process.wait(60 * minutes + 10 * _IS_DEAD_AFTER)
    except subprocess.TimeoutExpired:
      process.kill()
      code = process.wait()
    folder = root / kind / str(i)
    told = (folder / "out").read_text().splitlines()
    found = json.loads(told[-1]) if told else {}
    total["cases"] += found.get("cases", 0)
    total["failures"] |= found.get("failures", {})
    total["grown"] = max(total["grown"], found.get("grown", 0))
    if code:
      said = (folder / "err").read_text(errors="replace")[-3000:]
      total["failures"][f"exit code {code}"] = f"{folder}: {said}"
    beside = {path.name for path in folder.iterdir()} - {"in", "out", "err"}
    if beside:
      total["failures"]["beside"] = f"written beside the folder: {beside}"
  total["seconds"] = time.monotonic() - began
  return total


def _environment(folder: pathlib.Path) -> dict[str, str]:
  """Returns variables by which nothing outside of a folder is used."""
  return {
    "HOME": str(folder),
    "XDG_CACHE_HOME": str(folder / "cache"),
    "TFDS_DATA_DIR": str(folder / "tfds"),
    "TMPDIR": str(folder),
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "PYTHONWARNINGS": "ignore",
  }


def main(argv: list[str]) -> None:
  """Runs all kinds one after the other, and prints the table."""
  del argv
  if _WORK.value:
    _work(*json.loads(_WORK.value))
    return
  shares = importlib.import_module("fuzzing").SHARES
  names = _ONLY.value or list(shares)
  if unknown := [name for name in names if name not in shares]:
    sys.exit(f"error: no kind {unknown[0]!r}; there are {', '.join(shares)}")
  root = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
  end = time.monotonic() + 60 * _MINUTES.value
  table, total = [], sum(shares[name] for name in names)
  for i, name in enumerate(names):
    cases = -(-_CASES.value * shares[name] // total)
    minutes = (end - time.monotonic()) / 60 / (len(names) - i)
    found = _together(name, cases, root, max(minutes, 0))
    for number, text in enumerate(found["failures"].values()):
      digest = hashlib.sha256(text.encode()).hexdigest()[:8]
      (root / f"{name}-{number}-{digest}.txt").write_text(text)
      print(f"  {name}: {text[:3000]}", flush=True)
    rate = found["cases"] / found["seconds"]
    row = name, found["cases"], f"{rate:.0f}", len(found["failures"])
    table.append((*row, found["grown"]))
    print(f"{name}: {row[1]} cases, {row[3]} failures", flush=True)
    if not found["failures"]:
      shutil.rmtree(root / name)
  table.append(
    ("all", sum(row[1] for row in table), "", sum(r[3] for r in table), "")
  )
  print("\n| kind | cases | cases/s | failures | MiB more |")
  print("|---|---|---|---|---|")
  for line in table:
    print("| {} | {} | {} | {} | {} |".format(*line))
  if table[-1][3]:
    sys.exit(f"what failed is in {root}")
  shutil.rmtree(root)


if __name__ == "__main__":
  app.run(main)
