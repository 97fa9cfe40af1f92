"""Starts a run from the parameters of another one, or of a file."""

import fnmatch
from typing import Any

import jax
import numpy as np

from ws_jax import weights
from ws_jax.core.kernels import path_string
from ws_jax.train.step import TrainState

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
  arrays = {
    path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(given)
  }
  problems, seen = [], set()

  def pick(path, leaf):
    name = path_string(path)
    seen.add(name)
    if any(fnmatch.fnmatchcase(name, glob) for glob in skip):
      return leaf
    if name not in arrays:
      problems.append(f"{name} is missing")
      return leaf
    array = np.asarray(arrays[name])
    if array.shape != leaf.shape:
      shapes = f"{list(array.shape)}, not {list(leaf.shape)}"
      problems.append(f"{name} is of shape {shapes}")
      return leaf
    return jax.device_put(array.astype(leaf.dtype), leaf.sharding)

  tree = jax.tree_util.tree_map_with_path(pick, fresh)
  problems += [
    f"{name} has no place"
    for name in sorted(arrays.keys() - seen)
    if not any(fnmatch.fnmatchcase(name, glob) for glob in skip)
  ]
  if problems:
    more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError(
      f"init_from does not fit {what}: {'; '.join(problems[:8])}{more}. Leave"
      " arrays fresh with init_skip, as init_skip=('head/*',)"
    )
  return tree


def _copy(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.copy(), tree)
