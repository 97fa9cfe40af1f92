"""A training step of ws_jax as a contender, and what others begin with."""

import time
import types
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ws_jax import config, data
from ws_jax.bench import ARMS
from ws_jax.bench.worker import turn
from ws_jax.train import backend, build
from ws_jax.train import step as steps

# Small enough that random labels are not learnt by heart within a benchmark:
# the gradients of a loss near zero are denormal numbers, and slow.
LEARNING_RATE = 0.01


def noise(
  batch_size: int, size: int = 32, channels: int = 3, seed: int = 0
) -> data.Dataset:
  """Images of noise: the first `batch_size` of them are the batch."""
  rng = np.random.default_rng(seed)
  shape = (batch_size, size, size, channels)
  arrays = {
    "image": rng.integers(0, 256, shape, np.uint8),
    "label": rng.integers(0, 10, batch_size, np.int32),
  }
  noise = types.SimpleNamespace(
    name="noise",
    train=arrays,
    test=arrays,
    num_classes=10,
    mean=(0.5,) * channels,
    std=(0.25,) * channels,
  )
  return data.load(data.Request(noise))


def configuration(
  model: str, arm: str, batch_size: int, **overrides: Any
) -> ml_collections.ConfigDict:
  """A resolved configuration: no augmentation, so that steps can be compared.

  Args:
    model: a name of `ws_jax.models`; its stem is that for small images.
    arm: a name of `ARMS`.
    batch_size: examples in a step.
    **overrides: with `__` for the dot: `optim__micro_batch_size=8`.
  """
  settings = {
    "model.name": model,
    "model.stem": "cifar",
    "data.batch_size": batch_size,
    "data.crop_padding": 0,
    "data.flip": False,
    "optim.learning_rate": LEARNING_RATE,
    "optim.schedule": "constant",
    "train.steps": 1_000_000,
  }
  settings |= ARMS[arm]
  settings |= {
    key.replace("__", "."): value for key, value in overrides.items()
  }
  return config.resolve(
    config.apply(config.default(), settings),
    num_examples=batch_size,
    num_devices=jax.device_count(),
  )


def numbers(c: ml_collections.ConfigDict) -> dict[str, float]:
  """What the optimizer's state is made with."""
  names = ("learning_rate", "weight_decay", "momentum")
  return {name: c.optim[name] for name in names}


class Step:
  """A whole training step: gather, normalize, forward, backward, update.

  Args:
    model: as in `configuration`.
    arm: as in `configuration`.
    batch_size: as in `configuration`.
    weights: where a file with the first parameters and the batch is written,
      for other libraries to begin with; None: nowhere.
    checked_steps: so many steps are done at once, and their losses kept.
    **overrides: as in `configuration`.

  Attributes:
    losses: of the first steps.
    program: the program that is stepped.
    state: its state.
  """

  def __init__(
    self,
    model: str,
    arm: str,
    batch_size: int,
    weights: str | None = None,
    checked_steps: int = 3,
    **overrides: Any,
  ):
    c = configuration(model, arm, batch_size, **overrides)
    dataset = noise(batch_size)
    self.program = self.make_program(c, dataset)
    self.arrays = jax.device_put(dataset.train)
    self.state = steps.init_state(self.program, self.arrays, c.seed, numbers(c))
    # The steps that one loop on the device runs where those are fast.
    self._block = backend.steps_of_a_loop(10, c.model.dtype)
    count = self._block or 1
    indices = np.arange(batch_size, dtype=np.int32)
    indices = indices.reshape(1, -1, c.optim.micro_batch_size)
    self.indices = np.repeat(indices, count, axis=0)
    if weights is not None:
      self.export(weights)
    self.losses = self._first_losses(checked_steps)

  def __call__(self) -> float:
    """Steps, waits, and returns the seconds of one step, as `turn` does."""
    return turn(self._once) / len(self.indices)

  def _once(self) -> float:
    began = time.perf_counter()
    self._train(self.indices)
    return time.perf_counter() - began

  def make_program(
    self, c: ml_collections.ConfigDict, dataset: data.Dataset
  ) -> steps.Program:
    """The program of a configuration."""
    return build.build_program(c, dataset)

  def plan(self, donate: bool = True) -> Any:
    """XLA's memory analysis of a step; with micro-batches, of one of them."""
    indices = jnp.asarray(self.indices[0])
    if len(indices) == 1:
      jitted = jit(
        steps.train_step, static_argnums=0, donate_argnums=1 if donate else ()
      )
      args: tuple[Any, ...] = (self.state, self.arrays, indices)
    else:
      jitted = jit(
        steps.accumulate, static_argnums=0, donate_argnums=3 if donate else ()
      )
      effective, work = jit(steps.begin, static_argnums=0)(
        self.program, self.state
      )
      args = (self.state, effective, work, self.arrays, indices[0], 0)
    return jitted.lower(self.program, *args).compile().memory_analysis()

  def peak(self, plan: Any = None) -> int:
    """Bytes at the peak of a step, by its plan: all that is not in place."""
    plan = self.plan() if plan is None else plan
    places = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return places - plan.alias_size_in_bytes + plan.temp_size_in_bytes

  def export(self, path: str) -> None:
    """Writes the parameters, and the batch as the model sees it."""
    batch = self.program.task.batch(
      self.arrays, jnp.asarray(self.indices[0].ravel()), None
    )
    params = flax.traverse_util.flatten_dict(self.state.params, sep="/")
    np.savez(path, **jax.device_get(params | batch))

  def _train(self, indices: np.ndarray) -> None:
    self.state = steps.train_block(
      self.program, self.state, self.arrays, indices, block=self._block
    )
    jax.block_until_ready(self.state)

  def _first_losses(self, count: int) -> list[float]:
    sums = [0.0]
    for _ in range(count):
      self._train(self.indices[:1])
      sums.append(float(self.state.sums["loss"]))
    return (np.diff(sums) / self.indices[0].size).tolist()


def jit(function: Any, **how: Any) -> Any:
  """`jax.jit` with the options of our training steps."""
  options = backend.options_to_run_fast()
  return jax.jit(function, compiler_options=options, **how)
