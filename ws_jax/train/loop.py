"""`train_and_evaluate`: the whole story of a run, from config to metrics.

`train_stack` is the same story of several runs in one program.
"""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ws_jax import config as config_lib
from ws_jax.base import signals
from ws_jax.data import place
from ws_jax.train import (
  backend,
  build,
  checkpoint,
  history,
  nonfinite,
  optim,
  predictions,
  processes,
  record,
  stack,
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
  "train.keep_log_rows",
)
# A signal is looked at behind each block of steps.
_SECONDS_OF_A_BLOCK = 2.0


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
    ConfigError: the configuration cannot be run, or not in this workdir, which
      another process may hold. Raised before anything is compiled or written;
      or no checkpoint there is whole. Later, if the loss is not finite since
      the data, or the parameters before the first step, are not.
    OSError: the disk is full, broken or read-only, or the workdir is gone.
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
  (outcome,) = _train([setup], [workdir])
  if isinstance(outcome, Diverged):
    raise outcome
  return outcome


def train_stack(
  configs: Sequence[ml_collections.ConfigDict],
  workdirs: Sequence[str | pathlib.Path],
) -> list[dict[str, float] | Diverged]:
  """Trains several runs in one program; see `stack`.

  Each leaves in its workdir what `train_and_evaluate` would, with the same
  numbers up to round-off, and its seconds are its share of the stack's. One
  that diverges ends, and the others go on. Started again they go on from their
  checkpoints, which must be of one step.

  Args:
    configs: Configuration of each run; they differ in `config.TRACED` alone.
    workdirs: Folder of each run.

  Returns:
    The last `train/...` and `eval/...` metrics of each run, or how it diverged.

  Raises:
    ConfigError: the configurations cannot be run, or not together.
    Interrupted: SIGTERM or SIGINT came; the states have been saved.

  Example:
    >>> from ws_jax import config
    >>> c = config.apply(config.default(), {"train.epochs": 0.1})
    >>> two = [c.copy_and_resolve_references() for _ in range(2)]
    >>> two[1].optim.base_learning_rate = 0.4
    >>> train_stack(two, ["/tmp/a", "/tmp/b"])  # doctest: +SKIP
    [{'train/loss': 0.81, ...}, {'train/loss': 0.66, ...}]
  """
  setups: list[build.Setup] = []
  for one in configs:
    loaded = setups[0].dataset if setups else None
    setups.append(build.start(one, loaded=loaded))
  try:
    stack.check([setup.config for setup in setups])
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from error
  return _train(setups, workdirs)


@dataclasses.dataclass
class _Member:
  """One of the runs that are trained together, mostly the only one."""

  setup: build.Setup
  run: record.Run
  checkpoints: checkpoint.Checkpoints
  already: bool  # done by an earlier attempt, without a checkpoint
  outcome: dict[str, float] | Diverged | None = None

  def diverge(self, error: Diverged) -> None:
    self.outcome = error
    self.run.status("diverged", error.step, error.reason)


def _train(
  setups: Sequence[build.Setup], workdirs: Sequence[str | pathlib.Path]
) -> list[Any]:
  """Trains runs of one program; returns the outcome of each."""
  members: list[_Member] = []
  try:
    for setup, workdir in zip(setups, workdirs, strict=True):
      members.append(_member(setup, pathlib.Path(workdir), len(setups)))
    with signals.stop_on_first() as stop:
      _loop(members, stop)
    for member in _live(members):
      member.checkpoints.close()  # what is not on disk is not done
      member.run.status("done", reason=_odd(member.run.metrics))
      member.outcome = member.run.metrics
    return [member.outcome for member in members]
  except Diverged as error:
    for member in _live(members):
      member.diverge(error)
    raise
  except Interrupted as error:
    for member in _live(members):
      member.run.status("interrupted", error.step, error.reason)
    raise
  except BaseException as error:
    for member in _live(members):
      member.run.status("failed", reason=f"{type(error).__name__}: {error}")
      if processes.several():
        member.checkpoints.abandon()  # to close would be to wait for the others
    raise
  finally:
    with contextlib.ExitStack() as ends:  # all of them, whatever one raises
      for member in members:
        ends.callback(member.run.close)
        ends.callback(member.checkpoints.close)
        ends.callback(member.setup.source.close)


