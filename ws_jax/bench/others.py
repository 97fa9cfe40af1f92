"""Steps in other processes: of other libraries, or with other settings."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ws_jax import models
from ws_jax.bench import ARMS, DEFAULT_MODEL, Options, speech, text
from ws_jax.bench.ours import LEARNING_RATE, stem
from ws_jax.bench.timing import Contender
from ws_jax.bench.worker import Worker
from ws_jax.train import backend

# PyTorch and plain Flax code run without the flags that we give to XLA.
PLAIN: dict[str, str | None] = {"XLA_FLAGS": None}
# Does for PyTorch what `backend.keep_freed_memory` does for ours.
LIBRARY_ENV: dict[str, dict[str, str | None]] = {
  "torch_malloc": {name: str(value) for name, _, value in backend.ALLOCATOR}
}
# The files with the twins of models that are not in `torch_side`.
TWINS = dict.fromkeys(text.LENGTHS, "torch_text")
TWINS |= dict.fromkeys(speech.MODELS, "torch_speech")
# Two libraries sum in different orders. The first loss shows that the network
# is the same; its rounding error grows with every step. On a GPU float32 is
# TF32, whose products have the digits of float16.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-3}
_TOLERANCE_ON_GPU = {"float32": 5e-3, "bfloat16": 2e-2}
_GROWTH = 100.0


class Recipe(NamedTuple):
  """The instructions by which a worker makes a step.

  Attributes:
    module: Name of the module in this folder.
    arguments: Arguments of its `Step`.
    env: Environment variables of the worker; None removes one.
    setup: Name of the function in `ws_jax.train.backend` that the worker calls
      first, or "".
  """

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
  """Returns the recipes of all steps: `""` is ours, then others by name.

  Args:
    options: Options, of which `against`, `settings` and `model` are read.
    arm: Name of an arm in `ws_jax.bench.ARMS`.
    weights: Path of the file with weights and batch that `ours.Step` wrote.
    batch_size: Number of examples in a step.
    micro_batch_size: Number of examples in a micro-batch; None for the whole
      batch. Plain Flax code has no micro-batches, and graphs keep one gradient
      alone: both are left out with them.
  """
  model = options.model or DEFAULT_MODEL
  own: dict[str, Any] = {"model": model, "arm": arm, "batch_size": batch_size}
  own["optim__micro_batch_size"] = micro_batch_size
  if options.dtype != "float32":
    own["model__dtype"] = options.dtype
  if options.size != Options().size:
    own["size"] = options.size
  _check(options, model)
  rate = text.LEARNING_RATE if model in text.LENGTHS else LEARNING_RATE
  given = {"weights": weights, "learning_rate": rate}
  made = {"": Recipe("ours", own, {}, "configure")}
  for name, env in options.settings.items():
    made[name] = Recipe("ours", own, dict(env), "configure")
  for name in options.against:
    module, env = side(name, model)
    if name == "flax":
      if micro_batch_size is None:
        how = given | {"model": model, "arm": arm}
        made[name] = Recipe(module, how, env, "")
      continue
    if name == "torch_graphs" and micro_batch_size is not None:
      continue
    how = given | {
      "twin": module,
      "network": network(model, arm, options.dtype, options.size),
      "micro_batch_size": micro_batch_size,
      "library": name,
    }
    made[name] = Recipe("torch_step", how, env, "")
  return made


class Others:
  """The processes that `--against` and `--setting` ask for.

  Args:
    options: Options that name them.
    stack: Exit stack that ends the processes.
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
    """Makes a step in each of them, and returns these contenders by name.

    Args:
      arm: Name of an arm in `ws_jax.bench.ARMS`.
      weights: Path of the file that `ours.Step` wrote.
      losses: Losses of our first steps; those of the others must be the same.
      batch_size: Number of examples in a step.
      micro_batch_size: Number of examples in a micro-batch, or None.

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
      check_losses(
        f"{name} {arm}",
        worker.get(number, "losses"),
        losses,
        self._options.dtype,
      )
      made[f"{arm} {name}"] = worker.contender(number)
    return made


def _check(options: Options, model: str) -> None:
  """Refuses what a library has no twin of."""
  if model in TWINS and "flax" in options.against:
    raise ValueError(f"--against=flax has no {model}; torch has")
  if options.dtype != "float32" and "flax" in options.against:
    raise ValueError(f"--dtype={options.dtype}: flax has float32 alone")
  if options.size != Options().size and "flax" in options.against:
    raise ValueError("--size: flax has the stem for small images alone")


def side(
  library: str, model: str = DEFAULT_MODEL
) -> tuple[str, dict[str, str | None]]:
  """Returns the module with a library's code, and the environment it needs."""
  twin = TWINS.get(model, "torch_side")
  module = "flax_side" if library == "flax" else twin
  return module, PLAIN | LIBRARY_ENV.get(library, {})


def network(
  model: str, arm: str, dtype: str = "float32", size: int = 32
) -> dict[str, Any]:
  """Returns the network of an arm as plain values, for PyTorch."""
  if model in text.LENGTHS:
    return text.network(model, arm, dtype)
  if model in speech.MODELS:
    return speech.network(model, arm, dtype)
  settings = models.MODELS[model]
  keys = ("channels", "block_sizes", "bottleneck")
  return {key: settings[key] for key in keys} | {
    "stem": stem(model, size),
    "norm": ARMS[arm]["model.norm"],
    "ws": ARMS[arm]["model.ws"],
    "dtype": dtype,
  }


def check_losses(
  name: str,
  losses: Sequence[float],
  expected: Sequence[float],
  dtype: str = "float32",
) -> None:
  """Checks that two steps compute the same, before they are compared.

  Args:
    name: Name of the other step, for the message.
    losses: Losses of its first steps.
    expected: Losses of our first steps.
    dtype: Dtype of the activations.

  Raises:
    ValueError: the relative difference exceeds 1e-5 (of bfloat16 2e-3, on a
      GPU more) in the first step, 1e-3 in the second, and so on.

  Example:
    >>> check_losses("torch", [2.3, 2.2], [2.3, 2.1])
    Traceback (most recent call last):
    ValueError: torch: losses [2.3, 2.2], ours [2.3, 2.1]: not the same step
  """
  error = np.abs(np.subtract(losses, expected)) / np.abs(expected)
  on_gpu = jax.default_backend() == "gpu"
  tolerance = (_TOLERANCE_ON_GPU if on_gpu else _TOLERANCE)[dtype]
  allowed = tolerance * _GROWTH ** np.arange(len(error))
  if (error > allowed).any():
    raise ValueError(
      f"{name}: losses {list(losses)}, ours {list(expected)}: not the same step"
    )
