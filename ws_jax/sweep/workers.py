"""Runs a sweep in worker processes of this machine.

A worker is a process that calls `work`. It reads the runs of the sweep from its
standard input, as one line of JSON, and writes a line of JSON for each run that
begins or ends. When its standard input ends, it saves and stops. So it stops
too if its parent is killed.
"""

import collections
import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from ws_jax.base import signals
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep import runner, shares
from ws_jax.sweep.grid import Run
from ws_jax.train import loop, record

# Exit code of a worker that was asked to stop, and did.
STOPPED = 130
# Exit code of a worker that says why no other could go on either.
UNUSABLE = 2
# A run is given up when its process has died this often at one point of it.
_DEATHS = 2

# Called with the number of the worker, its run, and the row if that has ended.
Notify = Callable[[int, Run, rows_lib.Row | None], None]


class Fleet:
  """Worker processes that share a list of runs and the machine.

  Args:
    runs: Runs to do, as `runner.choose` returns them.
    out: Folder of the sweep. Worker N writes its messages to `worker-N.log`.
    command: Command that starts a worker.
    workers: Number of workers.
    notify: Function that is called when a run begins or ends.
  """

  def __init__(
    self,
    runs: Sequence[Run],
    out: pathlib.Path,
    command: Sequence[str],
    *,
    workers: int,
    notify: Notify,
  ):
    self._runs = {run.name: run for run in runs}
    self._out, self._command, self._workers = out, command, workers
    self._notify = notify
    self._machine = shares.machine() if workers > 1 else None
    self._stopping = False
    self._processes: dict[int, subprocess.Popen[str]] = {}
    self._messages: queue.Queue[tuple[int, dict | int]] = queue.Queue()
    # Names of the runs of each worker, and how often a worker died in them when
    # the first had come so far.
    self._current: dict[int, list[str]] = collections.defaultdict(list)
    self._deaths: collections.Counter[Any] = collections.Counter()

  def run(self) -> None:
    """Starts the workers and returns when all runs are done.

    A worker that dies is replaced. A run has failed if it kills a second worker
    without having come further.

    Raises:
      KeyboardInterrupt: Ctrl-C or SIGTERM came, and all workers have saved and
        ended; or somebody else stopped all of them.
      ChildProcessError: The workers die before they begin a run.
    """
    with signals.interrupt():
      try:
        for number in range(self._workers):
          self._start(number)
        self._attend()
      except BaseException:
        self.stop()
        self._attend()
        raise
      finally:
        for process in self._processes.values():
          process.kill()
    if runner.unfinished(list(self._runs.values()), self._out):
      raise KeyboardInterrupt("the workers were stopped")

  def stop(self, seconds: float = 0.0) -> None:
    """Asks all workers to save and end, and waits up to `seconds` for that."""
    self._stopping = True
    processes = list(self._processes.values())
    for process in processes:
      assert process.stdin
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    end = time.monotonic() + seconds
    while time.monotonic() < end and None in [p.returncode for p in processes]:
      time.sleep(0.1)

  def _attend(self) -> None:
    """Handles the messages of the workers until all of them have ended."""
    while self._processes:
      number, message = self._messages.get()
      if isinstance(message, int):
        del self._processes[number]
        if message == UNUSABLE and not self._stopping:
          log = log_of(self._out, number)
          said = log.read_text("utf-8", "replace").strip().splitlines()
          raise ChildProcessError(said[-1] if said else f"see {log}")
        if message not in (0, STOPPED) and not self._stopping:
          self._replace(number, message)
      else:
        name, row = message["run"], message["row"]
        if row:
          self._current[number].remove(name)
        else:
          self._current[number].append(name)
        self._notify(number, self._runs[name], row)

  def _replace(self, number: int, code: int) -> None:
    """Starts a worker in the place of one that died."""
    cause = f"exit code {code}"
    if code < 0:
      cause = f"signal {-code} ({signal.strsignal(-code)})"
    names, log = self._current.pop(number, []), log_of(self._out, number)
    # A run that came further than the last time is not what kills its process.
    at = (*names, *(len(record.read_metrics(self._out / x)) for x in names[:1]))
    self._deaths[at] += 1
    if names and self._deaths[at] >= _DEATHS:
      reason = f"its process died {_DEATHS} times, {cause}: {log.name}"
      for name in names:
        row = runner.give_up(self._runs[name], self._out, reason)
        if row:
          self._notify(number, self._runs[name], row)
    elif self._deaths[at] > 2 * self._workers:
      raise ChildProcessError(f"workers die at once ({cause}): see {log}")
    self._start(number)

  def _start(self, number: int) -> None:
    env, cores = {}, None
    if self._machine:
      env, cores = shares.share(*self._machine, number, self._workers)
    with log_of(self._out, number).open("ab") as log, shares.pinned(cores):
      process = subprocess.Popen(
        self._command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        env=os.environ | env,
        # Ctrl-C is for the parent, which then asks each worker to stop, once.
        start_new_session=True,
      )
    self._processes[number] = process
    listen = threading.Thread(target=self._listen, args=(number, process))
    listen.daemon = True
    listen.start()

  def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
    """Sends a worker its runs, and queues its messages and its exit code."""
    assert process.stdin and process.stdout
    order = json.dumps([run.overrides for run in self._runs.values()])
    with contextlib.suppress(BrokenPipeError, ValueError):  # It may be closed.
      process.stdin.write(order + "\n")
      process.stdin.flush()
    for line in process.stdout:
      if line.startswith("{"):  # Others were printed before `work` began.
        self._messages.put((number, json.loads(line)))
    # The input is closed last, as its end asks the worker to stop.
    code = process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
      process.stdin.close()
    self._messages.put((number, code))


def work(
  config: ml_collections.ConfigDict,
  out: pathlib.Path,
  *,
  train_fn: runner.Train = loop.train_and_evaluate,
  stack: int = 1,
) -> None:
  """Trains runs as a worker; see the top of this file.

  Args:
    config: Base config of the sweep.
    out: Folder of the sweep.
    train_fn: Function to train with, as in `runner.run_sweep`.
    stack: Most runs to train in one program.

  Raises:
    KeyboardInterrupt, Interrupted: The worker was asked to stop, and has saved.
  """
  # A cluster sends this to all processes, and the parent deals with it.
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)
  # The parent reads standard output: everything else is printed elsewhere.
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)

  def notify(run: Run, row: rows_lib.Row | None) -> None:
    # A parent that has died reads nothing; the end of stdin stops the worker.
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps({"run": run.name, "row": row}), file=answers, flush=True)

  def stop_at_end_of_input() -> None:
    while os.read(0, 4096):
      pass
    # A SIGTERM would kill if it came after one of the cluster; SIGINT does not.
    os.kill(os.getpid(), signal.SIGINT)

  line = b""
  while not line.endswith(b"\n"):
    part = os.read(0, 1 << 16)
    if not part:
      raise KeyboardInterrupt("no work")
    line += part
  with signals.interrupt():
    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    runner.run_sweep(
      config,
      json.loads(line),
      out,
      train_fn=train_fn,
      notify=notify,
      stack=stack,
    )


def log_of(out: pathlib.Path, number: int) -> pathlib.Path:
  """Returns the path of the file for the messages of worker `number`."""
  return out / f"worker-{number}.log"
