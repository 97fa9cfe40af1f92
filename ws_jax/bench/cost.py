"""`cost`: time and memory of each arm's step against the batch size."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ws_jax import figures
from ws_jax import rows as rows_lib
from ws_jax.bench import DEFAULT_MODEL, Options, Row, Table, step, timing

if TYPE_CHECKING:
  from matplotlib.figure import Figure

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def run(options: Options) -> list[Table]:
  """One table: an arm at a batch size is a row, its ratios are to BN."""
  if options.batch_sizes == Options().batch_sizes:
    options = dataclasses.replace(options, batch_sizes=BATCH_SIZES)
  rows: list[Row] = []
  for table, size in zip(step.run(options), options.batch_sizes, strict=True):
    rows += [{"batch size": size} | row for row in table.rows]
  return [Table(f"cost: {options.model or DEFAULT_MODEL}, 32x32, a step", rows)]


def write(
  tables: Sequence[Table], folder: pathlib.Path, about: Mapping[str, Any]
) -> None:
  """Writes `runs.csv`, with every single time, `summary.md` and the figure.

  Args:
    tables: as `run` returns them.
    folder: where to; made if need be.
    about: the machine and the versions.
  """
  (table,) = tables
  folder.mkdir(parents=True, exist_ok=True)
  runs = [row | {"seconds": json.dumps(row["seconds"])} for row in table.rows]
  rows_lib.write(folder / "runs.csv", runs)
  (folder / "summary.md").write_text(
    f"{timing.markdown(table)}\n{json.dumps(about)}\n"
  )
  figure(table.rows).savefig(folder / "figure.png", dpi=160)


def figure(rows: Sequence[Row]) -> "Figure":
  """Time per example, time relative to BN and memory, over the batch size.

  Args:
    rows: of the table that `run` returns.
  """
  from matplotlib.figure import Figure

  drawing = Figure(figsize=(11, 3.6), layout="constrained")
  panels = drawing.subplots(1, 3)
  reference = next(key for key in rows[0] if key.startswith("time / "))
  sizes = list(dict.fromkeys(row["batch size"] for row in rows))
  columns = (
    ("median ms", "ms per example", lambda row: row["batch size"]),
    (reference, reference, lambda row: 1),
    ("peak MB", "MB at the peak of a step", lambda row: 1),
  )
  for panel, (key, label, over) in zip(panels, columns, strict=True):
    for arm in dict.fromkeys(row["contender"] for row in rows):
      mine = [row for row in rows if row["contender"] == arm and key in row]
      x = [row["batch size"] for row in mine]
      y = [row[key] / over(row) for row in mine]
      color = figures.COLORS[arm]
      # Hollow or filled, round or square: told apart without colour, too.
      panel.plot(
        x,
        y,
        color=color,
        marker="o" if arm.startswith("BN") else "s",
        markerfacecolor=color if arm.endswith("WS") else "white",
        linewidth=1.2,
        label=arm,
      )
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.set_xlabel("batch size")
    panel.set_ylabel(label)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#dddddd", linewidth=0.8)
  panels[0].set_yscale("log")
  panels[2].set_yscale("log")
  handles, labels = panels[0].get_legend_handles_labels()
  drawing.legend(
    handles, labels, loc="outside lower center", ncols=6, frameon=False
  )
  return drawing
