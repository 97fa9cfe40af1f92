"""One step of training, one of evaluation, and the state they work on.

Read `train_step` first: `begin`, `accumulate` for each micro-batch and `finish`
are one step. `run_steps` dispatches steps one by one, `run_loop` compiles
several into one program; `train_block` chooses. `evaluate` goes over a set.
Several runs can be one state, with a leading axis in every array: see `stack`.

Weight Standardization is a function that stands in front of the model, for
training and evaluation alike (`effective_params`). It runs once per optimizer
step: the gradients of all micro-batches are summed with respect to the
effective parameters and pulled back through it once.

Where arrays lie on several devices is said in `sharding`: `_split` for a batch,
`_in_parts` for parameters and what has their shape.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import ws_jax
from ws_jax import tasks
from ws_jax.data import place
from ws_jax.train import backend, calling, optim, sharding, stack

PyTree = Any
Sums = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes, and all that a checkpoint holds.

  Attributes:
    step: Number of optimizer steps done, int32 scalar.
    seed: Seed of augmentation and dropout, int32 scalar.
    params: Raw parameters, float32; WS never changes them.
    model_state: The model's other collections, e.g. running statistics.
    opt_state: Optimizer state; learning rate, weight decay and momentum are
      leaves of it.
    ema_params: Moving average of `params`, or None.
    sums: Training metrics since they were last read, as sums and `count`.
    motion: Sums of the relative sizes of the updates since they were last
      read; see `Optimizer.motion`.
    first_loss: Training loss of the first step.
    diverged_at: First step whose loss was out of bounds, or -1.
    diverged_loss: Loss of that step.
  """

  step: jax.Array
  seed: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
  ema_params: PyTree
  sums: Sums
  motion: Sums
  first_loss: jax.Array
  diverged_at: jax.Array
  diverged_loss: jax.Array


class Partial(flax.struct.PyTreeNode):
  """Sums over the micro-batches of a step that are done so far.

  Attributes:
    grads: Sum of the gradients of the loss by the effective parameters.
    model_state: The model's other collections after the last micro-batch.
    sums: Metrics of this step.
  """

  grads: PyTree
  model_state: PyTree
  sums: Sums


@dataclasses.dataclass(frozen=True)
class Program:
  """All that shapes the compiled step: a static, hashable argument.

  What a sweep varies without recompiling (learning rate, weight decay,
  momentum, seed) is in `TrainState` instead.

  Attributes:
    task: Makes batches and sums losses; see `ws_jax.tasks`.
    model: Flax Linen module, or a `calling.NNXModel`.
    optimizer: Update rule and schedule.
    mesh: Devices; the batch is split over its `data` axis, and kernels over
      its `model` axis, if it has one.
    convention: Convention of Weight Standardization; None for plain weights.
    ws_where: Shell patterns of the parameters to standardize; empty for the
      kernels of convolutions.
    ws_axes: Name in `calling.WS_AXES`, which decides what is a filter.
    ws_gains: Whether each standardized filter has a scale that is learned.
    ws_depthwise: Treatment of depthwise kernels by WS: `standardize`, `scale`
      or `leave`.
    frozen_norms: Shell patterns of running statistics; the layers that have
      them behave in training as in evaluation.
    ema_decay: Decay of `ema_params`, or None.
    divergence_factor: A loss above this many times the first is divergence.
    sharded: Whether parameters and optimizer state are split over `data`, too.
  """

  task: Any
  model: Any
  optimizer: optim.Optimizer
  mesh: Mesh
  convention: ws_jax.Convention | None = None
  ws_where: tuple[str, ...] = ()
  ws_axes: str = "joint"
  ws_gains: bool = False
  ws_depthwise: str = "standardize"
  frozen_norms: tuple[str, ...] = ()
  ema_decay: float | None = None
  divergence_factor: float = 20.0
  sharded: bool = False


