"""Several processes that train one run, by JAX's own distributed runtime.

Each process holds its own devices, and all of them run the same program. `join`
comes first, before JAX looks for devices. After it the devices of all processes
are one mesh, and nothing else of the training code asks how many processes
there are, but for what is here: who writes files (`first`), when to stop
(`agree`), and how to end (`leave`).
"""

import os
import sys
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds without a sign of life after which a process counts as lost. The
# runtime then ends all others.
LOST_AFTER = 60
# Seconds to wait for all processes to start.
START_WITHIN = 300
# Exit code of a process that ends because another one is gone.
LOST = 4

# Environment variables by which schedulers tell the number of processes; JAX
# reads the rest of what it needs from the same scheduler.
_SCHEDULERS = {
  "SLURM_STEP_NUM_TASKS": "Slurm",
  "OMPI_COMM_WORLD_SIZE": "Open MPI",
}


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> bool:
  """Connects this process with the others of its run, if there are others.

  Without arguments the environment decides: `srun` of Slurm and `mpirun` of
  Open MPI say how many processes they started.

  Args:
    coordinator: Address `HOST:PORT` at which process 0 answers.
    num_processes: Number of processes.
    process_id: Number of this process, from 0.

  Returns:
    Whether there are others.

  Raises:
    ValueError: only some of the arguments are given, or they do not fit; or
      the processes do not find each other.
  """
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  explicit = [name for name, value in given.items() if value is not None]
  by = _scheduler(os.environ)
  if not explicit and by is None:
    return False
  if explicit:
    _check(given, explicit)
    by = f"--coordinator={coordinator}"
  # A signal is ours to handle, and is agreed upon by `agree`.
  jax.config.update("jax_enable_preemption_service", False)
  # On CPUs one program has to end before the next begins: with several under
  # way, their collectives wait for each other's threads. (Read as the backend
  # of CPUs starts, and by no other.)
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=START_WITHIN,
      heartbeat_timeout_seconds=LOST_AFTER,
      cluster_detection_method="deactivate" if explicit else None,
    )
  except (RuntimeError, ValueError) as error:
    said = " ".join(str(error).split())
    raise ValueError(
      f"the processes did not find each other ({by}): {said}"
    ) from error
  return True


def describe() -> str:
  """Returns a line that says which process this is; it starts the backend."""
  return (
    f"process {jax.process_index()} of {jax.process_count()}, with"
    f" {jax.local_device_count()} of {jax.device_count()} devices"
  )


def _scheduler(env: os._Environ | dict[str, str]) -> str | None:
  """Returns the name of the scheduler that started several processes."""
  for variable, name in _SCHEDULERS.items():
    count = env.get(variable, "")
    if count.isdecimal() and int(count) > 1:
      return name
  return None


def _check(given: dict[str, str | int | None], explicit: list[str]) -> None:
  missing = [f"--{name}" for name in given if name not in explicit]
  if missing:
    raise ValueError(
      f"--{explicit[0]} needs {' and '.join(missing)}, too: all three or none"
    )
  address, count, number = given.values()
  host, _, port = str(address).rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(f"--coordinator={address} must be HOST:PORT")
  if not 0 <= int(number or 0) < int(count or 0):
    raise ValueError(
      f"--process_id={number} must be from 0 to --num_processes - 1, which is"
      f" {int(count or 0) - 1}"
    )


def several() -> bool:
  """Returns whether this process is one of several."""
  return jax.process_count() > 1


def first() -> bool:
  """Returns whether this process writes the files of the run."""
  return jax.process_index() == 0


def agree(signum: int | None) -> int | None:
  """Returns a signal that any of the processes has received, in all of them.

  A scheduler signals each process on its own, at different steps. All have to
  stop behind the same one.
  """
  if not several():
    return signum
  seen = multihost_utils.process_allgather(np.int32(signum or 0))
  return int(np.max(seen)) or None


def leave(code: int) -> NoReturn:
  """Ends this process at once.

  The usual end would wait for the others, and they may be waiting for us. They
  see that we are gone, and end too.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
