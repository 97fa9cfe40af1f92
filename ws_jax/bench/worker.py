"""Contenders in another process: with other settings, or of another library.

The process lives as long as the benchmark, so that its contenders take their
turn among the others. Parent and worker exchange lines of JSON: a request says
`make`, `call`, `turn`, `get` or `peak`; the answer is `result` or `error`. This
file is also the program that the worker runs. It imports nothing before it is
asked for: a worker with PyTorch has no JAX, and starts as fast as PyTorch does.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

# Least number of seconds that a turn takes.
_TURN = 0.05


class WorkerError(RuntimeError):
  """An error in a worker; the message is the worker's own."""


class Worker:
  """A process that makes and runs contenders on request.

  Args:
    env: Environment variables by name; None removes one.
    setup: Name of a function in `ws_jax.train.backend` that the process calls
      first: `configure`, which our programs call, `enable_compilation_cache`,
      or "" for none.

  Example:
    >>> with Worker() as worker:
    ...   table = worker.make("__init__", "Table", title="times", rows=[])
    ...   worker.get(table, "title")
    'times'
  """

  def __init__(
    self, env: Mapping[str, str | None] | None = None, setup: str = ""
  ):
    environment = dict(os.environ)
    for name, value in (env or {}).items():
      environment.pop(name, None)
      if value is not None:
        environment[name] = value
    self._process = subprocess.Popen(
      [sys.executable, __file__, *([setup] if setup else [])],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *_) -> None:
    """Ends the process, by closing its standard input."""
    with contextlib.suppress(BrokenPipeError):
      self._process.communicate()

  def make(self, module: str, name: str, **arguments: Any) -> int:
    """Makes an object in the worker, and returns its number.

    Args:
      module: Name of a module in this folder.
      name: Name of a class in it.
      **arguments: Arguments of the class, which must be possible in JSON.

    Raises:
      WorkerError: the class raised an error.
    """
    return self._ask(make=[module, name], arguments=arguments)

  def call(self, number: int) -> Any:
    """Calls an object, and returns what it returns."""
    return self._ask(call=number)

  def get(self, number: int, attribute: str) -> Any:
    """Returns an attribute of an object."""
    return self._ask(get=number, attribute=attribute)

  def contender(self, number: int) -> Callable[[], float]:
    """Returns a contender that takes a `turn` of an object in the worker."""
    return functools.partial(self._ask, turn=number)

  def peak(self, reset: bool = False) -> int:
    """Returns the largest resident memory of the process so far, in bytes.

    Args:
      reset: Whether to count anew from here; only Linux can.
    """
    return self._ask(peak=reset)

  def _ask(self, **request: Any) -> Any:
    stdin, stdout = self._process.stdin, self._process.stdout
    assert stdin is not None and stdout is not None
    with contextlib.suppress(BrokenPipeError):  # then there is no answer
      stdin.write(json.dumps(request) + "\n")
      stdin.flush()
    line = stdout.readline()
    if not line:
      code = self._process.wait()
      raise WorkerError(f"the worker ended with exit code {code}")
    answer = json.loads(line)
    if "error" in answer:
      raise WorkerError(answer["error"])
    return answer["result"]


def turn(contender: Callable[[], float]) -> float:
  """Returns the mean seconds of a call among calls that follow each other.

  In a run one step follows the other, but the first call of a turn finds its
  threads asleep and its memory out of the caches. It does not count, unless it
  takes a whole turn by itself.

  Args:
    contender: Function that does its work once and returns its seconds.

  Example:
    >>> calls = iter([0.04, 0.03, 0.03, 0.1])
    >>> turn(lambda: next(calls))
    0.03
  """
  first = contender()
  if first >= _TURN:
    return first
  seconds: list[float] = []
  while sum(seconds) < _TURN:
    seconds.append(contender())
  return sum(seconds) / len(seconds)


def serve() -> None:
  """Answers the requests on standard input until there are no more."""
  # What a library prints must not come between the answers: it goes to stderr.
  with os.fdopen(os.dup(1), "w") as answers:
    os.dup2(2, 1)
    for answer in _answers():
      answers.write(json.dumps(answer) + "\n")
      answers.flush()


def _answers() -> Iterator[dict[str, Any]]:
  made: list[Any] = []
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if "make" in request:
        module, name = request["make"]
        made.append(getattr(_load(module), name)(**request["arguments"]))
        result = len(made) - 1
      elif "call" in request:
        result = made[request["call"]]()
      elif "turn" in request:
        contender = made[request["turn"]]
        # A call of some does several steps.
        result = turn(contender) / getattr(contender, "count", 1)
      elif "peak" in request:
        result = _peak(request["peak"])
      else:
        result = getattr(made[request["get"]], request["attribute"])
      yield {"result": result}
    except Exception as error:
      yield {"error": f"{type(error).__name__}: {error}"}


def _peak(reset: bool) -> int:
  status = pathlib.Path("/proc/self/status")
  if not status.exists():  # macOS, which counts from the start, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  if reset:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  (line,) = (x for x in status.read_text().splitlines() if "VmHWM" in x)
  return 1024 * int(line.split()[1])


@functools.cache
def _load(name: str) -> ModuleType:
  """Loads a module of this folder by its path, not as a part of ws_jax."""
  path = pathlib.Path(__file__).with_name(f"{name}.py")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # the same one for those that import it
  spec.loader.exec_module(module)
  return module


if __name__ == "__main__":
  # Python puts this folder first, where its `profile` hides the standard one.
  sys.path.append(sys.path.pop(0))
  for setup in sys.argv[1:]:
    from ws_jax.train import backend

    getattr(backend, setup)()
  serve()
