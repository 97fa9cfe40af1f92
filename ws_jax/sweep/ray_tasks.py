"""Trains a sweep as tasks of Ray: a task for each run or stack, on any node.

Ray chooses the node of a task, starts it again where a node or a process was
lost, and cancels what is under way when the sweep is stopped. A task does what
a worker of this machine does: it locks its run, goes on from its checkpoint,
and writes its row to the one `runs.csv`, so that all nodes must see the folder
of the sweep. A process of Ray does one task after another, and compiles a
program once for all of its runs. Read `train` first, then `_run`.
"""

import functools
import os
import pathlib
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from ws_jax.base import extras, signals
from ws_jax.sweep import grid, ray_cluster, runner, shares
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep.grid import Run
from ws_jax.train import backend, loop

# Number of times that Ray starts a run again whose node or process was lost.
_RETRIES = 5
# Seconds between two looks at the nodes of the cluster.
_LOOK_SECONDS = 5.0
# Seconds in which runs that are cancelled may save.
_SAVE_SECONDS = 120.0

# Called with the name of the node, the run and its row when that has ended.
Notify = Callable[[str, Run, rows_lib.Row], None]


class Stopped(RuntimeError):
  """The node of a run is going away; the run has saved, and Ray repeats it."""


def train(
  runs: Sequence[Run],
  config: ml_collections.ConfigDict,
  out: pathlib.Path,
  *,
  address: str | None = None,
  cpus: int = 1,
  gpus: float = 0.0,
  stack: int = 1,
  train_fn: runner.Train = loop.train_and_evaluate,
  notify: Notify,
  say: Callable[[str], None] = print,
) -> None:
  """Trains runs on a cluster of Ray, and returns when all have ended.

  Args:
    runs: Runs to do, as `runner.choose` returns them.
    config: Base config of the sweep.
    out: Folder of the sweep, on a disk that all nodes share. A process writes
      its messages to `out/ray/HOST-PID.log`.
    address: Address of the cluster; None for `$RAY_ADDRESS`, or else for the
      cluster of this machine.
    cpus: Number of CPU cores of each task.
    gpus: Number of GPUs of each task; of less than one, several tasks share it.
    stack: Most runs of each task, which it trains in one program.
    train_fn: Function to train with, as in `runner.run_sweep`.
    notify: Function that is called when a run has ended.
    say: Function that is called with a line on what happens to the cluster.

  Raises:
    ValueError: Ray is not installed, there is no cluster, no node has what a
      run asks for, or a node does not see `out`; before anything is trained.
      Or a node that came later does not see `out`.
    KeyboardInterrupt: Ctrl-C or SIGTERM came, and the runs under way have
      saved. Or runs are left without a row: their nodes were lost again and
      again, their tasks were cancelled, or another process has them.
  """
  extras.need("ray", by="--launcher=ray")
  import ray

  out = out.absolute()
  (out / "ray").mkdir(parents=True, exist_ok=True)
  ray_cluster.connect(address)
  try:
    with ray_cluster.beacon(out) as beacon, signals.interrupt():
      ray_cluster.check_request(ray.nodes(), cpus, gpus)
      ray_cluster.check_nodes(beacon)
      if not gpus and ray.cluster_resources().get("GPU"):
        say("training on CPUs: the cluster has GPUs, and --gpus asks for none")
      given = (config, out, beacon, os.getcwd(), cpus, gpus, stack, train_fn)
      under_way = _submit(runs, given, cpus, gpus, stack)
      try:
        _attend(under_way, out, _Watch(cpus, gpus, say), notify, say)
      except KeyboardInterrupt:
        raise KeyboardInterrupt(_cancel(list(under_way))) from None
      except BaseException:
        _cancel(list(under_way))
        raise
  finally:
    ray.shutdown()
  if left := runner.unfinished(runs, out):
    raise KeyboardInterrupt(f"{len(left)} runs are left")


def _submit(
  runs: Sequence[Run],
  given: Sequence[Any],
  cpus: int,
  gpus: float,
  stack: int,
) -> dict[Any, list[Run]]:
  """Submits all runs; returns those of each task by what Ray will return."""
  import ray

  # An error in Python is a row, or an error of the whole sweep: neither is
  # better the second time.
  task = ray.remote(
    num_cpus=cpus,
    num_gpus=gpus,
    max_retries=_RETRIES,
    retry_exceptions=[Stopped],
  )(_run)
  tasks = {}
  for members in grid.by_structure(runs).values():
    for start in range(0, len(members), stack):
      together = members[start : start + stack]
      named = task.options(name=together[0].name)
      tasks[named.remote([run.overrides for run in together], *given)] = (
        together
      )
  return tasks


