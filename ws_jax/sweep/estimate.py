"""Estimates how long runs take, from one timed block of their program."""

import dataclasses
import time

import jax
import ml_collections
from jax.sharding import NamedSharding, PartitionSpec

from ws_jax import data
from ws_jax.train import backend, loop
from ws_jax.train import step as steps
from ws_jax.train.clock import Clock

# Enough steps for an error of a tenth; a slow program is given fewer.
_STEPS = 20
_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Cost:
  """The time that a run takes.

  Attributes:
    compiling: Seconds to compile, once for all runs of the program.
    step: Seconds of one training step.
    evaluation: Seconds of one evaluation of the test set.
    steps: Number of training steps of a run.
    evaluations: Number of evaluations of a run.
  """

  compiling: float
  step: float
  evaluation: float
  steps: int
  evaluations: int

  def seconds(self, runs: int = 1) -> float:
    """Returns the seconds for `runs` runs in sequence.

    Example:
      >>> Cost(20.0, 0.1, 5.0, 600, 6).seconds(runs=2)
      200.0
    """
    one = self.steps * self.step + self.evaluations * self.evaluation
    return self.compiling + runs * one


def measure(config: ml_collections.ConfigDict) -> Cost:
  """Compiles and times a program; writes nothing but the compilation cache.

  Args:
    config: Config of one of its runs, after all overrides.

  Raises:
    ValueError: As `ws_jax.train.prepare` raises it.
  """
  config, dataset, program = loop.prepare(config)
  everywhere = NamedSharding(program.mesh, PartitionSpec())
  arrays, held_out = jax.device_put((dataset.train, dataset.test), everywhere)
  most, dtype = config.train.log_every_steps, config.model.dtype
  block = backend.steps_of_a_loop(most, dtype)
  size = min(block or 1, config.train.steps)
  shape = (size, -1, config.optim.micro_batch_size)
  num_examples, batch_size = len(dataset.train["label"]), config.data.batch_size
  indices = data.batch_indices(0, 0, size, batch_size, num_examples)
  clock = Clock()

  def run(state: steps.TrainState) -> steps.TrainState:
    state = steps.train_block(
      program, state, arrays, indices.reshape(shape), block=block
    )
    return jax.block_until_ready(state)

  with clock("train"):
    numbers = dict.fromkeys(("learning_rate", "weight_decay", "momentum"), 0.0)
    state = run(steps.init_state(program, arrays, config.seed, numbers))
  timed, began = 0, time.monotonic()
  while timed < _STEPS and time.monotonic() < began + _SECONDS:
    state = run(state)
    timed += size
  step = (time.monotonic() - began) / timed
  with clock("eval"):
    steps.evaluate(program, state, held_out, config.data.eval_batch_size)
  return Cost(
    compiling=clock.seconds["compile"],
    step=step,
    evaluation=clock.seconds["eval"],
    steps=config.train.steps,
    evaluations=-(-config.train.steps // config.train.eval_every_steps),
  )
