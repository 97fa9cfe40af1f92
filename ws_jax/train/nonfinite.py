"""Says what was not finite first, where a loss is not finite any more.

The compiled step looks at its loss alone, which costs nothing. Once that is NaN
or infinite, `find` does the steps before it again, from the newest state that
there is, and looks at the batch, the parameters and the gradient.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from ws_jax.data import values
from ws_jax.train import backend, build, calling, checkpoint, processes
from ws_jax.train import step as steps
from ws_jax.weights import steps as kept

PyTree = Any

# A longer way from the newest state is not gone again.
_MOST_STEPS = 200
_MOST_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Found:
  """The first numbers that were not finite.

  Attributes:
    reason: What they are and where, in words.
    given: Whether the run was given them, in its data or its first parameters:
      then it has not diverged.
  """

  reason: str
  given: bool = False


def find(
  setup: build.Setup, checkpoints: checkpoint.Checkpoints, step: int
) -> Found | None:
  """Returns what was not finite first in a run.

  Args:
    setup: The run.
    checkpoints: Its checkpoints, of which the newest one before is taken.
    step: Number of the step whose loss was not finite, from 0.

  Returns:
    None where it is not known: the way there is too long, or there are several
    processes.
  """
  if processes.several():
    return None
  try:
    return _find(setup, checkpoints, step)
  except Exception:  # as out of memory: the loss is worth more than its cause
    return None


def _find(setup, checkpoints, step) -> Found | None:
  before = max(step - 1, 0)
  state, at = _newest(setup, checkpoints, before)
  if data := _of_data(setup, state, step):
    return Found(data, given=True)
  state = _replay(setup, state, at, before)
  if state is None:
    return None
  if bad := _first(state.params):
    when = f"before step {before}" if before else "before the first step"
    return Found(f"parameter {bad} {when}", given=not before)
  if step:
    loss, gradient = _gradient(setup, state, before)
    if bad := _first(gradient):
      return Found(
        f"the gradient of {bad} at step {before}, whose loss is {loss:.4g}"
      )
    state = _replay(setup, state, before, step)
    if state is None:
      return None
    if bad := _first(state.params):
      return Found(
        f"the update of step {before} makes {bad}, of a finite gradient"
      )
  return None if state is None else _of_outputs(setup, state, step)


def find_in_evaluation(
  setup: build.Setup, state: steps.TrainState
) -> Found | None:
  """Returns what was not finite first where the loss of an evaluation is not.

  Args:
    setup: The run.
    state: Its state, which was evaluated.

  Returns:
    None where it is not known: there are several processes.
  """
  if processes.several():
    return None
  trees = {
    "parameter": (state.params, state.ema_params),
    "statistic": state.model_state,
  }
  for what, tree in trees.items():
    if bad := _first(tree):
      return Found(f"{what} {bad}")
  for key, array in setup.dataset.test.items():
    used = key in (setup.dataset.info.input_key, setup.dataset.info.label_key)
    if used and (found := values.first_not_finite(np.asarray(array))):
      place = f"example {found[0]} of the eval set"
      return Found(f"{key!r} of {place} holds {found[1]}", given=True)
  return Found("the outputs of the model or its loss, of finite parameters")


def _newest(setup, checkpoints, step) -> tuple[steps.TrainState, int]:
  """Returns the newest state up to a step, and its step."""
  state = setup.state()
  folder = checkpoints.folder
  there = [int(path.name) for path in kept.steps(folder) if path.is_dir()]
  for at in sorted((at for at in there if at <= step), reverse=True):
    return checkpoints.load(at, state), at
  return state, 0


def _replay(setup, state, at, step) -> steps.TrainState | None:
  """Does the steps from `at` to `step` again; None if that takes too long."""
  if step - at > _MOST_STEPS:
    return None
  end = time.monotonic() + _MOST_SECONDS
  state = jax.tree.map(jax.numpy.copy, state)  # a step donates its state
  while at < step:
    if time.monotonic() > end:
      return None
    count = min(step - at, setup.block or 1)
    arrays, indices = setup.source.block(at, count)
    state = steps.train_block(
      setup.program, state, arrays, indices, block=setup.block
    )
    at += count
  return state


def _of_data(setup, state, step) -> str | None:
  """Returns what of the batch of a step is not finite."""
  if setup.dataset.stream is not None:
    return None  # bytes are finite
  arrays, indices = setup.source.block(step, 1)
  at = state.replace(step=jax.numpy.full_like(state.step, step))
  for number, chosen in enumerate(indices[0]):
    batch = _quickly(_batch)(setup.program, at, arrays, chosen, number)
    if bad := _first(batch):
      return _in_examples(setup.dataset, chosen) or f"{bad} in the batch"
  return None


def _in_examples(dataset, chosen) -> str | None:
  """Returns which of some training examples holds what is not finite."""
  for key, array in dataset.train.items():
    rows = np.asarray(array)[chosen]
    if found := values.first_not_finite(rows):
      example = f"example {chosen[found[0]]} of the training set"
      return f"{key!r} of {example} holds {found[1]}"
  return None


def _gradient(setup, state, step) -> tuple[float, PyTree]:
  """Returns the loss of a step and its gradient by the raw parameters."""
  program = setup.program
  arrays, indices = setup.source.block(step, 1)
  effective, partial = _quickly(steps.begin)(program, state)
  for number, chosen in enumerate(indices[0]):
    partial = _quickly(steps.accumulate)(
      program, state, effective, partial, arrays, chosen, number
    )
  gradient = _quickly(steps.gradient)(program, state, partial)
  return steps.means(partial.sums)["loss"], gradient


def _of_outputs(setup, state, step) -> Found:
  """Returns the outputs, or the loss, of a step whose parameters are finite."""
  arrays, indices = setup.source.block(step, 1)
  for number, chosen in enumerate(indices[0]):
    outputs, inputs = _quickly(_outputs)(
      setup.program, state, arrays, chosen, number
    )
    if bad := _first({"output of the model": outputs}):
      of = f"inputs up to {_size(inputs):.2g} and parameters up to"
      return Found(f"{bad}, of {of} {_size(state.params):.2g}")
  return Found("the loss itself, of finite outputs")


def _batch(program, state, arrays, indices, number):
  key, _ = steps.keys(state, number)
  return program.task.batch(arrays, indices, key)


def _outputs(program, state, arrays, indices, number):
  _, key = steps.keys(state, number)
  inputs = _batch(program, state, arrays, indices, number)["inputs"]
  outputs, _ = calling.apply(
    program.model,
    steps.effective_params(program, state.params),
    state.model_state,
    inputs,
    train=True,
    key=key,
    frozen=program.frozen_norms,
  )
  return outputs, inputs


@functools.cache
def _quickly(function):
  options = backend.options_to_compile_quickly()
  return jax.jit(function, static_argnums=0, compiler_options=options)


def _first(tree: PyTree) -> str | None:
  """Returns the path of the first array that is not finite, and its number.

  Example:
    >>> _first({"conv": {"kernel": np.array([1.0, np.inf])}})
    'conv/kernel is inf'
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
      if found := values.first_not_finite(np.float32(leaf).reshape(-1)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return f"{name} is {found[1]}"
  return None


def _size(tree: PyTree) -> float:
  """Returns the largest absolute value of all arrays."""
  return max(float(np.abs(np.float32(x)).max()) for x in jax.tree.leaves(tree))
