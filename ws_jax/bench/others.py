"""Steps that are not of this process: other libraries, other settings."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ws_jax import models
from ws_jax.bench import ARMS, DEFAULT_MODEL, Options
from ws_jax.bench.ours import LEARNING_RATE
from ws_jax.bench.timing import Contender
from ws_jax.bench.worker import Worker

# PyTorch and plain Flax code run as they are, not as we set XLA up.
PLAIN: dict[str, str | None] = {"XLA_FLAGS": None}
# Keeping compiled programs changes nothing but how long one waits for them.
SETUP = {"flax": "enable_compilation_cache"}
# What `backend.keep_freed_memory` does for ours, for PyTorch.
LIBRARY_ENV = {
  "torch_malloc": {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
  }
}
# Losses of one network in two libraries, which sum in different orders.
_TOLERANCE = 1e-4


class Others:
  """The processes that `--against` and `--setting` ask for.

  Args:
    options: `against`, `settings` and `model` are read.
    stack: ends the processes.
  """

  def __init__(self, options: Options, stack: contextlib.ExitStack):
    self._model = options.model or DEFAULT_MODEL
    start = lambda env, setup: stack.enter_context(Worker(env, setup))
    self._settings = {
      name: start(env, "configure") for name, env in options.settings.items()
    }
    self._libraries = {
      name: start(PLAIN | LIBRARY_ENV.get(name, {}), SETUP.get(name, ""))
      for name in options.against
    }

  def make(
    self,
    arm: str,
    weights: str,
    losses: Sequence[float],
    batch_size: int,
    micro_batch_size: int | None = None,
  ) -> dict[str, Contender]:
    """A step of every one of them, by name.

    Args:
      arm: a name of `ws_jax.bench.ARMS`.
      weights: the file that `ours.Step` wrote, with the batch.
      losses: of its first steps: those of the others must be the same.
      batch_size: examples in a step.
      micro_batch_size: None for the whole batch; not for plain Flax code.

    Raises:
      ValueError: the losses differ: another network, or another step.
    """
    common = {"model": self._model, "arm": arm}
    own = common | {
      "batch_size": batch_size,
      "optim__micro_batch_size": micro_batch_size,
    }
    given = {"weights": weights, "learning_rate": LEARNING_RATE}
    wanted: list[tuple[str, Worker, str, dict]] = [
      (name, worker, "ours", own) for name, worker in self._settings.items()
    ]
    for name, worker in self._libraries.items():
      if name == "flax":
        if micro_batch_size is None:
          wanted.append((name, worker, "flax_side", given | common))
        continue
      how = {
        "network": network(self._model, arm),
        "micro_batch_size": micro_batch_size,
        "compiled": name == "torch_compile",
      }
      wanted.append((name, worker, "torch_side", given | how))
    made: dict[str, Contender] = {}
    for name, worker, module, arguments in wanted:
      number = worker.make(module, "Step", **arguments)
      check_losses(f"{name} {arm}", worker.get(number, "losses"), losses)
      made[f"{arm} {name}"] = worker.contender(number)
    return made


def network(model: str, arm: str) -> dict[str, Any]:
  """The network of an arm as plain values, for `torch_side`."""
  settings = models.MODELS[model]
  keys = ("channels", "block_sizes", "bottleneck")
  return {key: settings[key] for key in keys} | {
    "norm": ARMS[arm]["model.norm"],
    "ws": ARMS[arm]["model.ws"],
  }


def check_losses(
  name: str, losses: Sequence[float], expected: Sequence[float]
) -> None:
  """Refuses to compare two steps that do not compute the same.

  Raises:
    ValueError: the losses differ by more than 1e-4 relative.

  Example:
    >>> check_losses("torch", [2.3, 2.2], [2.3, 2.1])
    Traceback (most recent call last):
    ValueError: torch: losses [2.3, 2.2], ours [2.3, 2.1]: not the same step
  """
  if not np.allclose(losses, expected, rtol=_TOLERANCE, atol=0):
    raise ValueError(
      f"{name}: losses {list(losses)}, ours {list(expected)}: not the same step"
    )