def effective_params(program: Program, params: PyTree) -> PyTree:
  """Returns the parameters to apply the model with, standardized if WS is on.

  They exist inside a step alone; the raw ones are the state.
  """
  return calling.effective_params(
    program.model,
    params,
    program.convention,
    program.ws_where,
    program.ws_axes,
    program.ws_depthwise,
  )


def summary(program: Program, params: PyTree) -> str:
  """Returns in one line which kernels of a run are standardized."""
  return calling.summary(
    program.model,
    params,
    program.ws_where,
    program.ws_axes,
    program.ws_depthwise,
  )


def init_params(
  program: Program, key: jax.Array, inputs: jax.Array
) -> tuple[PyTree, PyTree]:
  """Makes the raw parameters and the model's other state.

  Args:
    program: The program to be trained.
    key: Random key of the initialization.
    inputs: Inputs of the right shape, `[B, ...]`.
  """
  params, state = calling.init(program.model, key, inputs)
  if program.convention is not None and program.ws_gains:
    where, axes = calling.selection(
      program.model, program.ws_where, program.ws_axes
    )
    params = calling.with_gains(params, where, axes)
  return params, state


def init_state(
  program: Program,
  arrays: PyTree,
  seed: jax.typing.ArrayLike,
  hyperparams: PyTree,
) -> TrainState:
  """Returns a fresh state, of the same numbers on any devices.

  Args:
    program: The program to be trained.
    arrays: Arrays of the training set; only their shapes matter.
    seed: Seed of the parameters, augmentation and dropout, int32 scalar.
    hyperparams: `learning_rate`, `weight_decay` and `momentum`.
  """
  init = _jitted(_init_state, options=backend.options_to_compile_quickly)
  numbers = jax.tree.map(np.asarray, (seed, hyperparams))
  whole = sharding.whole(program.mesh)
  return init(program, arrays, *place.put(numbers, whole))


@functools.cache
def _jitted(function, donate=(), *, options=backend.options_to_run_fast):
  """Returns the compiled function; late, since options ask for the backend."""
  return jax.jit(
    function,
    static_argnums=0,
    donate_argnums=donate,
    compiler_options=options(),
  )


def _init_state(program, arrays, seed, hyperparams):
  batch = program.task.batch(arrays, jnp.zeros((1,), jnp.int32), None)
  key = jax.random.key(seed)
  params, model_state = init_params(program, key, batch["inputs"])
  opt_state = program.optimizer.init(params, **hyperparams)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(seed, jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    ema_params=None if program.ema_decay is None else params,
    sums=_no_sums(program),
    motion=jax.tree.map(jnp.zeros_like, program.optimizer.motion(opt_state)),
    first_loss=jnp.zeros((), jnp.float32),
    diverged_at=jnp.full((), -1, jnp.int32),
    diverged_loss=jnp.zeros((), jnp.float32),
  )
  everywhere = sharding.whole(program.mesh)
  state = jax.lax.with_sharding_constraint(state, everywhere)
  return _parted(program, state)


def _parted(program: Program, state: TrainState) -> TrainState:
  """Returns the state with each array split as `sharding` says."""
  return state.replace(
    params=_in_parts(program, state.params),
    model_state=_in_parts(program, state.model_state),
    opt_state=_in_parts(program, state.opt_state),
    ema_params=_in_parts(program, state.ema_params),
  )


def begin(program: Program, state: TrainState) -> tuple[PyTree, Partial]:
  """Standardizes the weights, once for all micro-batches of a step."""
  effective = _in_parts(program, effective_params(program, state.params))
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  return effective, Partial(
    grads=_in_parts(program, zeros(effective)),
    model_state=state.model_state,
    sums=zeros(state.sums),
  )


