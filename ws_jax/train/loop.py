"""`train_and_evaluate`: the whole story of a run, from config to metrics."""

import contextlib
import pathlib
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from ws_jax import config as config_lib
from ws_jax.base import signals
from ws_jax.data import place
from ws_jax.train import (
  backend,
  build,
  checkpoint,
  optim,
  predictions,
  processes,
  record,
)
from ws_jax.train import step as steps
from ws_jax.train.clock import Clock

# A resumed run may change these keys; they do not affect results.
_MAY_CHANGE = (
  "data.dir",
  "data.eval_batch_size",
  "data.on_error",  # so that a run that a broken file ended can go on
  "data.processes",
  "data.workers",
  "mesh.model",
  "mesh.params",
  "train.checkpoint_every_epochs",
  "train.checkpoint_every_steps",
  "train.keep_checkpoints",
)


class Diverged(RuntimeError):
  """The loss became non-finite, or rose far above where it began.

  Attributes:
    step: Number of the optimizer step whose loss showed it.
    reason: What was seen, in words.
  """

  def __init__(self, step: int, reason: str):
    super().__init__(f"diverged at step {step}: {reason}")
    self.step, self.reason = step, reason


class Interrupted(RuntimeError):
  """A signal ended the run; what was computed is kept.

  Attributes:
    step: Number of optimizer steps done.
    signum: Number of the signal.
    reason: What was received, in words.
  """

  def __init__(self, step: int, signum: int):
    self.step, self.signum = step, signum
    self.reason = f"received {signal.Signals(signum).name}"
    super().__init__(f"interrupted after step {step}: {self.reason}")


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  *,
  model: Any = None,
  task: Any = None,
  data: Any = None,
  optimizer: Any = None,
) -> dict[str, float]:
  """Trains and evaluates one run; resumes if the workdir holds a checkpoint.

  Several processes (`ws_jax.train.processes`) call it alike, with a workdir
  that all of them see.

  Args:
    config: Configuration, as `ws_jax.config.default`, after all overrides.
    workdir: Folder of the run, made if need be. If it holds a checkpoint of
      the same configuration the run goes on from there, to the same bits. A
      finished run may be made longer by more `train.steps` or `train.epochs`.
    model: Model in the place of `config.model.name`: a Flax Linen module, an
      NNX module, or a class of `nnx.Module`.
    task: Task in the place of `config.task.name`; see `ws_jax.tasks`.
    data: Data in the place of `config.data.name`: anything with `train` and
      `test`, dicts of arrays; see `ws_jax.data`.
    optimizer: Function in the place of `config.optim.name` that returns an
      optax transformation, as `optax.lion`.

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
  setup = build.start(
    config, model=model, task=task, dataset=data, optimizer=optimizer
  )
  workdir = pathlib.Path(workdir)
  try:
    run = record.Run(
      workdir,
      setup.config,
      may_change=_MAY_CHANGE,
      about=backend.describe() | record.about(setup),
      clock=Clock(),
      metric=setup.program.task.METRIC.name,
      writes=processes.first(),
    )
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from error
  for note in setup.notes if processes.first() else ():
    print(note, file=sys.stderr, flush=True)
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints", keep=setup.config.train.keep_checkpoints
  )
  try:
    with signals.stop_on_first() as stop:
      metrics = _loop(setup, run, checkpoints, stop)
    run.status("done")
    return metrics
  except (Diverged, Interrupted) as error:
    kind = "diverged" if isinstance(error, Diverged) else "interrupted"
    run.status(kind, error.step, error.reason)
    raise
  except BaseException as error:
    run.status("failed", reason=f"{type(error).__name__}: {error}")
    if processes.several():
      checkpoints.abandon()  # to close would be to wait for the others
    raise
  finally:
    setup.source.close()
    checkpoints.close()
    run.close()


def _loop(
  setup: build.Setup,
  run: record.Run,
  checkpoints: checkpoint.Checkpoints,
  stop: signals.Stop,
) -> dict[str, float]:
  """Trains, logs, evaluates, saves: in that order at each step that is due."""
  program, source, train = setup.program, setup.source, setup.config.train
  with run.clock("train"):
    state, step = checkpoints.newest(setup.state())
  run.start(step)
  if program.convention is not None and processes.first():
    line = steps.summary(program, state.params)
    print(f"standardizing {line}", file=sys.stderr, flush=True)
  block = setup.block
  due = {
    "log": train.log_every_steps,
    "evaluate": train.eval_every_steps,
    "save": train.checkpoint_every_steps,
    "end": train.steps,
  }
  while step < train.steps:
    left = min(every - step % every for every in due.values())
    num_steps = min(left, block or 1)
    arrays, indices = source.block(step, num_steps)
    with run.clock("train"), _debugged(step):
      state = steps.train_block(program, state, arrays, indices, block=block)
    step += num_steps
    run.advance(step)
    now = {what for what, every in due.items() if step % every == 0}
    signum = processes.agree(stop.signum)
    if now & {"log", "end"}:
      with run.clock("train"):
        _write(run, program, state, step)
        _check(program, state)
        state = _reset(state)
    if now & {"evaluate", "end"}:
      with run.clock("eval"):
        batches = source.batches(setup.config.data.eval_batch_size)
        answers = [] if "end" in now else None
        metrics = steps.evaluate(program, state, batches, answers)
      run.write({f"eval/{name}": x for name, x in metrics.items()})
      if not np.isfinite(metrics["loss"]):
        raise Diverged(step, f"evaluation loss is {metrics['loss']}")
      if answers:
        run.keep(predictions.gather(answers, setup.dataset.info))
    if now & {"save", "end"} or signum:
      checkpoints.save(step, state)
    if signum:
      checkpoints.close()
      raise Interrupted(step, signum)
  return run.metrics


@contextlib.contextmanager
def _debugged(step: int) -> Iterator[None]:
  """Turns what JAX_DEBUG_NANS raises into `Diverged`, and names the line."""
  try:
    yield
  except FloatingPointError as error:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    what = str(error).splitlines()[0]
    at = f"{ours[-1].filename}, line {ours[-1].lineno}: {ours[-1].line}"
    raise Diverged(step, f"{what} ({at})") from error


def _write(
  run: record.Run, program: steps.Program, state: steps.TrainState, step: int
) -> None:
  """Writes the means since the last row, and the learning rate."""
  metrics = steps.means(state.sums) | steps.means(state.motion)
  rate = _learning_rate(program.optimizer, state.opt_state, step - 1)
  metrics["learning_rate"] = float(rate)
  metrics["first_loss"] = float(state.first_loss)
  run.write({f"train/{name}": value for name, value in metrics.items()})


def _check(program: steps.Program, state: steps.TrainState) -> None:
  """Raises `Diverged` if a loss since the last check was out of bounds."""
  if (step := int(state.diverged_at)) < 0:
    return
  loss, first = float(state.diverged_loss), float(state.first_loss)
  reason = f"training loss is {loss:.4g}"
  if np.isfinite(loss):
    reason += (
      f", over {program.divergence_factor:g} times the first, {first:.3g}"
    )
  raise Diverged(step, reason)


def _reset(state: steps.TrainState) -> steps.TrainState:
  """Returns the state with its sums at zero."""
  zero = lambda x: place.put(np.zeros(x.shape, x.dtype), x.sharding)
  return state.replace(
    sums=jax.tree.map(zero, state.sums),
    motion=jax.tree.map(zero, state.motion),
  )


_learning_rate = jax.jit(optim.Optimizer.learning_rate, static_argnums=0)