def _member(setup: build.Setup, workdir: pathlib.Path, runs: int) -> _Member:
  """Opens the folder of a run, one of `runs` in this program."""
  try:
    run = record.Run(
      workdir,
      setup.config,
      may_change=_MAY_CHANGE,
      about=backend.describe() | record.about(setup) | {"stack": runs},
      clock=Clock(runs),
      metric=setup.program.task.METRIC.name,
      writes=processes.first(),
    )
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from error
  for note in setup.notes if processes.first() else ():
    print(note, file=sys.stderr, flush=True)
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints",
    keep=setup.config.train.keep_checkpoints,
    config=setup.config.to_dict(),
    may_change=(*_MAY_CHANGE, "train.steps", "train.epochs"),
  )
  already = run.ended is not None and checkpoints.latest() is None
  last = setup.config.train.steps
  if already and not run.ended == history.newest(run.workdir)[1] == last:
    run.close()
    raise config_lib.ConfigError(
      f"{run.workdir} holds a run that has ended after {run.ended} steps, and"
      " neither its evaluation nor a checkpoint. Choose another --workdir, or"
      " delete that one."
    )
  return _Member(setup, run, checkpoints, already)


def _odd(metrics: dict[str, float]) -> str:
  """Returns which metrics of the last evaluation are not finite, in words."""
  ours = {name: x for name, x in metrics.items() if name.startswith("eval/")}
  return ", ".join(f"{k} is {x}" for k, x in ours.items() if not np.isfinite(x))


def _live(members: Sequence[_Member]) -> list[_Member]:
  """Returns the runs that have not ended."""
  return [member for member in members if member.outcome is None]


@contextlib.contextmanager
def _timed(members: Sequence[_Member], name: str) -> Iterator[None]:
  """Counts a `with` block as `name` in the clock of each run."""
  with contextlib.ExitStack() as clocks:
    for member in members:
      clocks.enter_context(member.run.clock(name))
    yield


def _loop(members: Sequence[_Member], stop: signals.Stop) -> None:
  """Trains, logs, evaluates, saves: in that order at each step that is due."""
  setup, runs = members[0].setup, len(members)
  program, source, train = setup.program, setup.source, setup.config.train
  block = setup.block
  if runs > 1:
    source = stack.Sources([member.setup.source for member in members])
    block = block or 1
  with _timed(members, "train"):
    state, step = _begin(members)
  for member in members:
    member.run.start(step)
  due = {
    "log": train.log_every_steps,
    "evaluate": train.eval_every_steps,
    "save": train.checkpoint_every_steps,
    "end": train.steps,
  }
  signum, most = None, block or 1
  if step and _owes(members, step):
    signum = _evaluate(members, program, state, source, step, stop)
  while step < train.steps and _live(members) and not signum:
    left = min(every - step % every for every in due.values())
    num_steps = min(left, most)
    arrays, indices = source.block(step, num_steps)
    began = time.perf_counter()
    with _timed(members, "train"), _debugged(step):
      state = steps.train_block(program, state, arrays, indices, block=block)
    if jax.process_count() == 1:  # several would have to agree
      pace = (time.perf_counter() - began) / num_steps
      most = max(1, min(block or 1, int(_SECONDS_OF_A_BLOCK / pace)))
    step += num_steps
    for member in _live(members):
      member.run.advance(step)
    now = {what for what, every in due.items() if step % every == 0}
    signum = processes.agree(stop.signum)
    if now & {"log", "end"}:
      with _timed(members, "train"):
        came_back = _write(members, program, state, step)
        state = _reset(state, came_back or ())
    if now & {"evaluate", "end"} and _live(members) and not signum:
      signum = _evaluate(members, program, state, source, step, stop)
    if now & {"save", "end"} or signum:
      _save(members, state, step)
  if signum:
    for member in members:
      member.checkpoints.close()
    raise Interrupted(step, signum)