def accumulate(
  program: Program,
  state: TrainState,
  effective: PyTree,
  partial: Partial,
  arrays: PyTree,
  indices: jax.Array,
  number: jax.Array | int,
) -> Partial:
  """Adds micro-batch `number` (from 0): the examples at `indices` [B]."""
  batch_key, model_key = keys(state, number)
  if getattr(program.task, "streamed", False):
    arrays = _part_of_each_device(program, arrays, len(indices), number)
  batch = _split(program, program.task.batch(arrays, indices, batch_key))

  def loss_fn(effective):
    outputs, model_state = calling.apply(
      program.model,
      _gathered(program, effective),
      partial.model_state,
      batch["inputs"],
      train=True,
      key=model_key,
      frozen=program.frozen_norms,
    )
    mask = jnp.ones(indices.shape, jnp.float32)
    sums = program.task.sums(outputs, batch, mask, training=True)
    return sums["loss"], (model_state, sums)

  if program.sharded:
    loss_fn = sharding.gathers_again(loss_fn, program.mesh)
  grads, (model_state, sums) = jax.grad(loss_fn, has_aux=True)(effective)
  return Partial(
    grads=_add(partial.grads, _in_parts(program, grads)),
    model_state=model_state,
    sums=_add(partial.sums, sums),
  )


