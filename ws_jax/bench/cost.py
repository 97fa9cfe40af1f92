"""`cost`: time and memory of each arm's step, over the batch size."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ws_jax.base import disk
from ws_jax.bench import (
  ARMS,
  DEFAULT_MODEL,
  Options,
  Row,
  Table,
  step,
  timing,
)
from ws_jax.report import figures
from ws_jax.sweep import rows as rows_lib

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def run(options: Options) -> list[Table]:
  """Returns one table with a row for each arm and batch size.

  Ratios are to the last arm, as in `step`.
  """
  if options.batch_sizes == Options().batch_sizes:
    options = dataclasses.replace(options, batch_sizes=BATCH_SIZES)
  rows: list[Row] = []
  for table, size in zip(step.run(options), options.batch_sizes, strict=True):
    rows += [{"batch size": size} | row for row in table.rows]
  return [Table(f"cost: {options.model or DEFAULT_MODEL}, 32x32, a step", rows)]


def write(
  tables: Sequence[Table], folder: pathlib.Path, about: Mapping[str, Any]
) -> None:
  """Writes `runs.csv`, with every single time, `summary.md` and `figure.png`.

  A row begins with the overrides of its arm, as the rows of a sweep do.

  Args:
    tables: Tables that `run` returned.
    folder: Folder to write to; it is made if it is not there.
    about: Description of the machine and the versions.
  """
  (table,) = tables
  folder.mkdir(parents=True, exist_ok=True)
  runs = [
    ARMS[row["contender"]]
    | {"data.batch_size": row["batch size"]}
    | row
    | {"seconds": json.dumps(row["seconds"])}
    for row in table.rows
  ]
  rows_lib.write(folder / "runs.csv", runs)
  disk.write_text(
    folder / "summary.md", f"{timing.markdown(table)}\n{json.dumps(about)}\n"
  )
  figure(table.rows).savefig(folder / "figure.png", dpi=160)


def figure(rows: Sequence[Row]) -> "Figure":
  """Draws examples per second, relative time and memory over the batch size.

  Args:
    rows: Rows of the table that `run` returned.
  """
  reference = next(key for key in rows[0] if key.startswith("time / "))
  panels = [
    functools.partial(_panel, rows=rows, key=key, label=label)
    for key, label in (
      ("examples/s", "examples / s"),
      (reference, reference),
      ("peak MB", "MB at the peak of a step"),
    )
  ]
  return figures.sheet(panels, columns=3)


def _panel(ax: "Axes", rows: Sequence[Row], key: str, label: str) -> None:
  arms = figures.looks(row["contender"] for row in rows)
  for arm, look in arms.items():
    mine = [row for row in rows if row["contender"] == arm and key in row]
    sizes = [row["batch size"] for row in mine]
    ax.plot(sizes, [row[key] for row in mine], **look, label=arm)
  sizes = sorted({row["batch size"] for row in rows})
  ax.set_xscale("log", base=2)
  ax.set_xticks(sizes, [str(size) for size in sizes])
  ax.set_xlabel("batch size")
  ax.set_ylabel(label)
  if not key.startswith("time"):
    ax.set_yscale("log")
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(axis="y", color="#dddddd", linewidth=0.8)
