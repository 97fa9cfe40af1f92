"""A table of what Weight Standardization does to a tree of parameters."""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ws_jax.core.conventions import BIT, Convention, get_convention
from ws_jax.core.kernels import (
  Axes,
  Where,
  choose,
  conv_kernels,
  fan_in_axes,
  seeing,
  select_axes,
  verdict_on,
)
from ws_jax.core.verdicts import Verdict

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table, for one leaf of the tree.

  Attributes:
    path: Keys of the leaf, joined by "/".
    shape: Shape of the leaf.
    selected: Whether the leaf is standardized.
    reason: Why it is not standardized, or cannot be; "" if it is.
    axes: Fan-in axes; empty, as all fields below, if it is not selected.
    fan_in: Number of weights of a filter.
    mean: Largest absolute mean of a filter, raw.
    std: Root mean square over the filters of their raw standard deviation.
    var_over_eps: Smallest variance of a filter, in units of the value at which
      eps takes over; below about 100 the choice of convention starts to matter.
    dead: Number of filters that are almost constant: their effective weights
      stay below a thousandth of the usual size.
    known: What told that it is a kernel and where its outputs are, as "by its
      name" or "a guess by its shape".
  """

  path: str
  shape: tuple[int, ...]
  selected: bool
  reason: str = ""
  axes: tuple[int, ...] = ()
  fan_in: int = 0
  mean: float = math.nan
  std: float = math.nan
  var_over_eps: float = math.nan
  dead: int = 0
  known: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """The rows of all leaves, which print as a table.

  Attributes:
    rows: One row for each leaf.
    convention: Convention that the rows are for.
  """

  rows: tuple[Row, ...]
  convention: Convention

  def __iter__(self) -> Iterator[Row]:
    return iter(self.rows)

  def __len__(self) -> int:
    return len(self.rows)

  def __str__(self) -> str:
    head = (
      *("path", "shape", "fan-in", "axes", "mean", "std", "var/eps", "dead"),
      "known",
    )
    lines = [head, *(_cells(row) for row in self.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
      "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
      for line in lines
    ]
    chosen = sum(row.selected for row in self.rows)
    text.append(
      f"{chosen} of {len(self.rows)} leaves standardized, "
      f"{self.convention.formula}"
    )
    return "\n".join(text)


def describe(
  params: PyTree,
  *,
  where: Where = conv_kernels,
  axes: Axes = fan_in_axes,
  convention: str | Convention = BIT,
) -> Table:
  """Returns a table of what `weight_standardize` does to every leaf, and why.

  Args:
    params: Any pytree of concrete arrays, raw.
    where: Selector of the kernels, as in `weight_standardize`.
    axes: Rule for their fan-in axes, as in `weight_standardize`.
    convention: Name of `CONVENTIONS`, or a `Convention`.

  Returns:
    A `Table` of one `Row` per leaf; `print` it. It is no error here if nothing
    is selected, or if it cannot be known what a leaf is: the table says why.

  Raises:
    ValueError: The convention is unknown, two leaves have one path, or a glob
      matches nothing.

  Example:
    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 2))
    >>> params = {"Conv_0": {"bias": np.zeros(2), "kernel": kernel}}
    >>> print(describe(params))  # doctest: +ELLIPSIS
    path           shape      fan-in  axes   mean    std  var/eps  dead  known
    Conv_0/bias    2          not named as a kernel
    Conv_0/kernel  3x3x8x2    72      0,1,2  ... by its bias
    1 of 2 leaves standardized, (w - mean) / sqrt(var + 1e-10)
  """
  convention = get_convention(convention)
  rows = []
  # What is not finite is shown as it is.
  with seeing(params) as leaves, np.errstate(all="ignore"):
    for path, taken in choose(leaves, where).items():
      leaf, verdict = leaves[path], verdict_on(path, leaves[path])
      reason = verdict.reason
      if taken:
        rows.append(_row(path, leaf, axes, convention, verdict))
        continue
      if verdict.kernel:
        reason = "left out by `where`"
      rows.append(Row(path, np.shape(leaf), False, reason))
  return Table(tuple(rows), convention)


def summarize(
  params: PyTree, *, where: Where = conv_kernels, axes: Axes = fan_in_axes
) -> str:
  """Returns in one line which kernels are standardized, and which are not.

  Args:
    params: Any pytree of arrays, or of their shapes.
    where: Selector of the kernels, as in `weight_standardize`.
    axes: Rule for their fan-in axes, as in `weight_standardize`.

  Raises:
    ValueError: As `weight_standardize`.

  Example:
    >>> zeros = lambda *shape: {"kernel": np.zeros(shape)}
    >>> params = {"Conv_0": zeros(3, 3, 3, 8), "Dense_0": zeros(8, 2)}
    >>> summarize(params)
    '1 kernel (1 3x3), left out: 1 dense'
  """
  taken, left, guesses = collections.Counter(), collections.Counter(), []
  chosen = select_axes(params, where, axes)
  with seeing(params) as leaves:
    for path, leaf in leaves.items():
      verdict = verdict_on(path, leaf)
      kind = verdict.kind
      if path in chosen:
        # What was said with `where` or `axes` is no guess.
        if verdict.guessed and chosen[path][1] == verdict.axes:
          guesses.append(path)
        taken[kind if kind not in ("", "?") else _shape(leaf)] += 1
      elif kind not in ("", "scale"):
        left[_shape(leaf) if kind == "?" else kind] += 1
  counts = lambda kinds: ", ".join(f"{n} {k}" for k, n in kinds.most_common())
  many = "" if len(chosen) == 1 else "s"
  line = f"{len(chosen)} kernel{many} ({counts(taken)})"
  if left:
    line += f", left out: {counts(left)}"
  if guesses and where is conv_kernels:
    more = f" and {len(guesses) - 1} more" if guesses[1:] else ""
    line += f"; by their shape alone: {guesses[0]}{more}"
  return line


def _row(
  path: str, leaf: Any, axes: Axes, convention: Convention, verdict: Verdict
) -> Row:
  """Returns the row of a selected leaf, measured in float64."""
  try:
    fan_in_axes = axes(path, leaf)
  except ValueError as error:
    problem = verdict.reason if verdict.axes is None else str(error)
    return Row(path, leaf.shape, False, f"an error: {problem}")
  reduced = tuple(sorted(i % leaf.ndim for i in fan_in_axes))
  fan_in = math.prod(leaf.shape[i] for i in reduced)
  if not math.prod(leaf.shape):
    return Row(path, leaf.shape, False, "an error: holds no number")
  kernel = np.asarray(leaf).astype(np.float64)
  mean = kernel.mean(reduced, keepdims=True)
  centred = kernel - mean
  problem = ""
  if fan_in < convention.min_fan_in:
    problem = f"an error: fan-in below {convention.min_fan_in}"
  count = max(fan_in - convention.ddof, 1)
  var = np.square(centred).sum(reduced) / count
  eps = convention.eps
  if convention.eps_place == "std":
    eps = eps**2
  elif convention.eps_place == "floor_fan_in":
    eps = eps / fan_in
  return Row(
    path=path,
    shape=leaf.shape,
    selected=not problem,
    reason=problem,
    axes=reduced,
    fan_in=fan_in,
    mean=float(np.abs(mean).max()),
    std=float(np.sqrt(var.mean())),
    var_over_eps=float(var.min() / eps),
    dead=int((var < 1e-6 * eps).sum()),
    known="by `axes`" if reduced != verdict.axes else verdict.reason,
  )


def _cells(row: Row) -> tuple[str, ...]:
  """Returns the texts of a row, one for each column."""
  shape = "x".join(map(str, row.shape)) or "scalar"
  if not row.selected:
    return (row.path, shape, row.reason, "", "", "", "", "", "")
  return (
    row.path,
    shape,
    str(row.fan_in),
    ",".join(map(str, row.axes)),
    *(f"{value:.2g}" for value in (row.mean, row.std, row.var_over_eps)),
    str(row.dead),
    row.known,
  )


def _shape(leaf: Any) -> str:
  return "x".join(map(str, np.shape(leaf)))
