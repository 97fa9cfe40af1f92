"""Starts a run from the parameters of another one, or of a file.

`check` refuses what does not fit before anything is computed, and says which
arrays start anew and which are frozen. `start_from` puts the arrays into a
fresh state.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import weights
from ws_jax.base import names
from ws_jax.core.kernels import by_path, path_string
from ws_jax.data import place, values
from ws_jax.train import calling
from ws_jax.train.step import Program, TrainState, init_params

PyTree = Any
# The last layer of every model here, which another data set replaces.
HEAD = "head/*"


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
  if any(name.startswith("params/") for name in tree):
    return _by_collection(tree)
  return tree if "params" in tree else {"params": tree}


def _by_collection(arrays: dict[str, Any]) -> dict[str, PyTree]:
  """Returns the arrays of a file with several collections, nested by them."""
  nested: dict[str, PyTree] = {}
  for name, array in arrays.items():
    collection, _, path = name.partition("/")
    nested.setdefault(collection, {})[path] = array
  return nested


def check(
  program: Program,
  dataset: Any,
  given: Mapping[str, PyTree] | None,
  skip: tuple[str, ...] = (),
  zero: tuple[str, ...] = (),
  *,
  examples: int = 2,
) -> tuple[str, ...]:
  """Refuses what `start_from` would refuse; nothing is computed.

  Args:
    program: Program of the run.
    dataset: Data of the run, for the shape of its inputs.
    given: Trees to start from, or None.
    skip: Shell patterns of paths that stay fresh.
    zero: Shell patterns of paths that become zero.
    examples: Number of examples, which a normalization batch must divide.

  Returns:
    Lines for the user: on a head that starts anew, and on what is frozen.

  Raises:
    ValueError: as `start_from`; or a pattern of the frozen ones matches
      nothing, nothing is left to train, or a norm cannot be frozen.
  """

  def fresh(arrays):
    indices = jnp.zeros((1,), jnp.int32)
    inputs = program.task.batch(arrays, indices, None)["inputs"]
    return init_params(program, jax.random.key(0), inputs)

  def step(arrays):
    indices = jnp.zeros((examples,), jnp.int32)
    inputs = program.task.batch(arrays, indices, None)["inputs"]
    params, others = fresh(arrays)
    frozen, key = program.frozen_norms, jax.random.key(1)
    return calling.apply(
      program.model, params, others, inputs, train=True, key=key, frozen=frozen
    )

  arrays = _abstract(dataset)
  params, others = jax.eval_shape(fresh, arrays)
  if program.frozen_norms:
    jax.eval_shape(step, arrays)  # raises where a norm cannot be frozen
  notes = []
  if given is not None:
    _check_globs("init_zero", zero, params)
    left = (*skip, *zero)
    if new := _new_head(params, given["params"], left):
      notes.append(f"init_from: the head starts anew: {new}")
    for name, tree in {"params": params, **others}.items():
      if name in given:
        _matched(name, tree, given[name], left)
  if globs := program.optimizer.freeze:
    _check_globs("optim.freeze", globs, params)
    notes.append(_frozen(params, others, globs, program.frozen_norms))
  return tuple(notes)


def _abstract(dataset: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of arrays of two examples; a stream has none yet."""
  if dataset.train:
    return calling.abstract(dataset.train)
  info, shape = dataset.info, jax.ShapeDtypeStruct
  return {
    info.input_key: shape((2, *info.input_shape), jnp.dtype(info.input_dtype)),
    info.label_key: shape((2,), jnp.int32),
  }


