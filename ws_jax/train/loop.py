"""`train_and_evaluate`: the whole story of a run, from config to metrics."""

import pathlib
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ws_jax
from ws_jax import config as config_lib
from ws_jax import data, models, tasks
from ws_jax.base import names, signals
from ws_jax.layers import norm
from ws_jax.train import backend, checkpoint, optim, record
from ws_jax.train import step as steps
from ws_jax.train.clock import Clock

# A run may be continued with other values of these: they change no number.
_CADENCE = (
  "data.dir",
  "data.eval_batch_size",
  "train.checkpoint_every_epochs",
  "train.checkpoint_every_steps",
  "train.keep_checkpoints",
)


class Diverged(RuntimeError):
  """The loss became non-finite, or rose far above where it began.

  Attributes:
    step: the optimizer step at which it was seen.
    reason: in words.
  """

  def __init__(self, step: int, reason: str):
    super().__init__(f"diverged at step {step}: {reason}")
    self.step, self.reason = step, reason


class Interrupted(RuntimeError):
  """A signal ended the run; what was computed is kept.

  Attributes:
    step: optimizer steps done.
    signum: the signal.
  """

  def __init__(self, step: int, signum: int):
    self.step, self.signum = step, signum
    self.reason = f"received {signal.Signals(signum).name}"
    super().__init__(f"interrupted after step {step}: {self.reason}")


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> dict[str, float]:
  """Trains to the end, evaluating on the way; continues what it finds.

  Args:
    config: as `ws_jax.config.default`, after all overrides.
    workdir: folder of the run, made if need be. If it holds a checkpoint of
      the same configuration the run goes on from there, to the same bits.

  Returns:
    The last `train/...` and `eval/...` metrics.

  Raises:
    ConfigError: the configuration cannot be run, or not in this workdir.
      Raised before anything is compiled or written.
    Diverged: the loss left its bounds; recorded in `status.json`.
    Interrupted: SIGTERM or SIGINT came; the state has been saved.

  Example:
    >>> from ws_jax import config
    >>> c = config.apply(config.default(), {"train.epochs": 0.1})
    >>> train_and_evaluate(c, "/tmp/run")["eval/accuracy"]  # doctest: +SKIP
    0.61
  """
  workdir = pathlib.Path(workdir)
  try:
    config, dataset, program = prepare(config)
    run = record.Run(
      workdir,
      config.to_dict(),
      cadence=_CADENCE,
      about=backend.describe(),
      clock=Clock(),
    )
  except ValueError as error:
    # Told apart from a ValueError out of the depths of a running program.
    raise config_lib.ConfigError(str(error)) from error
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints", keep=config.train.keep_checkpoints
  )
  try:
    with signals.stop_on_first() as stop:
      metrics = _loop(config, dataset, program, run, checkpoints, stop)
    run.status("done")
    return metrics
  except Diverged as error:
    run.status("diverged", error.step, error.reason)
    raise
  except Interrupted as error:
    run.status("interrupted", error.step, error.reason)
    raise
  except BaseException as error:
    run.status("failed", reason=f"{type(error).__name__}: {error}")
    raise
  finally:
    checkpoints.close()
    run.close()


def _loop(config, dataset, program, run, checkpoints, stop):
  """Train, log, evaluate, save: in that order at each step that is due."""
  train, batch_size = config.train, config.data.batch_size
  micro_batches = batch_size // config.optim.micro_batch_size
  everywhere = NamedSharding(program.mesh, PartitionSpec())
  with run.clock("train"):
    arrays, held_out = jax.device_put((dataset.train, dataset.test), everywhere)
    numbers = {
      name: config.optim[name]
      for name in ("learning_rate", "weight_decay", "momentum")
    }
    state = steps.init_state(program, arrays, config.seed, numbers)
    step = checkpoints.latest() or 0
    if step:
      state = checkpoints.load(step, state)
  run.start(step)
  # One compiled loop where that is fast; else a dispatch for every step.
  block = backend.steps_of_a_loop(train.log_every_steps, config.model.dtype)
  while step < train.steps:
    due = [train.log_every_steps, train.eval_every_steps, train.steps]
    due.append(train.checkpoint_every_steps)
    left = min(every - step % every for every in due)
    num_steps = min(left, block or 1)
    indices = data.batch_indices(
      config.seed, step, num_steps, batch_size, len(dataset.train["label"])
    ).reshape(num_steps, micro_batches, -1)
    with run.clock("train"):
      state = steps.train_block(program, state, arrays, indices, block=block)
    step += num_steps
    run.advance(step)
    last = step == train.steps
    if step % train.log_every_steps == 0 or last:
      with run.clock("train"):
        state = _log(run, program, state, step)
    if step % train.eval_every_steps == 0 or last:
      with run.clock("eval"):
        metrics = steps.evaluate(
          program, state, held_out, config.data.eval_batch_size
        )
      run.write({f"eval/{name}": x for name, x in metrics.items()})
      if not np.isfinite(metrics["loss"]):
        raise Diverged(step, f"evaluation loss is {metrics['loss']}")
    if step % train.checkpoint_every_steps == 0 or last or stop.signum:
      checkpoints.save(step, state)
    if stop.signum:
      checkpoints.close()
      raise Interrupted(step, stop.signum)
  return run.metrics


