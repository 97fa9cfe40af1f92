"""One step of training, one of evaluation, and the state they work on.

Weight Standardization is a function that stands in front of `model.apply`,
for training and evaluation alike (`effective_params`). It runs once per
optimizer step: the gradients of all micro-batches are summed with respect to
the effective parameters and pulled back through it once.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ws_jax
from ws_jax import data
from ws_jax.train import backend, optim

PyTree = Any
Sums = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes, and all that a checkpoint holds.

  Attributes:
    step: optimizer steps done, int32 scalar.
    seed: of augmentation and dropout, int32 scalar.
    params: raw parameters, float32; WS never changes them.
    model_state: the model's other collections, e.g. running statistics.
    opt_state: holds the learning rate, weight decay and momentum as leaves.
    ema_params: moving average of `params`, or None.
    sums: training metrics since they were last read, as sums and `count`.
    motion: the same for how far the steps went; see `Optimizer.motion`.
    first_loss: training loss of the first step.
    diverged_at: the first step whose loss was out of bounds, or -1.
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


class Work(flax.struct.PyTreeNode):
  """A step under way: what the micro-batches done so far add up to.

  Attributes:
    grads: sum of the gradients of the loss by the effective parameters.
    model_state: as the last micro-batch left it.
    sums: metrics of this step.
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
    task: makes batches and sums losses; see `ws_jax.tasks`.
    model: a Flax module called as `model.apply(variables, inputs, train=)`.
    optimizer: the update rule and its schedule.
    mesh: devices; the batch is split over its `data` axis.
    convention: of Weight Standardization, or None for plain weights.
    ema_decay: of `ema_params`, or None.
    divergence_factor: a loss above this many times the first is divergence.
  """

  task: Any
  model: nn.Module
  optimizer: optim.Optimizer
  mesh: Mesh
  convention: ws_jax.Convention | None = None
  ema_decay: float | None = None
  divergence_factor: float = 20.0


def effective_params(program: Program, params: PyTree) -> PyTree:
  """What the model is applied with: the raw parameters, standardized if WS."""
  if program.convention is None:
    return params
  return ws_jax.weight_standardize(params, convention=program.convention)


def init_state(
  program: Program,
  arrays: PyTree,
  seed: jax.typing.ArrayLike,
  numbers: PyTree,
) -> TrainState:
  """A fresh state, the same on every device.

  Args:
    program: what is to be trained.
    arrays: the training set; only its shapes matter.
    seed: int32 scalar.
    numbers: `learning_rate`, `weight_decay` and `momentum`.
  """
  init = _jitted(_init_state, options=backend.options_to_compile_quickly)
  return init(program, arrays, seed, numbers)


@functools.cache
def _jitted(function, donate=(), *, options=backend.options_to_run_fast):
  """The compiled function; made late, since the options ask for the backend."""
  return jax.jit(
    function,
    static_argnums=0,
    donate_argnums=donate,
    compiler_options=options(),
  )


def _init_state(program, arrays, seed, numbers):
  batch = program.task.batch(arrays, jnp.zeros((1,), jnp.int32), None)
  key = jax.random.key(seed)
  variables = dict(program.model.init(key, batch["inputs"], train=False))
  params = variables.pop("params")
  opt_state = program.optimizer.init(params, **numbers)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(seed, jnp.int32),
    params=params,
    model_state=variables,
    opt_state=opt_state,
    ema_params=None if program.ema_decay is None else params,
    sums={
      name: jnp.zeros(()) for name in ("loss", *program.task.metrics, "count")
    },
    motion=jax.tree.map(jnp.zeros_like, program.optimizer.motion(opt_state)),
    first_loss=jnp.full((), jnp.inf, jnp.float32),
    diverged_at=jnp.full((), -1, jnp.int32),
  )
  everywhere = NamedSharding(program.mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(state, everywhere)


def begin(program: Program, state: TrainState) -> tuple[PyTree, Work]:
  """Standardizes the weights, once for all micro-batches of a step."""
  effective = effective_params(program, state.params)
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  return effective, Work(
    grads=zeros(effective),
    model_state=state.model_state,
    sums=zeros(state.sums),
  )


def accumulate(
  program: Program,
  state: TrainState,
  effective: PyTree,
  work: Work,
  arrays: PyTree,
  indices: jax.Array,
  number: jax.Array | int,
) -> Work:
  """Adds micro-batch `number` (from 0): the examples at `indices` [B]."""
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  batch_key, model_key = jax.random.split(jax.random.fold_in(key, number))
  batch = _split(program, program.task.batch(arrays, indices, batch_key))

  def loss_fn(effective):
    outputs, model_state = program.model.apply(
      {"params": effective, **work.model_state},
      batch["inputs"],
      train=True,
      mutable=list(work.model_state),
      rngs={"dropout": model_key},
    )
    mask = jnp.ones(indices.shape)
    sums = program.task.sums(outputs, batch, mask, training=True)
    return sums["loss"], (dict(model_state), sums)

  grads, (model_state, sums) = jax.grad(loss_fn, has_aux=True)(effective)
  return Work(
    grads=_add(work.grads, grads),
    model_state=model_state,
    sums=_add(work.sums, sums),
  )


def finish(program: Program, state: TrainState, work: Work) -> TrainState:
  """Pulls the summed gradient back through WS and updates the parameters."""
  count = jnp.maximum(work.sums["count"], 1.0)
  standardize = functools.partial(effective_params, program)
  _, pull_back = jax.vjp(standardize, state.params)
  (grads,) = pull_back(jax.tree.map(lambda g: g / count, work.grads))
  params, opt_state = program.optimizer.update(
    grads, state.opt_state, state.params
  )
  ema_params = state.ema_params
  if program.ema_decay is not None:
    mix = lambda old, new: old + (1 - program.ema_decay) * (new - old)
    ema_params = jax.tree.map(mix, ema_params, params)
  loss = work.sums["loss"] / count
  first = jnp.where(state.step == 0, loss, state.first_loss)
  out = ~jnp.isfinite(loss) | (loss > program.divergence_factor * first)
  newly = (state.diverged_at < 0) & out
  return state.replace(
    step=state.step + 1,
    params=params,
    model_state=work.model_state,
    opt_state=opt_state,
    ema_params=ema_params,
    sums=_add(state.sums, work.sums),
    motion=_add(state.motion, program.optimizer.motion(opt_state)),
    first_loss=first,
    diverged_at=jnp.where(newly, state.step, state.diverged_at),
  )


def train_step(
  program: Program, state: TrainState, arrays: PyTree, indices: jax.Array
) -> TrainState:
  """One optimizer step.

  Args:
    program: what is trained.
    state: before the step.
    arrays: the training set, on the device.
    indices: int32 [micro-batches, examples of each].

  Returns:
    The state after the step.
  """
  effective, work = begin(program, state)

  def add(work, numbered):
    number, chosen = numbered
    return accumulate(
      program, state, effective, work, arrays, chosen, number
    ), None

  if indices.shape[0] == 1:
    work, _ = add(work, (0, indices[0]))
  else:
    work, _ = jax.lax.scan(add, work, (jnp.arange(len(indices)), indices))
  return finish(program, state, work)


def _loop(program, state, arrays, indices, num_steps):
  """The first `num_steps` of `indices` [block, micro-batches, examples]."""
  body = lambda i, state: train_step(program, state, arrays, indices[i])
  return jax.lax.fori_loop(0, num_steps, body, state)


def train_block(
  program: Program,
  state: TrainState,
  arrays: PyTree,
  indices: np.ndarray,
  *,
  block: int | None = None,
) -> TrainState:
  """Several steps; `state` is donated.

  Args:
    program: what is trained.
    state: before the first step.
    arrays: the training set, on the device.
    indices: int32 [steps, micro-batches, examples of each].
    block: the most steps that one compiled loop runs; `indices` is padded to
      it, so that any shorter block uses the same program. None: Python
      dispatches each step, and each micro-batch.

  Returns:
    The state after the last step.
  """

  def put(x: np.ndarray) -> jax.Array | np.ndarray:
    if program.mesh.size == 1:  # then the call does so, and sooner
      return x
    spec = PartitionSpec(*[None] * (x.ndim - 1), "data")
    return jax.device_put(x, NamedSharding(program.mesh, spec))

  if block:
    padding = ((0, block - len(indices)), (0, 0), (0, 0))
    padded = put(np.pad(indices, padding))
    loop = _jitted(_loop, donate=1)
    return loop(program, state, arrays, padded, len(indices))
  for chosen in indices:
    if len(chosen) == 1:
      one = _jitted(train_step, donate=1)
      state = one(program, state, arrays, put(chosen))
      continue
    effective, work = _jitted(begin)(program, state)
    # `work` has taken these buffers over, and donates them.
    state = state.replace(model_state=None)
    for number, micro in enumerate(chosen):
      work = _jitted(accumulate, donate=3)(
        program, state, effective, work, arrays, put(micro), number
      )
    state = _jitted(finish, donate=1)(program, state, work)
  return state


def _eval_step(program, sums, effective, model_state, arrays, indices, mask):
  batch = _split(program, program.task.batch(arrays, indices, None))
  variables = {"params": effective, **model_state}
  outputs = program.model.apply(variables, batch["inputs"], train=False)
  return _add(sums, program.task.sums(outputs, batch, mask, training=False))


def evaluate(
  program: Program, state: TrainState, arrays: PyTree, batch_size: int
) -> dict[str, float]:
  """Means over the whole of `arrays`, each example exactly once.

  Args:
    program: what is evaluated.
    state: its moving average of parameters is used if there is one.
    arrays: the test set, on the device.
    batch_size: examples at once; rounded up to a multiple of the devices.
  """
  params = state.params if state.ema_params is None else state.ema_params
  effective = _jitted(effective_params)(program, params)
  sums = jax.tree.map(jnp.zeros_like, state.sums)
  num_devices = program.mesh.size
  batch_size = -(-batch_size // num_devices) * num_devices
  num_examples = jax.tree.leaves(arrays)[0].shape[0]
  sharding = NamedSharding(program.mesh, PartitionSpec("data"))
  batches = zip(*data.eval_indices(num_examples, batch_size), strict=True)
  for batch in batches:
    indices, mask = jax.device_put(batch, sharding)
    sums = _jitted(_eval_step, donate=1)(
      program, sums, effective, state.model_state, arrays, indices, mask
    )
  return means(sums)


def means(sums: Sums) -> dict[str, float]:
  """Sums over their `count`, as Python floats; waits for the device."""
  values = jax.device_get(sums)
  count = max(float(values.pop("count")), 1.0)
  return {name: float(value) / count for name, value in values.items()}


def _add(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(jnp.add, a, b)


def _split(program: Program, batch: PyTree) -> PyTree:
  """The batch, a part on each device."""
  sharding = NamedSharding(program.mesh, PartitionSpec("data"))
  return jax.lax.with_sharding_constraint(batch, sharding)