def _evaluate(
  members: Sequence[_Member],
  program: steps.Program,
  state: steps.TrainState,
  source: Any,
  step: int,
  stop: signals.Stop,
) -> int | None:
  """Evaluates each run, unless a signal comes meanwhile.

  One that goes on then begins with this evaluation, as `_owes` tells. Several
  processes take it to its end: they would have to agree at each batch.

  Returns:
    The signal that came.
  """
  config = members[0].setup.config
  with _timed(members, "eval"):
    batches = source.batches(config.data.eval_batch_size)
    if not processes.several():
      batches = signals.until(stop, batches)
    answers = [] if step == config.train.steps else None
    metrics = steps.evaluate(program, state, batches, answers)
  signum = processes.agree(stop.signum)
  if signum is None or processes.several():
    _keep(members, state, metrics, answers, step)
  return signum


def _owes(members: Sequence[_Member], step: int) -> bool:
  """Returns whether a signal kept runs from an evaluation that was due."""
  train = members[0].setup.config.train
  due = step == train.steps or step % train.eval_every_steps == 0
  missing = any(member.run.evaluated != step for member in members)
  # Process 0 alone knows which rows stay.
  return bool(processes.agree(int(due and missing and processes.first())))


def _newest(member: _Member) -> tuple[steps.TrainState, int]:
  """Returns the state that a run goes on from, and its step.

  A run that is done and kept no checkpoint has nothing left to do: to begin
  anew would be to lose what it found.
  """
  fresh = member.setup.state()
  # Process 0 may have begun to write what the others are to read.
  if processes.agree(int(member.already)):
    return fresh, member.setup.config.train.steps
  return member.checkpoints.newest(fresh)


def _begin(members: Sequence[_Member]) -> tuple[steps.TrainState, int]:
  """Returns the state that the runs go on from, and its step."""
  try:
    begun = [_newest(member) for member in members]
  except ValueError as error:  # none is whole
    raise config_lib.ConfigError(str(error)) from error
  states, at = zip(*begun, strict=True)
  if len(set(at)) > 1:
    raise config_lib.ConfigError(
      f"runs of a stack go on together, and these are at steps {at}"
    )
  program = members[0].setup.program
  if program.convention is not None and processes.first():
    line = steps.summary(program, states[0].params)
    print(f"standardizing {line}", file=sys.stderr, flush=True)
  return stack.join(states, program.mesh), at[0]


def _write(
  members: Sequence[_Member],
  program: steps.Program,
  state: steps.TrainState,
  step: int,
) -> list[bool]:
  """Writes a row of each run, and ends those that have diverged.

  A row has the means since the last one, and the learning rate.

  Returns:
    Whether the loss of each was out of bounds, and has come back.
  """
  last = steps.number(program, step - 1)
  rate = _learning_rate(program.optimizer, state.opt_state, last)
  few = state.replace(
    params=None, model_state=None, opt_state=None, ema_params=None
  )
  seen = stack.parts(jax.device_get((few, rate)), len(members))
  came_back = [False] * len(members)
  for i, (member, (state, rate)) in enumerate(zip(members, seen, strict=True)):
    if member.outcome is not None:
      continue
    metrics = steps.means(state.sums) | steps.means(state.motion)
    metrics["learning_rate"] = float(rate)
    metrics["first_loss"] = float(state.first_loss)
    verdict = _verdict(member.setup, state, metrics["loss"], step)
    if verdict == "spike":
      came_back[i] = True
      metrics["spike_step"] = int(state.diverged_at)
      metrics["spike_loss"] = float(state.diverged_loss)
    member.run.write({f"train/{name}": x for name, x in metrics.items()})
    if verdict == "diverged":
      member.diverge(_divergence(member, program, state))
  return came_back