def _attend(
  under_way: dict[Any, list[Run]],
  out: pathlib.Path,
  watch: "_Watch",
  notify: Notify,
  say: Callable[[str], None],
) -> None:
  """Waits for all runs; takes each from `under_way` when it has ended."""
  import ray

  while under_way:
    ended, _ = ray.wait(list(under_way), timeout=_LOOK_SECONDS)
    for ref in ended:
      together = under_way.pop(ref)
      try:
        host, written = ray_cluster.result(ref, together[0].name)
      except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
      ) as error:
        # The last of many processes that died: the run itself is why.
        cause = ray_cluster.first_line(error)
        reason = f"its process died {_RETRIES + 1} times: {cause}"
        host = "Ray"
        written = [runner.give_up(run, out, reason) for run in together]
      except ray.exceptions.RayError as error:  # No fault of the run.
        say(f"{together[0].name} is left: {ray_cluster.first_line(error)}")
        continue
      for run, row in zip(together, written, strict=True):
        if row:
          notify(host, run, row)
    watch.look(ray.nodes())


class _Watch:
  """Says when nodes are lost, and when Ray waits for one to come.

  Args:
    cpus: Number of CPU cores of each run.
    gpus: Number of GPUs of each run.
    say: Function that is called with each line.
  """

  def __init__(self, cpus: int, gpus: float, say: Callable[[str], None]):
    self._cpus, self._gpus, self._say = cpus, gpus, say
    self._alive: dict[str, str] = {}
    self._waiting = ""

  def look(self, nodes: Sequence[ray_cluster.Node]) -> None:
    """Compares the nodes with those at the last look."""
    before, self._alive = self._alive, ray_cluster.alive(nodes)
    for lost in before.keys() - self._alive.keys():
      self._say(f"node {before[lost]} is lost: its runs go on elsewhere")
    said, self._waiting = self._waiting, ""
    try:
      ray_cluster.check_request(nodes, self._cpus, self._gpus)
    except ValueError as error:
      self._waiting = f"waiting for a node: {error}"
      if self._waiting != said:
        self._say(self._waiting)


def _cancel(refs: list[Any]) -> str:
  """Cancels tasks, waits for those under way to save, and says if they did."""
  import ray

  for ref in refs:
    ray.cancel(ref)
  _, late = ray.wait(refs, num_returns=len(refs), timeout=_SAVE_SECONDS)
  if late:
    return f"{len(late)} runs did not save within {_SAVE_SECONDS:.0f} s"
  return "the runs under way have saved"


def _run(
  overrides: Sequence[Mapping[str, Any]],
  config: ml_collections.ConfigDict,
  out: pathlib.Path,
  beacon: pathlib.Path,
  cwd: str,
  cpus: int,
  gpus: float,
  stack: int,
  train_fn: runner.Train,
) -> tuple[str, list[rows_lib.Row]]:
  """Trains runs of one program in a process of Ray; returns host and rows."""
  ray_cluster.check_folder(beacon)  # This node may be newer than the sweep.
  _prepare(out, cwd, cpus, gpus)
  host = socket.gethostname()
  try:
    written = runner.run_sweep(
      config, overrides, out, train_fn=train_fn, stack=stack
    )
  except (loop.Interrupted, KeyboardInterrupt) as error:
    if signal.SIGTERM.name not in str(error):  # Ray cancels by SIGINT.
      raise
    raise Stopped(str(error)) from None
  except (
    ValueError,
    OSError,
  ) as error:
    raise ValueError(f"node {host}: {error}") from None
  return host, written


@functools.cache
def _prepare(out: pathlib.Path, cwd: str, cpus: int, gpus: float) -> None:
  """Makes a process of Ray a worker of the sweep; once, before JAX starts."""
  log = out / "ray" / f"{socket.gethostname()}-{os.getpid()}.log"
  file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  for stream in (1, 2):
    os.dup2(file, stream)
  if os.path.isdir(cwd):  # Paths of the config are relative to it.
    os.chdir(cwd)
  if gpus:
    if gpus < 1:  # Each would take three quarters of the GPU's memory.
      os.environ.update(shares.memory(0.9 * gpus))
  elif cores := shares.take(cpus):
    os.sched_setaffinity(0, cores)
  print(backend.configure(), flush=True)
