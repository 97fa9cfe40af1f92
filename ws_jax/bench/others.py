"""Steps that are not of this process: other libraries, other settings."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ws_jax import models
from ws_jax.bench import ARMS, DEFAULT_MODEL, Options
from ws_jax.bench.ours import LEARNING_RATE
from ws_jax.bench.timing import Contender
from ws_jax.bench.worker import Worker
from ws_jax.train import backend

# PyTorch and plain Flax code run as they are, not as we set XLA up.
PLAIN: dict[str, str | None] = {"XLA_FLAGS": None}
# What `backend.keep_freed_memory` does for ours, for PyTorch.
LIBRARY_ENV: dict[str, dict[str, str | None]] = {
  "torch_malloc": {name: str(value) for name, _, value in backend.ALLOCATOR}
}
# Two libraries sum in different orders; the first loss tells that the network
# is the same, and what differs by then grows with every step.
_TOLERANCE, _GROWTH = 1e-5, 100.0


class Recipe(NamedTuple):
  """How a process comes to have a step: see `Worker`, and its `make`."""

  module: str
  arguments: dict[str, Any]
  env: dict[str, str | None]
  setup: str


def recipes(
  options: Options,
  arm: str,
  weights: str,
  batch_size: int,
  micro_batch_size: int | None = None,
) -> dict[str, Recipe]:
  """Our step as `""`, then those of `--setting` and `--against` by name.

  Args:
    options: `against`, `settings` and `model` are read.
    arm: a name of `ws_jax.bench.ARMS`.
    weights: the file that `ours.Step` wrote, with the batch.
    batch_size: examples in a step.
    micro_batch_size: None for the whole batch; plain Flax code has no other.
  """
  model = options.model or DEFAULT_MODEL
  own: dict[str, Any] = {"model": model, "arm": arm, "batch_size": batch_size}
  own["optim__micro_batch_size"] = micro_batch_size
  given = {"weights": weights, "learning_rate": LEARNING_RATE}
  made = {"": Recipe("ours", own, {}, "configure")}
  for name, env in options.settings.items():
    made[name] = Recipe("ours", own, dict(env), "configure")
  for name in options.against:
    module, env = side(name)
    if name == "flax":
      if micro_batch_size is None:
        how = given | {"model": model, "arm": arm}
        made[name] = Recipe(module, how, env, "")
      continue
    how = given | {
      "network": network(model, arm),
      "micro_batch_size": micro_batch_size,
      "compiled": name == "torch_compile",
    }
    made[name] = Recipe(module, how, env, "")
  return made


class Others:
  """The processes that `--against` and `--setting` ask for.

  Args:
    options: as in `recipes`.
    stack: ends the processes.
  """

  def __init__(self, options: Options, stack: contextlib.ExitStack):
    self._options, self._stack = options, stack
    self._workers: dict[str, Worker] = {}

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
      arm: as in `recipes`.
      weights: as in `recipes`.
      losses: of our first steps: those of the others must be the same.
      batch_size: as in `recipes`.
      micro_batch_size: as in `recipes`.

    Raises:
      ValueError: the losses differ: another network, or another step.
    """
    made: dict[str, Contender] = {}
    wanted = recipes(self._options, arm, weights, batch_size, micro_batch_size)
    wanted.pop("")
    for name, recipe in wanted.items():
      if name not in self._workers:
        worker = Worker(recipe.env, recipe.setup)
        self._workers[name] = self._stack.enter_context(worker)
      worker = self._workers[name]
      number = worker.make(recipe.module, "Step", **recipe.arguments)
      check_losses(f"{name} {arm}", worker.get(number, "losses"), losses)
      made[f"{arm} {name}"] = worker.contender(number)
    return made


def side(library: str) -> tuple[str, dict[str, str | None]]:
  """The module here that has a library's code, and its environment."""
  module = "flax_side" if library == "flax" else "torch_side"
  return module, PLAIN | LIBRARY_ENV.get(library, {})


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
    ValueError: the losses differ by more than 1e-5 relative in the first step,
      100 times that in the second, and so on.

  Example:
    >>> check_losses("torch", [2.3, 2.2], [2.3, 2.1])
    Traceback (most recent call last):
    ValueError: torch: losses [2.3, 2.2], ours [2.3, 2.1]: not the same step
  """
  error = np.abs(np.subtract(losses, expected)) / np.abs(expected)
  if (error > _TOLERANCE * _GROWTH ** np.arange(len(error))).any():
    raise ValueError(
      f"{name}: losses {list(losses)}, ours {list(expected)}: not the same step"
    )
