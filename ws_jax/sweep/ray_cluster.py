"""Connects to a cluster of Ray, and checks that a sweep can run there.

Ray itself waits: minutes for a cluster that is not there, and for ever for a
node that has what a run asks for.
"""

import contextlib
import os
import pathlib
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ws_jax.base import disk

# Seconds in which somebody must answer at an address.
_CONNECT_SECONDS = 10.0
# Seconds in which every node must answer before the sweep begins.
_ANSWER_SECONDS = 120.0

# A node as Ray describes it: its name, its resources, whether it is alive.
Node = Mapping[str, Any]


def connect(address: str | None) -> None:
  """Connects to a cluster that is there; starts none.

  Args:
    address: Address of the cluster; None for `$RAY_ADDRESS`, or else for the
      cluster of this machine.

  Raises:
    ValueError: There is no cluster.
  """
  import ray

  address = address or os.environ.get("RAY_ADDRESS")
  try:
    if address:
      check_address(address)
    ray.init(address or "auto", log_to_driver=False, logging_level="warning")
  except (OSError, RuntimeError, ValueError) as error:
    where = f"at {address}" if address else "here"
    raise ValueError(
      f"no cluster of Ray {where}: start one with `ray start --head`, or give"
      f" its --address=HOST:PORT ({first_line(error)})"
    ) from None


def check_address(address: str) -> None:
  """Checks that somebody listens at an address: Ray tries for five minutes.

  Args:
    address: Address as `HOST:PORT` or `ray://HOST:PORT`. Names without a port
      are Ray's own, such as `auto`: they are not checked.

  Raises:
    OSError: Nobody does.
  """
  host, colon, port = address.removeprefix("ray://").rpartition(":")
  if colon and port.isdecimal():
    where = (host.strip("[]"), int(port))  # IPv6 has brackets.
    socket.create_connection(where, timeout=_CONNECT_SECONDS).close()


def check_request(nodes: Sequence[Node], cpus: int, gpus: float) -> None:
  """Checks that a node has what a run asks for.

  Args:
    nodes: Nodes, as `ray.nodes()` returns them.
    cpus: Number of CPU cores of a run.
    gpus: Number of GPUs of a run.

  Raises:
    ValueError: No node that is alive has them.

  Example:
    >>> node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    >>> check_request([node], cpus=8, gpus=0.5)
    >>> check_request([node], cpus=4, gpus=2)
    Traceback (most recent call last):
    ValueError: a run asks for 4 CPUs and 2 GPUs, which no node of the cluster \
has: the largest has 8 CPUs and 1 GPU
  """
  alive = [node["Resources"] for node in nodes if node["Alive"]]
  # The one with most of what is scarce.
  has = sorted((node.get("GPU", 0), node.get("CPU", 0)) for node in alive)
  if not any(cpus <= cpu and gpus <= gpu for gpu, cpu in has):
    largest = f"the largest has {_amount(*has[-1])}" if has else "none is left"
    raise ValueError(
      f"a run asks for {_amount(gpus, cpus)}, which no node of the cluster has:"
      f" {largest}"
    )


def _amount(gpus: float, cpus: float) -> str:
  """Returns numbers of CPUs and GPUs in words."""
  parts = [(cpus, "CPU"), (gpus, "GPU")]
  texts = [f"{n:g} {name}{'s' * (n != 1)}" for n, name in parts]
  return " and ".join(texts if gpus else texts[:1])


@contextlib.contextmanager
def beacon(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Holds the lock of a new file, by which nodes know the folder of a sweep.

  Args:
    out: Folder of the sweep.

  Yields:
    The file, for `check_folder`.
  """
  path = out / ".locks" / f"ray-{uuid.uuid4().hex}"
  with disk.locked(path):
    try:
      yield path
    finally:
      path.unlink()


def check_folder(beacon: pathlib.Path) -> None:
  """Checks that this node sees the folder of a sweep, and who holds its locks.

  Args:
    beacon: File in that folder, as the function `beacon` yields it.

  Raises:
    ValueError: There is no such file: this machine has another folder of that
      name, or none. Or its lock is free: the disk keeps locks from other
      machines, and two could train one run at the same time.
  """
  out, host = beacon.parent.parent, socket.gethostname()
  if not beacon.exists():
    raise ValueError(
      f"node {host} does not see {out}: --out must be a folder on a disk that"
      " all nodes of the cluster share"
    )
  with disk.locked(beacon, wait=False) as free:
    if free:
      raise ValueError(
        f"node {host} sees {out}, but not who holds a lock there: the disk must"
        " share locks between machines (NFS: not with `nolock`)"
      )


def check_nodes(beacon: pathlib.Path) -> None:
  """Checks on every node that it sees the folder of the sweep.

  Args:
    beacon: File in that folder, as the function `beacon` yields it.

  Raises:
    ValueError: A node does not see it, does not answer, or has not this
      package.
  """
  import ray
  from ray.util import scheduling_strategies

  probe = ray.remote(num_cpus=0, max_retries=0)(check_folder)
  asked = {}
  for node, name in alive(ray.nodes()).items():
    there = scheduling_strategies.NodeAffinitySchedulingStrategy(
      node, soft=False
    )
    asked[probe.options(scheduling_strategy=there).remote(beacon)] = name
  answered, silent = ray.wait(
    list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS
  )
  for ref in silent:
    raise ValueError(
      f"node {asked[ref]} does not answer within {_ANSWER_SECONDS:.0f} s"
    )
  for ref in answered:
    result(ref, f"node {asked[ref]}")


def alive(nodes: Sequence[Node]) -> dict[str, str]:
  """Returns the names of the nodes that are alive, by their ids."""
  return {
    node["NodeID"]: node["NodeManagerHostname"]
    for node in nodes
    if node["Alive"]
  }


def result(ref: Any, what: str) -> Any:
  """Returns the result of a task.

  Args:
    ref: Reference to the result.
    what: Name of the task, for the message.

  Raises:
    ValueError: The task raised an error in Python; the message is one line.
    RayError: The task was cancelled, or lost with its node or process.
  """
  import ray

  try:
    return ray.get(ref)
  except ray.exceptions.RayTaskError as error:
    cause = error.cause
    if isinstance(cause, ValueError):  # It is in words already.
      raise ValueError(str(cause)) from None
    # The last line: Ray puts a whole traceback into one that is no import.
    said = str(cause).strip().splitlines()[-1:]
    text = ": ".join([what, type(cause).__name__, *said])
    raise ValueError(text) from None


def first_line(error: BaseException) -> str:
  """Returns the first line of what an error says, or the name of its class."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
