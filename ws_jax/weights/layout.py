"""Weights under other people's names: what fits where, and what is left over.

A published layout is three functions: the published name of a path here, and
the array in the published and in our own form. `take` goes through the arrays
that a model needs, `give` through those that a model has. `ws_jax.weights.bit`
and `ws_jax.weights.timm` are such layouts.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax.core.kernels import path_string

PyTree = Any
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A published way to name and to store the arrays of a model.

  Attributes:
    name: Name of the layout.
    theirs: Function from the paths of a model to `{path: published name}`.
    to_ours: Function of a path, the number of axes wanted and a published
      array; returns the array as we store it.
    to_theirs: Function of a path, the published names of all paths and an array
      of ours; returns the array as it is published.
    no_use: Endings of published names that have no counterpart here.
  """

  name: str
  theirs: Callable[[Sequence[str]], dict[str, str]]
  to_ours: Callable[[str, int, np.ndarray], np.ndarray]
  to_theirs: Callable[[str, Mapping[str, str], np.ndarray], np.ndarray]
  no_use: tuple[str, ...] = ()


OWN = Layout(
  name="own",
  theirs=lambda paths: {path: path for path in paths},
  to_ours=lambda path, ndim, array: array,
  to_theirs=lambda path, names, array: array,
)
"""The names and axes of this package."""


@dataclasses.dataclass(frozen=True)
class Report:
  """The arrays of a file, by what became of them.

  Attributes:
    used: Pairs of a published name and our path.
    unused: Published names that the model has no place for.
    no_use: Published names without a counterpart here, as counters of batches.
    missing: Pairs of a published name and our path that were left out, as was
      asked for.
    size: Number of values that were used.
  """

  used: tuple[tuple[str, str], ...]
  unused: tuple[str, ...] = ()
  no_use: tuple[str, ...] = ()
  missing: tuple[tuple[str, str], ...] = ()
  size: int = 0

  def __str__(self) -> str:
    total = len(self.used) + len(self.unused) + len(self.no_use)
    lines = [f"used {len(self.used)} of {total} arrays, {self.size:,} values"]
    lines += [f"unused: {name}" for name in self.unused]
    lines += [f"missing: {name}, for {path}" for name, path in self.missing]
    if self.no_use:
      lines.append(f"of no use here: {listing(self.no_use)}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Imported:
  """What a file gives.

  Attributes:
    variables: Collections of the model, as `{"params": ...}`, of NumPy arrays.
    report: The arrays used, unused and missing.
  """

  variables: PyTree
  report: Report


def take(
  arrays: Arrays, like: PyTree, layout: Layout, skip: Sequence[str] = ()
) -> Imported:
  """Returns published arrays as the variables of a model.

  Args:
    arrays: Published arrays by name.
    like: Variables of the model, or their shapes from `jax.eval_shape`.
    layout: Layout of the arrays.
    skip: Shell patterns of our paths that are left out: `params/head/*`.

  Raises:
    ValueError: arrays are missing, of a wrong shape or dtype, or not finite;
      one line that names them.
  """
  leaves = _leaves(like)
  names = layout.theirs(tuple(leaves))
  used, missing, problems = [], [], []
  variables: dict[str, Any] = {}
  for path, leaf in leaves.items():
    theirs = names[path]
    if any(fnmatch.fnmatchcase(path, glob) for glob in skip):
      missing.append((theirs, path))
    elif theirs not in arrays:
      problems.append(f"{theirs} is missing")
    elif problem := _problem(arrays[theirs]):
      problems.append(f"{theirs} {problem}")
    else:
      array = layout.to_ours(path, len(leaf.shape), arrays[theirs])
      if array.shape != leaf.shape:
        problems.append(
          f"{theirs} {list(arrays[theirs].shape)} for {path} {list(leaf.shape)}"
        )
        continue
      used.append((theirs, path))
      put(variables, path, array.astype(leaf.dtype, copy=False))
  if problems:
    raise ValueError(f"does not fit the model: {listing(problems, '; ')}")
  taken = {theirs for theirs, _ in used}
  rest = sorted(set(arrays) - taken)
  no_use = tuple(name for name in rest if name.endswith(layout.no_use))
  report = Report(
    used=tuple(used),
    unused=tuple(name for name in rest if name not in no_use),
    no_use=no_use,
    missing=tuple(missing),
    size=sum(math.prod(leaves[path].shape) for _, path in used),
  )
  return Imported(variables, report)


def give(variables: PyTree, layout: Layout) -> dict[str, np.ndarray]:
  """Returns the variables of a model as published arrays by name.

  Raises:
    ValueError: the layout has no name for an array.
  """
  leaves = _leaves(variables)
  names = layout.theirs(tuple(leaves))
  return {
    names[path]: np.array(
      layout.to_theirs(path, names, np.asarray(leaf)), order="C"
    )
    for path, leaf in leaves.items()
  }


def listing(words: Sequence[str], between: str = ", ", limit: int = 4) -> str:
  """Returns the first words, and the number of the others."""
  more = f" and {len(words) - limit} more" if len(words) > limit else ""
  return between.join(words[:limit]) + more


def unknown(path: str, layout: str) -> ValueError:
  """Returns the error for a path that a layout has no name for."""
  return ValueError(
    f"{path} has no name in the {layout} layout: is this a model that was"
    " published in it?"
  )


def _leaves(variables: PyTree) -> dict[str, Any]:
  if not isinstance(variables, Mapping) or "params" not in variables:
    raise ValueError('variables must be a dict of collections, with "params"')
  return {path_string(p): x for p, x in jax.tree.leaves_with_path(variables)}


def _problem(array: Any) -> str:
  if not isinstance(array, (np.ndarray, np.generic)):
    return "is no array"
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return f"holds {array.dtype}, not floating-point numbers"
  if not np.isfinite(array).all():
    return "holds NaN or infinite values"
  return ""


def put(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
  """Stores an array in nested dicts, under the keys of its path."""
  *above, name = path.split("/")
  for key in above:
    tree = tree.setdefault(key, {})
  tree[name] = value