def _log(run, program, state, step):
  """Writes the means since the last row, and stops a run that diverged."""
  metrics = steps.means(state.sums) | steps.means(state.motion)
  metrics = {f"train/{name}": value for name, value in metrics.items()}
  rate = float(_learning_rate(program.optimizer, state.opt_state, step - 1))
  run.write(
    metrics
    | {
      "train/learning_rate": rate,
      "train/first_loss": float(state.first_loss),
    }
  )
  diverged_at = int(state.diverged_at)
  if diverged_at >= 0:
    raise Diverged(
      diverged_at,
      f"training loss not finite, or over {program.divergence_factor:g} times"
      f" the first, {float(state.first_loss):.3g}",
    )
  fresh = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
  return state.replace(
    sums=jax.tree.map(fresh, state.sums),
    motion=jax.tree.map(fresh, state.motion),
  )


_learning_rate = jax.jit(optim.Optimizer.learning_rate, static_argnums=0)


def prepare(
  config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, data.Dataset, steps.Program]:
  """Resolves a configuration and builds what it names; compiles nothing.

  Args:
    config: after all overrides; it is not changed.

  Returns:
    The resolved configuration, the data set and the program.

  Raises:
    ValueError: as `train_and_evaluate`.
  """
  # What is quick to refuse is refused before the data are read.
  data.check_dataset(config.data.name, config.data.dir)
  config_lib.resolve(config, num_examples=1 << 20, num_devices=1)
  build_model(config, num_classes=2)
  dataset = data.load_dataset(config.data.name, config.data.dir)
  config = config_lib.resolve(
    config,
    num_examples=len(dataset.train["label"]),
    num_devices=jax.device_count(),
  )
  return config, dataset, build_program(config, dataset)


def build_model(
  config: ml_collections.ConfigDict, num_classes: int
) -> nn.Module:
  """The model of a configuration; every wrong name or number is an error."""
  c = config.model
  spec = norm.NormSpec(
    kind=c.norm,
    num_groups=None if c.channels_per_group else c.num_groups,
    channels_per_group=c.channels_per_group,
    batch_size=c.norm_batch_size,
    momentum=c.norm_momentum,
  )
  dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
  return models.create_model(
    c.name,
    num_classes=num_classes,
    norm=spec,
    version=c.version,
    width=c.width,
    stem=c.stem,
    zero_init_last=c.zero_init_last,
    dtype=names.lookup(dtypes, c.dtype, "model.dtype"),
    remat=c.remat,
  )


def build_program(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> steps.Program:
  """The program of a resolved configuration."""
  o = config.optim
  convention = ws_jax.get_convention(config.model.ws_convention)
  schedule = optim.Schedule(
    o.schedule,
    total_steps=config.train.steps,
    warmup_steps=o.warmup_steps,
    boundaries=tuple(o.boundaries),
    factor=o.boundary_factor,
  )
  return steps.Program(
    task=tasks.ImageClassification(
      mean=dataset.mean,
      std=dataset.std,
      crop_padding=config.data.crop_padding,
      flip=config.data.flip,
      label_smoothing=o.label_smoothing,
    ),
    model=build_model(config, dataset.num_classes),
    optimizer=optim.Optimizer(
      schedule,
      name=o.name,
      nesterov=o.nesterov,
      decay=o.decay,
      centralize=o.centralize,
      clip_norm=o.clip_norm,
      adaptive_clip=o.adaptive_clip,
      rest_factor=o.rest_factor,
    ),
    mesh=Mesh(np.array(jax.devices()), ("data",)),
    convention=convention if config.model.ws else None,
    ema_decay=o.ema_decay,
    divergence_factor=config.train.divergence_factor,
  )
