"""Divides the CPU cores, GPUs or TPUs of a machine among several processes."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from ws_jax.base import disk

# Locks of the cores that this process has taken; they end with it.
_TAKEN = contextlib.ExitStack()


def machine() -> tuple[str, int]:
  """Returns the platform and the number of devices that JAX would use here.

  TPUs are counted in chips, some of which have two devices. The question is put
  in a process that then ends: a process that has opened a GPU keeps most of the
  GPU's memory from the workers.
  """
  code = (
    "import jax; d = jax.local_devices();"
    "places = {str(getattr(x, 'coords', x.id)) for x in d};"
    "print(); print(d[0].platform, len(places))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  platform, count = done.stdout.split()[-2:]
  return platform, int(count)


def share(
  platform: str, count: int, number: int, workers: int
) -> tuple[dict[str, str], set[int] | None]:
  """Returns the environment and the CPU cores of one worker.

  Args:
    platform: Platform, as `machine` returns it.
    count: Number of devices.
    number: Number of the worker, from 0.
    workers: Number of workers.

  Returns:
    Environment variables that show the worker its devices only, and the CPU
    cores for it; None for all cores, where other devices do the work.

  Example:
    >>> share("gpu", 4, 1, 2)[0]["CUDA_VISIBLE_DEVICES"]
    '2,3'
  """
  if platform == "cpu":
    if not hasattr(os, "sched_setaffinity"):
      return {}, None
    cores = sorted(os.sched_getaffinity(0))
    return {}, set(_part(cores, number, workers))
  every = [str(i) for i in range(count)]
  if platform == "tpu":
    mine = _part(every, number, workers)
    port = str(8476 + number)
    return {
      "TPU_VISIBLE_CHIPS": ",".join(mine),
      # Each worker is a system of its own, not a part of one that spans all.
      "TPU_CHIPS_PER_PROCESS_BOUNDS": f"1,{len(mine)},1",
      "TPU_PROCESS_BOUNDS": "1,1,1",
      "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
      "TPU_PROCESS_PORT": port,
      "CLOUD_TPU_TASK_ID": "0",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }, None
  env = {}
  for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
    given = os.environ.get(name)
    mine = _part(given.split(",") if given else every, number, workers)
    env[name] = ",".join(mine)
  if workers > count:  # Each would take three quarters of a GPU's memory.
    env |= memory(0.9 / -(-workers // count))
  return env, None


def memory(fraction: float) -> dict[str, str]:
  """Returns the environment that gives a process a part of a GPU's memory.

  Args:
    fraction: Part of the memory, in (0, 1].

  Example:
    >>> memory(0.45)
    {'XLA_CLIENT_MEM_FRACTION': '0.45'}
  """
  name, old = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
  # JAX refuses to start with both: a value that the caller has is replaced.
  return {old if old in os.environ else name: f"{fraction:.2f}"}


def _part(things: Sequence, number: int, parts: int) -> Sequence:
  """Returns part `number` of equal ones; it is shared if there are too few."""
  if len(things) < parts:
    return [things[number % len(things)]]
  size = len(things) / parts
  return things[round(number * size) : round((number + 1) * size)]


@contextlib.contextmanager
def pinned(cores: set[int] | None) -> Iterator[None]:
  """Pins what is started in the `with` block to these cores; None for all."""
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def take(count: int) -> set[int] | None:
  """Takes CPU cores that no other process has taken, until this one ends.

  Each process that asks is given cores of its own, where nobody divides the
  machine among them beforehand.

  Args:
    count: Number of cores.

  Returns:
    The cores, to be set as the affinity of this process; None if there are not
    as many left, or the system cannot pin.
  """
  if not hasattr(os, "sched_setaffinity"):
    return None
  folder = pathlib.Path(tempfile.gettempdir(), f"ws_jax_cores_{os.getuid()}")
  folder.mkdir(exist_ok=True)
  taken = set()
  # In turn: two that take at the same time could both find too few.
  with disk.locked(folder / "turn"), contextlib.ExitStack() as locks:
    for core in sorted(os.sched_getaffinity(0)):
      if len(taken) < count and locks.enter_context(
        disk.locked(folder / str(core), wait=False)
      ):
        taken.add(core)
    if len(taken) < count:
      return None
    _TAKEN.push(locks.pop_all())
  return taken
