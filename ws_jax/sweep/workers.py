"""Launchers: a sweep in worker processes of this machine.

A worker is a process that calls `work`. It reads the runs of the sweep from its
standard input, as one line of JSON, and writes a line of JSON for each run that
begins or ends. When its standard input ends it stops and saves: it does so
whether the parent has closed it or was killed.
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

import ml_collections

from ws_jax.base import signals
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep import runner, shares
from ws_jax.sweep.grid import Run
from ws_jax.train import loop, record

# Exit code of a worker that was told to stop, and did.
STOPPED = 130
# A run whose process died this often at one point is given up.
_DEATHS = 2

# Called with the number of the worker, what it is at, and how that ended.
Tell = Callable[[int, Run, rows_lib.Row | None], None]


class Fleet:
  """Worker processes at one list of runs, each on its share of the machine.

  Args:
    runs: what `runner.choose` has left to do.
    out: folder of the sweep; `worker-N.log` has what worker N says.
    command: starts a worker.
    workers: how many.
    tell: called when a run begins or ends.
  """

  def __init__(
    self,
    runs: Sequence[Run],
    out: pathlib.Path,
    command: Sequence[str],
    *,
    workers: int,
    tell: Tell,
  ):
    self._runs = {run.name: run for run in runs}
    self._out, self._command, self._workers = out, command, workers
    self._tell = tell
    self._machine = shares.machine() if workers > 1 else None
    self._stopping = False
    self._processes: dict[int, subprocess.Popen[str]] = {}
    self._messages: queue.Queue[tuple[int, dict | int]] = queue.Queue()
    # What each worker is at; how often one died at a run when it was so far.
    self._current: dict[int, str] = {}
    self._deaths: collections.Counter[tuple[str, int]] = collections.Counter()

  def run(self) -> None:
    """Starts the workers and returns when all runs are done.

    A worker that dies is replaced; a run that kills another one, having got no
    further, is a failed one.

    Raises:
      KeyboardInterrupt: on Ctrl-C or SIGTERM, when all workers have saved and
        ended, or if all of them were stopped from outside.
      ChildProcessError: the workers die before they begin.
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
    """Asks all workers to save and end; waits for it at most so long."""
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
    while self._processes:
      number, message = self._messages.get()
      if isinstance(message, int):
        del self._processes[number]
        if message not in (0, STOPPED) and not self._stopping:
          self._replace(number, message)
      else:
        name, row = message["run"], message["row"]
        self._current[number] = "" if row else name
        self._tell(number, self._runs[name], row)

  def _replace(self, number: int, code: int) -> None:
    cause = f"exit code {code}"
    if code < 0:
      cause = f"signal {-code} ({signal.strsignal(-code)})"
    name, log = self._current.pop(number, ""), log_of(self._out, number)
    # One that got further than the last time is not what kills its process.
    at = (name, len(record.read_metrics(self._out / name)))
    self._deaths[at] += 1
    if name and self._deaths[at] >= _DEATHS:
      reason = f"its process died {_DEATHS} times, {cause}: {log.name}"
      row = runner.give_up(self._runs[name], self._out, reason)
      if row:
        self._tell(number, self._runs[name], row)
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
    assert process.stdin and process.stdout
    order = json.dumps([run.overrides for run in self._runs.values()])
    with contextlib.suppress(BrokenPipeError, ValueError):  # it may be closed
      process.stdin.write(order + "\n")
      process.stdin.flush()
    for line in process.stdout:
      if line.startswith("{"):  # else printed before it knew that it is one
        self._messages.put((number, json.loads(line)))
    # Not sooner: the end of its input would tell it to stop.
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
) -> None:
  """Is a worker; see the top of this file.

  Args:
    config: the base config of the sweep.
    out: its folder.
    train_fn: as in `runner.run_sweep`.

  Raises:
    KeyboardInterrupt, Interrupted: it was told to stop, and has saved.
  """
  # That of a cluster is for the parent; its processes all receive it.
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)
  # Whatever else is printed shall not mix with what the parent reads.
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)

  def tell(run: Run, row: rows_lib.Row | None) -> None:
    # A parent that is gone will not read it; the end of stdin tells of that.
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps({"run": run.name, "row": row}), file=answers, flush=True)

  def stop_at_end_of_input() -> None:
    while os.read(0, 4096):
      pass
    # A second SIGTERM, after that of a cluster, would kill; this one does not.
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
      config, json.loads(line), out, train_fn=train_fn, tell=tell
    )


def log_of(out: pathlib.Path, number: int) -> pathlib.Path:
  """Where worker `number` writes what it has to say to people."""
  return out / f"worker-{number}.log"