def keys(
  state: TrainState, number: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
  """Returns the random keys of the batch and the model, of a micro-batch."""
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  batch_key, model_key = jax.random.split(jax.random.fold_in(key, number))
  return batch_key, model_key


def gradient(program: Program, state: TrainState, partial: Partial) -> PyTree:
  """Returns the gradient of the mean loss by the raw parameters."""
  count = jnp.maximum(partial.sums["count"], 1.0)
  standardize = functools.partial(effective_params, program)
  _, pull_back = jax.vjp(standardize, state.params)
  (grads,) = pull_back(jax.tree.map(lambda g: g / count, partial.grads))
  return grads


def finish(program: Program, state: TrainState, partial: Partial) -> TrainState:
  """Pulls the summed gradient back through WS and updates the parameters."""
  count = jnp.maximum(partial.sums["count"], 1.0)
  params, opt_state = program.optimizer.update(
    gradient(program, state, partial), state.opt_state, state.params
  )
  ema_params = state.ema_params
  if program.ema_decay is not None:
    mix = lambda old, new: old + (1 - program.ema_decay) * (new - old)
    ema_params = jax.tree.map(mix, ema_params, params)
  loss = partial.sums["loss"] / count
  first = jnp.where(state.step == 0, loss, state.first_loss)
  # Of a loss that began at 0 or below, as a log-likelihood, no multiple says
  # anything.
  far = (first > 0) & (loss > program.divergence_factor * first)
  out = ~jnp.isfinite(loss) | far
  newly = (state.diverged_at < 0) & out
  state = state.replace(
    step=state.step + 1,
    params=params,
    model_state=partial.model_state,
    opt_state=opt_state,
    ema_params=ema_params,
    sums=_add(state.sums, partial.sums),
    motion=_add(state.motion, program.optimizer.motion(opt_state)),
    first_loss=first,
    diverged_at=jnp.where(newly, state.step, state.diverged_at),
    diverged_loss=jnp.where(newly, loss, state.diverged_loss),
  )
  return _parted(program, state)


def train_step(
  program: Program, state: TrainState, arrays: PyTree, indices: jax.Array
) -> TrainState:
  """Does one optimizer step.

  Args:
    program: The program that is trained.
    state: State before the step.
    arrays: Arrays of the training set, on the devices.
    indices: Positions in them, int32 [micro-batches, examples of each].

  Returns:
    The state after the step.
  """
  effective, partial = begin(program, state)

  def add(partial, numbered):
    number, chosen = numbered
    return accumulate(
      program, state, effective, partial, arrays, chosen, number
    ), None

  if indices.shape[0] == 1:
    partial, _ = add(partial, (0, indices[0]))
  else:
    partial, _ = jax.lax.scan(
      add, partial, (jnp.arange(len(indices), dtype=jnp.int32), indices)
    )
  return finish(program, state, partial)


def train_block(
  program: Program,
  state: TrainState,
  arrays: PyTree,
  indices: np.ndarray,
  *,
  block: int | None = None,
) -> TrainState:
  """Does several steps; `state` is donated.

  Args:
    program: The program that is trained.
    state: State before the first step.
    arrays: Arrays of the training set, on the devices.
    indices: Positions in them, int32 [steps, micro-batches, examples of each];
      of a stack [steps, runs, micro-batches, examples of each].
    block: Most steps that one compiled loop runs; None: Python dispatches each
      step, and each micro-batch.

  Returns:
    The state after the last step.
  """
  if block:
    return run_loop(program, state, arrays, indices, block)
  return run_steps(program, state, arrays, indices)


def run_loop(program, state, arrays, indices, block):
  """Runs steps as one compiled loop.

  `indices` is padded to `block` steps, so that any shorter block uses the same
  program; the padding is not run.
  """
  padding = [(0, block - len(indices))] + [(0, 0)] * (indices.ndim - 1)
  padded = _put(program, np.pad(indices, padding))
  loop = _jitted(_loop, donate=1)
  return loop(program, state, arrays, padded, number(program, len(indices)))


def _loop(program, state, arrays, indices, num_steps):
  one = functools.partial(train_step, program)
  each = stack.over(one, state.step, (0, None, 0))
  body = lambda i, state: each(state, arrays, indices[i])
  return jax.lax.fori_loop(0, num_steps, body, state)


def run_steps(program, state, arrays, indices):
  """Dispatches steps one by one, and with micro-batches the parts of each."""
  for chosen in indices:
    if len(chosen) == 1:
      one = _jitted(train_step, donate=1)
      state = one(program, state, arrays, _put(program, chosen))
      continue
    effective, partial = _jitted(begin)(program, state)
    # `partial` has taken these buffers over, and donates them.
    state = state.replace(model_state=None)
    for i, micro in enumerate(chosen):
      micro = _put(program, micro)
      at = number(program, i)
      partial = _jitted(accumulate, donate=3)(
        program, state, effective, partial, arrays, micro, at
      )
    state = _jitted(finish, donate=1)(program, state, partial)
  return state


def _put(program: Program, indices: np.ndarray) -> jax.Array:
  """Splits the examples of each micro-batch over the devices."""
  last = indices.ndim - 1
  return place.put(indices, sharding.by_example(program.mesh, axis=last))


def number(program: Program, value: int) -> jax.Array:
  """Puts a number on the devices, as JAX's transfer guard wants it said."""
  return place.put(np.int32(value), sharding.whole(program.mesh))


def _eval_block(program, sums, effective, model_state, arrays, indices, mask):
  one = functools.partial(_eval_step, program)
  axes = (0, 0, 0, None, None, None)
  each = stack.over(one, sums["count"], axes)
  return each(sums, effective, model_state, arrays, indices, mask)


def _eval_step(program, sums, effective, model_state, arrays, indices, mask):
  batch = _split(program, program.task.batch(arrays, indices, None))
  params = _gathered(program, effective)
  outputs, _ = calling.apply(
    program.model, params, model_state, batch["inputs"], train=False
  )
  sums = _add(sums, program.task.sums(outputs, batch, mask, training=False))
  return sums, _answers(program, outputs, batch, mask)


def _answers(program, outputs, batch, mask):
  """Returns what a task of classification answered, -1 where `mask` is 0.

  It is on every device, so that each process can read it; None for other tasks.
  """
  answers = getattr(program.task, "answers", None)
  if answers is None:
    return None
  found = jnp.where(mask > 0, answers(outputs, batch), -1)
  return jax.lax.with_sharding_constraint(found, sharding.whole(program.mesh))


def evaluate(
  program: Program,
  state: TrainState,
  batches: Iterable[tuple[PyTree, jax.Array, jax.Array]],
  answers: list[jax.Array] | None = None,
) -> dict[str, float]:
  """Returns the means of loss and metrics over all batches.

  Args:
    program: The program that is evaluated.
    state: Its state; the moving average of parameters is used if there is one.
    batches: Arrays, positions in them and mask, as a source's `batches`.
    answers: List to which what the task answered is added, int32 [3, B] for
      each batch; None to keep nothing.

  Returns:
    Means by name; of a stack float64 arrays [runs], and answers [runs, 3, B].
  """
  params = state.params if state.ema_params is None else state.ema_params
  return evaluate_params(
    program, params, state.model_state, batches, answers, state.step.shape
  )


def evaluate_params(
  program: Program,
  params: PyTree,
  model_state: PyTree,
  batches: Iterable[tuple[PyTree, jax.Array, jax.Array]],
  answers: list[jax.Array] | None = None,
  runs: tuple[int, ...] = (),
) -> dict[str, float]:
  """Returns what `evaluate` does, of raw parameters and other collections.

  `runs` is the leading shape of every array: `(K,)` for a stack of K runs.
  """
  sums = _no_sums(program, runs)
  effective = _jitted(_effective_params)(program, params, sums)
  sums = place.put(sums, sharding.whole(program.mesh))
  for arrays, indices, mask in batches:
    sums, found = _jitted(_eval_block, donate=1)(
      program, sums, effective, model_state, arrays, indices, mask
    )
    if answers is not None and found is not None:
      answers.append(found)
  return means(sums)


def _effective_params(program, params, sums):
  one = functools.partial(effective_params, program)
  return stack.over(one, sums["count"], (0,))(params)


def _no_sums(program: Program, runs: tuple[int, ...] = ()) -> dict[str, Any]:
  """Returns the sums of a task at zero."""
  names = ("loss", *tasks.metric_names(program.task), "count")
  return {name: np.zeros(runs, np.float32) for name in names}


def means(sums: Sums) -> dict[str, Any]:
  """Returns sums over their counts; waits for the device.

  The count of a sum is `NAME_count`, and `count` where there is none.

  Returns:
    Python floats by name; of a stack float64 arrays [runs].

  Example:
    >>> means({"loss": 6.0, "wer": 2.0, "wer_count": 8.0, "count": 3.0})
    {'loss': 2.0, 'wer': 0.25}
  """
  read = jax.device_get(sums)
  values = {name: np.asarray(x, np.float64) for name, x in read.items()}
  count = values.pop("count")
  own = {
    name: values.pop(f"{name}_count")
    for name in tuple(values)
    if f"{name}_count" in values
  }
  ratios = {
    name: value / np.maximum(own.get(name, count), 1.0)
    for name, value in values.items()
  }
  return {name: x if x.ndim else float(x) for name, x in ratios.items()}


def _add(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(jnp.add, a, b)


def _split(program: Program, batch: PyTree) -> PyTree:
  """Returns the batch with a part on each device."""
  by_example = sharding.by_example(program.mesh)
  return jax.lax.with_sharding_constraint(batch, by_example)


def _part_of_each_device(program, arrays, size, number):
  """Returns the examples of a micro-batch, which are there in order.

  To take them by their indices would send them from device to device.
  """
  devices = program.mesh.shape["data"]

  def part(x):
    rest = x.shape[1:]
    by_device = x.reshape(devices, -1, size // devices, *rest)
    return by_device[:, number].reshape(size, *rest)

  return _split(program, jax.tree.map(part, arrays))


def _in_parts(program: Program, tree: PyTree) -> PyTree:
  """Returns parameters, or what has their shape, split over the devices."""
  return sharding.split(tree, program.mesh, sharded=program.sharded)


def _gathered(program: Program, effective: PyTree) -> PyTree:
  """Returns the effective parameters as the model uses them."""
  return sharding.gather(effective, program.mesh, sharded=program.sharded)