def _verdict(
  setup: build.Setup, state: steps.TrainState, loss: float, step: int
) -> str:
  """Returns what a loss that was out of bounds is by now.

  Args:
    setup: The run.
    state: What its state says of divergence, in host memory.
    loss: Mean training loss since the last row.
    step: Number of steps done.

  Returns:
    "" if there was none, or for it to be seen in the next row; "spike" if the
    loss has come back; "diverged".
  """
  train, at = setup.config.train, int(state.diverged_at)
  if at < 0:
    return ""
  if not train.divergence_patience or not np.isfinite(state.diverged_loss):
    return "diverged"
  if loss <= setup.program.divergence_factor * float(state.first_loss):
    return "spike"
  rows = (step - 1) // train.log_every_steps - at // train.log_every_steps
  waits = rows < train.divergence_patience and np.isfinite(loss)
  return "" if waits else "diverged"


def _divergence(
  member: _Member, program: steps.Program, state: steps.TrainState
) -> Diverged:
  """Returns what was out of bounds since the last row.

  Raises:
    ConfigError: the data, or the first parameters, hold what is not finite.
  """
  loss, first = float(state.diverged_loss), float(state.first_loss)
  at, reason = int(state.diverged_at), f"training loss is {loss:.4g}"
  if np.isfinite(loss):
    bound = f"{program.divergence_factor:g} times the first, {first:.3g}"
    return Diverged(at, f"{reason}, over {bound}")
  found = nonfinite.find(member.setup, member.checkpoints, at)
  return _explained(at, reason, found)


def _explained(at: int, reason: str, found: nonfinite.Found | None) -> Diverged:
  """Returns a divergence with what was not finite first.

  Raises:
    ConfigError: the run was given it, and has not diverged.
  """
  if found is None:
    return Diverged(at, reason)
  if found.given:
    raise config_lib.ConfigError(f"{reason} at step {at}, as {found.reason}")
  return Diverged(at, f"{reason}; first {found.reason}")


def _keep(
  members: Sequence[_Member],
  state: steps.TrainState,
  metrics: dict[str, Any],
  answers: list[jax.Array] | None,
  step: int,
) -> None:
  """Writes what an evaluation found of each run, and its last answers."""
  found = stack.parts((metrics, answers), len(members))
  for i, (member, (metrics, answers)) in enumerate(
    zip(members, found, strict=True)
  ):
    if member.outcome is not None:
      continue
    member.run.write({f"eval/{name}": float(x) for name, x in metrics.items()})
    if not np.isfinite(metrics["loss"]):
      reason = f"evaluation loss is {float(metrics['loss'])}"
      own = stack.parts(state, len(members))[i]
      why = nonfinite.find_in_evaluation(member.setup, own)
      member.diverge(_explained(step, reason, why))
    elif answers:
      info = member.setup.dataset.info
      member.run.keep(predictions.gather(answers, info))


def _save(
  members: Sequence[_Member], state: steps.TrainState, step: int
) -> None:
  """Starts to write the state of each run that has not ended."""
  states = stack.parts(state, len(members))
  for member, one in zip(members, states, strict=True):
    if member.outcome is None and not _is_lost(one):
      member.checkpoints.save(step, one)


def _is_lost(state: steps.TrainState) -> bool:
  """Returns whether nothing can be made of a state: its loss is not finite.

  The next row ends its run. Until then the newest checkpoint is a sound one.
  """
  return int(state.diverged_at) >= 0 and not np.isfinite(state.diverged_loss)


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


def _reset(
  state: steps.TrainState, came_back: Sequence[bool]
) -> steps.TrainState:
  """Returns the state with its sums at zero, and spikes forgotten."""
  if any(came_back):
    at = state.diverged_at
    calm = np.asarray(came_back).reshape(at.shape)
    now = np.where(calm, np.int32(-1), jax.device_get(at))
    sharding: Any = at.sharding
    state = state.replace(diverged_at=place.put(now, sharding))
  sums, motion = _zeros(state.sums["count"].sharding)(state.sums, state.motion)
  return state.replace(sums=sums, motion=motion)


@functools.cache
def _zeros(sharding: Any) -> Any:
  """Returns a program that makes zeros; to send each takes 40 times as long."""
  return jax.jit(
    lambda *trees: jax.tree.map(jnp.zeros_like, trees), out_shardings=sharding
  )


_learning_rate = jax.jit(optim.Optimizer.learning_rate, static_argnums=0)
