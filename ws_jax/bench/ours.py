"""A training step of ws_jax as a contender; others start from its weights."""

import time
import types
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import config, models
from ws_jax.bench import ARMS, speech, text
from ws_jax.bench.worker import turn
from ws_jax.train import backend, build
from ws_jax.train import step as steps

# So small that the network does not learn the random labels by heart within a
# benchmark: near a loss of zero gradients are denormal numbers, which are slow.
LEARNING_RATE = 0.01
_IMAGES = {"task.crop_padding": 0, "task.flip": False}
_SMALL = 64  # Largest images of which a model has the stem for small ones.


def noise(
  batch_size: int, size: int = 32, channels: int = 3, seed: int = 0
) -> types.SimpleNamespace:
  """Returns the data of one batch of random images and labels."""
  rng = np.random.default_rng(seed)
  shape = (batch_size, size, size, channels)
  arrays = {
    "image": rng.integers(0, 256, shape, np.uint8),
    "label": rng.integers(0, 10, batch_size, np.int32),
  }
  return types.SimpleNamespace(
    name="noise",
    train=arrays,
    test=arrays,
    num_classes=10,
    mean=(0.5,) * channels,
    std=(0.25,) * channels,
  )


def stem(model: str, size: int) -> str | None:
  """Returns the stem for images of that size; None where a model has none."""
  own = models.MODELS.get(model, {}).get("stem")
  return "cifar" if size <= _SMALL else own


def set_up(
  model: str,
  arm: str,
  batch_size: int,
  dataset: Any = None,
  size: int = 32,
  **overrides: Any,
) -> build.Setup:
  """Sets up a run in which nothing is random but the first weights.

  So every library sees the same inputs, and steps can be compared.

  Args:
    model: Name of a model in `ws_jax.models`.
    arm: Name of an arm in `ARMS`.
    batch_size: Number of examples in a step.
    dataset: Data, as `build.start` takes them; None for one batch of noise.
    size: Height and width of images of noise; see `stem`.
    **overrides: Other keys, with `__` for the dot: `optim__micro_batch_size=8`.
  """
  task: Any = None
  if model in text.LENGTHS:
    task, noisy = text.noise(model, batch_size)
    settings = text.settings(model)
  elif model in speech.MODELS:
    noisy, settings = speech.noise(batch_size), speech.settings(model)
  else:
    noisy = noise(batch_size, size)
    settings = _IMAGES | {"model.stem": stem(model, size)}
  settings = {
    "model.name": model,
    "data.batch_size": batch_size,
    "optim.learning_rate": LEARNING_RATE,
    "optim.schedule": "constant",
    "train.steps": 1_000_000,
    **settings,
    **ARMS[arm],
    **{key.replace("__", "."): value for key, value in overrides.items()},
  }
  return build.start(
    config.apply(config.default(), settings),
    dataset=noisy if dataset is None else dataset,
    task=task,
  )


class Step:
  """A whole training step: gather, normalize, forward, backward, update.

  That of a model for keywords begins with features, unless `clips`.

  Args:
    model: Name of a model in `ws_jax.models`.
    arm: Name of an arm in `ARMS`.
    batch_size: Number of examples in a step.
    weights: Path of a file to write with the first parameters and the batch,
      from which other libraries start; None for no file.
    checked_steps: Number of steps done when it is made; their losses are kept.
    clips: Whether a step of a model for keywords makes features from clips.
    loop: Whether steps run in a loop on the device; None for what a run does.
    **overrides: Other keys of the configuration, with `__` for the dot.

  Attributes:
    losses: Losses of these first steps.
    program: Program that does the steps.
    state: Training state after the last step.
  """

  def __init__(
    self,
    model: str,
    arm: str,
    batch_size: int,
    weights: str | None = None,
    checked_steps: int = 3,
    clips: bool = False,
    loop: bool | None = None,
    **overrides: Any,
  ):
    setup = self.adapt(set_up(model, arm, batch_size, **overrides))
    self.program, self.state = setup.program, setup.state()
    self.arrays, _ = setup.source.block(0, 0)
    if model in speech.MODELS and not clips:
      self.program, self.arrays = speech.with_features(
        self.program, self.arrays
      )
    # Number of steps in one loop on the device; None where loops are slow.
    native = models.convolves_natively(model) if loop is None else loop
    self._block = backend.steps_of_a_loop(10, setup.config.model.dtype, native)
    count = self._block or 1
    indices = np.arange(batch_size, dtype=np.int32)
    indices = indices.reshape(1, -1, setup.config.optim.micro_batch_size)
    self.indices = np.repeat(indices, count, axis=0)
    if weights is not None:
      self.export(weights)
    self.losses = self._first_losses(checked_steps)

  def __call__(self) -> float:
    """Does steps until a turn is over; returns the seconds of one step."""
    return turn(self._once) / len(self.indices)

  def _once(self) -> float:
    began = time.perf_counter()
    self._train(self.indices)
    return time.perf_counter() - began

  def adapt(self, setup: build.Setup) -> build.Setup:
    """Returns the run to time, for a kind of step that changes it."""
    return setup

  def plan(self, donate: bool = True) -> Any:
    """Returns XLA's memory analysis of a step, or of one micro-batch."""
    indices = jnp.asarray(self.indices[0])
    if self._block and jax.default_backend() != "cpu" and donate:
      # The program that has run already: a GPU takes minutes for another.
      jitted = jit(steps._loop, static_argnums=0, donate_argnums=1)
      count = len(self.indices)
      args: tuple[Any, ...] = (self.state, self.arrays, self.indices, count)
    elif len(indices) == 1:
      jitted = jit(
        steps.train_step, static_argnums=0, donate_argnums=1 if donate else ()
      )
      args = (self.state, self.arrays, indices)
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
    """Returns the bytes at the peak of a step, by its plan.

    Results that overwrite their arguments count once.
    """
    plan = self.plan() if plan is None else plan
    places = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return places - plan.alias_size_in_bytes + plan.temp_size_in_bytes

  def export(self, path: str) -> None:
    """Writes the parameters, and the batch as the model receives it."""
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
    sums = [(0.0, 0.0)]
    for _ in range(count):
      self._train(self.indices[:1])
      loss, number = (float(self.state.sums[x]) for x in ("loss", "count"))
      sums.append((loss, number))
    losses, counts = np.diff(sums, axis=0).T
    return (losses / counts).tolist()


def jit(function: Any, **how: Any) -> Any:
  """Returns `jax.jit` of a function, with the options of our training steps."""
  options = backend.options_to_run_fast()
  return jax.jit(function, compiler_options=options, **how)