def start_from(
  state: TrainState,
  given: Mapping[str, PyTree],
  skip: tuple[str, ...] = (),
  zero: tuple[str, ...] = (),
) -> TrainState:
  """Returns a fresh state with the parameters and collections given.

  A head of another shape stays as it is in the fresh state.

  Args:
    state: Fresh state.
    given: Trees by collection, as `read` returns them; a flat dict by path
      counts as a tree.
    skip: Shell patterns of paths that stay fresh, as `head/*`.
    zero: Shell patterns of parameters that become zero, as `head/*`: Big
      Transfer starts a new head there.

  Raises:
    ValueError: an array is missing, of another shape, not finite, or has no
      place; the message lists the paths.
  """
  left = (*skip, *zero)
  params = _exchanged("params", state.params, given["params"], left)
  if zero:
    params = jax.tree_util.tree_map_with_path(
      lambda path, leaf: (
        place.put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        if _any(path_string(path), zero)
        else leaf
      ),
      params,
    )
  others = {
    name: _exchanged(name, tree, given[name], left) if name in given else tree
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
  if _new_head(fresh, given, skip):
    skip = (*skip, HEAD)
  used = lambda tree: {
    path: leaf for path, leaf in by_path(tree).items() if not _any(path, skip)
  }
  wanted, arrays = used(fresh), used(given)
  problems = [f"{name} is missing" for name in wanted.keys() - arrays.keys()]
  problems += [f"{name} has no place" for name in arrays.keys() - wanted.keys()]
  problems += [
    f"{name} is of shape {list(arrays[name].shape)}, not {list(leaf.shape)}"
    for name, leaf in wanted.items()
    if name in arrays and arrays[name].shape != leaf.shape
  ]
  flat = lambda name: np.asarray(arrays[name]).astype(np.float32).reshape(-1)
  problems += [
    f"{name} holds {found[1]}"
    for name in wanted.keys() & arrays.keys()
    if (found := values.first_not_finite(flat(name)))
  ]
  if problems:
    problems.sort()
    more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
    raise ValueError(
      f"init_from does not fit {what}: {'; '.join(problems[:8])}{more}. Leave"
      " arrays fresh with init_skip, as init_skip=('head/*',)"
    )
  return arrays


def _new_head(fresh: PyTree, given: PyTree, skip: tuple[str, ...]) -> str:
  """Returns how the head differs in shape from the one given; "" if not."""
  arrays = by_path(given)
  return "; ".join(
    f"{path} is {list(leaf.shape)}, and"
    f" {list(arrays[path].shape) if path in arrays else 'missing'} there"
    for path, leaf in by_path(fresh).items()
    if _any(path, (HEAD,))
    and not _any(path, skip)
    and (path not in arrays or arrays[path].shape != leaf.shape)
  )


def _frozen(
  params: PyTree,
  others: Mapping[str, PyTree],
  globs: tuple[str, ...],
  norms: tuple[str, ...],
) -> str:
  """Returns a line that says how much is frozen.

  Raises:
    ValueError: all of it.
  """
  leaves = by_path(params)
  stay = {path: leaf for path, leaf in leaves.items() if _any(path, globs)}
  if len(stay) == len(leaves):
    raise ValueError(f"optim.freeze={globs} leaves nothing to train")
  total = lambda some: sum(leaf.size for leaf in some.values())
  line = (
    f"optim.freeze: {len(stay)} of {len(leaves)} arrays stay as they are,"
    f" {total(stay):,} of {total(leaves):,} numbers"
  )
  statistics = [path for tree in others.values() for path in by_path(tree)]
  touched = [path for path in statistics if _any(path, globs)]
  if not touched:
    return line
  so_do = "and so do" if norms else "but not"
  return f"{line}, {so_do} {len(touched)} of {len(statistics)} statistics"


def _check_globs(key: str, globs: Iterable[str], params: PyTree) -> None:
  """Refuses a pattern that matches no parameter."""
  paths = list(by_path(params))
  first = dict.fromkeys(f"{path.partition('/')[0]}/*" for path in paths)
  for glob in globs:
    if not any(fnmatch.fnmatchcase(path, glob) for path in paths):
      raise ValueError(
        f"{key}: {glob!r} matches no parameter: {names.suggest(glob, first)}"
      )


def _any(path: str, globs: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatchcase(path, glob) for glob in globs)


def _copy(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.copy(), tree)
