"""Estimates how long runs take, from one timed block of their program."""

import dataclasses
import time

import jax
import ml_collections

from ws_jax.train import build
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
    config: Configuration of one of its runs, after all overrides.

  Raises:
    ConfigError: the configuration cannot be run.
  """
  setup = build.start(config)
  config, program, source = setup.config, setup.program, setup.source
  block = setup.block
  size = min(block or 1, config.train.steps)
  clock = Clock()

  def run(state: steps.TrainState) -> steps.TrainState:
    arrays, indices = source.block(0, size)
    state = steps.train_block(program, state, arrays, indices, block=block)
    return jax.block_until_ready(state)

  with clock("train"):
    state = run(setup.state())
  timed, began = 0, time.monotonic()
  while timed < _STEPS and time.monotonic() < began + _SECONDS:
    state = run(state)
    timed += size
  step = (time.monotonic() - began) / timed
  with clock("eval"):
    batches = source.batches(config.data.eval_batch_size)
    steps.evaluate(program, state, batches)
  return Cost(
    compiling=clock.seconds["compile"],
    step=step,
    evaluation=clock.seconds["eval"],
    steps=config.train.steps,
    evaluations=-(-config.train.steps // config.train.eval_every_steps),
  )
