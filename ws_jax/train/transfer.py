"""Starts a run from the parameters of another one, or of a file."""

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import weights
from ws_jax.core.kernels import path_string
from ws_jax.data import place
from ws_jax.train import calling
from ws_jax.train.step import Program, TrainState

PyTree = Any


def read(path: str) -> dict[str, PyTree]:
  """Reads what a run starts from.

  Args:
    path: Workdir of a run (its newest step; the moving average of the
      parameters if there is one, with its running statistics), orbax folder,
      `.npz` or `.safetensors` file of raw parameters.

  Returns:
    `{"params": ..., other collections ...}`.

  Raises:
    ValueError: it cannot be read, or holds folded parameters.
  """
  try:
    tree = weights.read_raw_variables(path)
  except FileNotFoundError as error:
    raise ValueError(f"init_from={path}: {error}") from error
  return tree if "params" in tree else {"params": tree}


def check(
  program: Program,
  dataset: Any,
  given: dict[str, PyTree],
  skip: tuple[str, ...] = (),
) -> None:
  """Refuses what `start_from` would refuse; nothing is computed.

  Raises:
    ValueError: as `start_from`.
  """

  def fresh(arrays):
    indices = jnp.zeros((1,), jnp.int32)
    inputs = program.task.batch(arrays, indices, None)["inputs"]
    return calling.init(program.model, jax.random.key(0), inputs)

  params, others = jax.eval_shape(fresh, calling.abstract(dataset.train))
  for name, tree in {"params": params, **others}.items():
    if name in given:
      _matched(name, tree, given[name], skip)


def start_from(
  state: TrainState, given: dict[str, PyTree], skip: tuple[str, ...] = ()
) -> TrainState:
  """Returns a fresh state with the parameters and collections given.

  Args:
    state: Fresh state.
    given: Trees by collection, as `read` returns them; a flat dict by path
      counts as a tree.
    skip: Shell patterns of paths that stay fresh, as `head/*`.

  Raises:
    ValueError: an array is missing, of another shape, or has no place; the
      message lists the paths.
  """
  params = _exchanged("params", state.params, given["params"], skip)
  others = {
    name: _exchanged(name, tree, given[name], skip) if name in given else tree
    for name, tree in state.model_state.items()
  }
  return state.replace(
    params=params,
    model_state=others,
    ema_params=None if state.ema_params is None else _copy(params),
  )


def _exchanged(
  what: str, fresh: PyTree, given: PyTree, skip: tuple[str, ...]
) -> PyTree:
  """Returns `fresh` with the arrays given, on the devices it is on."""
  arrays = _matched(what, fresh, given, skip)

  def pick(path, leaf):
    name = path_string(path)
    if name not in arrays:
      return leaf
    array = np.asarray(arrays[name]).astype(leaf.dtype)
    return place.put(array, leaf.sharding)

  return jax.tree_util.tree_map_with_path(pick, fresh)


def _matched(
  what: str, fresh: PyTree, given: PyTree, skip: tuple[str, ...]
) -> dict[str, Any]:
  """Returns the arrays that take the place of fresh ones, by path."""
  kept = lambda name: any(fnmatch.fnmatchcase(name, glob) for glob in skip)
  by_path = lambda tree: {
    path_string(path): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
    if not kept(path_string(path))
  }
  wanted, arrays = by_path(fresh), by_path(given)
  problems = [f"{name} is missing" for name in wanted.keys() - arrays.keys()]
  problems += [f"{name} has no place" for name in arrays.keys() - wanted.keys()]
  problems += [
    f"{name} is of shape {list(arrays[name].shape)}, not {list(leaf.shape)}"
    for name, leaf in wanted.items()
    if name in arrays and arrays[name].shape != leaf.shape
  ]
  if problems:
    problems.sort()
    more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError(
      f"init_from does not fit {what}: {'; '.join(problems[:8])}{more}. Leave"
      " arrays fresh with init_skip, as init_skip=('head/*',)"
    )
  return arrays


def _copy(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.copy(), tree)
