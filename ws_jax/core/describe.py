"""A table of what Weight Standardization does to a tree of parameters."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ws_jax.core.conventions import BIT, Convention, get_convention
from ws_jax.core.kernels import (
  Axes,
  Selector,
  by_path,
  conv_kernels,
  fan_in_axes,
  why_not_conv,
)

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
    head = ("path", "shape", "fan-in", "axes", "mean", "std", "var/eps", "dead")
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
  where: Selector = conv_kernels,
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
    is selected: the table says why.

  Raises:
    ValueError: The convention is unknown, or two leaves have one path.

  Example:
    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 2))
    >>> params = {"Conv_0": {"bias": np.zeros(2), "kernel": kernel}}
    >>> print(describe(params))  # doctest: +ELLIPSIS
    path           shape      fan-in  axes   mean    std  var/eps  dead
    Conv_0/bias    2          not named as a kernel
    Conv_0/kernel  3x3x8x2    72      0,1,2  ...
    1 of 2 leaves standardized, (w - mean) / sqrt(var + 1e-10)
  """
  convention = get_convention(convention)
  rows = []
  for path, leaf in by_path(params).items():
    if where(path, leaf):
      rows.append(_row(path, leaf, axes, convention))
    else:
      reason = why_not_conv(path, leaf) or "left out by `where`"
      rows.append(Row(path, np.shape(leaf), False, reason))
  return Table(tuple(rows), convention)


def _row(path: str, leaf: Any, axes: Axes, convention: Convention) -> Row:
  """Returns the row of a selected leaf, measured in float64."""
  reduced = tuple(sorted(i % leaf.ndim for i in axes(path, leaf)))
  fan_in = math.prod(leaf.shape[i] for i in reduced)
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
  )


def _cells(row: Row) -> tuple[str, ...]:
  """Returns the texts of a row, one for each column."""
  shape = "x".join(map(str, row.shape)) or "scalar"
  if not row.selected:
    return (row.path, shape, row.reason, "", "", "", "", "")
  return (
    row.path,
    shape,
    str(row.fan_in),
    ",".join(map(str, row.axes)),
    *(f"{value:.2g}" for value in (row.mean, row.std, row.var_over_eps)),
    str(row.dead),
  )
