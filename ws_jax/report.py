"""Reports: the rows of a sweep -> one table, in three forms, and a figure."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ws_jax import figures, writers
from ws_jax import rows as rows_lib

Row = rows_lib.Row

METRIC = "eval/accuracy"
# What makes a cell, apart from what a sweep varies; and what it averages over.
_ARM = ("model.norm", "model.ws")
_RATE = "optim.learning_rate"
_NOT_VARIED = {*_ARM, _RATE, "optim.base_learning_rate", "seed"}
_ENDS = ("done", "diverged", "failed", "interrupted")


def varied_keys(rows: Sequence[Row]) -> list[str]:
  """Overrides that take several values within one arm, but for rate and seed.

  What differs between the arms alone, such as a number of groups, belongs to
  the arm.
  """
  keys = dict.fromkeys(key for row in rows for key in json.loads(row["key"]))
  values: dict[tuple[str, str], set[str]] = {}
  for row in rows:
    for key in keys:
      seen = values.setdefault((key, rows_lib.arm_of(row)), set())
      seen.add(repr(row.get(key)))
  several = {key for (key, _), seen in values.items() if len(seen) > 1}
  return [key for key in keys if key in several - _NOT_VARIED]


def summarize(rows: Sequence[Row]) -> list[Row]:
  """One row for each cell: the runs that differ in their seed alone.

  Args:
    rows: of `runs.csv`, as `ws_jax.rows.read` returns them.

  Returns:
    A cell for each arm, learning rate and value of the `varied_keys`, with
    `arm`, `learning_rate`, those keys, `runs`, how many are `done`, `diverged`,
    `failed` and `interrupted`, and the mean and the sample standard deviation
    (`_std`; None for one run) of `accuracy` and `loss` (test; over the runs
    that are done) and `seconds` (compiling, training and evaluating; over all).
  """
  varied = varied_keys(rows)
  order = [*figures.COLORS, *(rows_lib.arm_of(row) for row in rows)]
  cells: dict[tuple[Any, ...], list[Row]] = {}
  for row in sorted(
    rows, key=lambda row: (order.index(rows_lib.arm_of(row)), row[_RATE] or 0.0)
  ):
    others = [row.get(key) for key in varied]
    cells.setdefault((rows_lib.arm_of(row), row[_RATE], *others), []).append(
      row
    )
  result = []
  for (name, rate, *others), members in cells.items():
    done = [row for row in members if row["status"] == "done"]
    entry: Row = {"arm": name, "learning_rate": rate}
    entry |= dict(zip(varied, others, strict=True)) | {"runs": len(members)}
    for end in _ENDS:
      entry[end] = sum(row["status"] == end for row in members)
    entry |= _mean("accuracy", [row.get(METRIC) for row in done])
    entry |= _mean("loss", [row.get("eval/loss") for row in done])
    entry |= _mean("seconds", [rows_lib.seconds(row) for row in members])
    result.append(entry)
  return result


def table(
  cells: Sequence[Row], varied: Sequence[str] = ()
) -> list[tuple[str, ...]]:
  """What `summarize` returns, for people: text, the first row the titles."""
  # Nothing diverged is worth saying; that nothing failed is expected.
  ends = [
    end
    for end in _ENDS[1:]
    if end == "diverged" or any(cell[end] for cell in cells)
  ]
  titles = ("arm", "learning rate", *varied, "test accuracy %", "test loss")
  lines: list[tuple[str, ...]] = [(*titles, "runs", *ends, "seconds")]
  for cell in cells:
    words = [cell["arm"], figures.text(cell["learning_rate"])]
    words += [figures.text(cell[key]) for key in varied]
    words += [_spread(cell, "accuracy", 100, 2), _spread(cell, "loss", 1, 3)]
    words.append(str(cell["runs"]))
    for end in ends:
      some = "yes" if cell[end] == cell["runs"] == 1 else str(cell[end])
      words.append(some if cell[end] else "no")
    lines.append((*words, _spread(cell, "seconds", 1, 0)))
  return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table, padded so that its source reads well too."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  padded = [
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  ]
  rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
  return "\n".join([padded[0], rule, *padded[1:]]) + "\n"


def show(lines: Sequence[Sequence[str]]) -> None:
  """Prints the table; where there is no terminal, as wide as it needs."""
  from rich import box, console
  from rich.table import Table

  view = Table(*lines[0], box=box.SIMPLE_HEAD)
  for line in lines[1:]:
    view.add_row(*line)
  out = console.Console()
  out = out if out.is_terminal else console.Console(width=200)
  out.print(view)


def write(
  out: pathlib.Path, target: pathlib.Path | None = None, title: str = ""
) -> list[tuple[str, ...]]:
  """Writes the report of a sweep, finished or not.

  Args:
    out: the folder of the sweep, with `runs.csv`.
    target: where `runs.csv`, `summary.csv`, `summary.md`, `figure.png` and
      `figure.svg` go; None for `out`.
    title: of the figure.

  Returns:
    The table, as `table` does.

  Raises:
    ValueError: there are no rows.
  """
  import matplotlib

  target = target or out
  rows = rows_lib.read(out / "runs.csv")
  if not rows:
    raise ValueError(
      f"no rows in {out / 'runs.csv'}: run scripts/sweep.py first"
    )
  cells = summarize(rows)
  varied = varied_keys(rows)
  lines = table(cells, varied)
  drawing = figures.accuracy(cells, varied, read_curves(rows, out), title)
  target.mkdir(parents=True, exist_ok=True)
  if target.resolve() != out.resolve():
    rows_lib.write(target / "runs.csv", rows)
  rows_lib.write(target / "summary.csv", cells)
  (target / "summary.md").write_text(markdown(lines))
  drawing.savefig(target / "figure.png", dpi=160)
  # The same bytes for the same rows, as the file is committed.
  with matplotlib.rc_context({"svg.hashsalt": "ws_jax"}):
    drawing.savefig(target / "figure.svg", metadata={"Date": None})
  return lines


def read_curves(rows: Sequence[Row], out: pathlib.Path) -> list[figures.Curve]:
  """Test accuracy over steps, of the runs whose `metrics.jsonl` is there.

  Args:
    rows: of `runs.csv`.
    out: the folder of the sweep.
  """
  curves = []
  for row in rows:
    points = [
      (line["step"], line[METRIC])
      for line in writers.read_metrics(out / row["run"])
      if METRIC in line
    ]
    if points:
      diverged = row["status"] == "diverged"
      steps, values = np.array(points).T
      curves.append(
        figures.Curve(rows_lib.arm_of(row), row[_RATE], diverged, steps, values)
      )
  return curves


def _mean(name: str, values: Sequence[float | None]) -> Row:
  known = [value for value in values if value is not None]
  return {
    name: float(np.mean(known)) if known else None,
    f"{name}_std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
  }


def _spread(cell: Row, name: str, scale: float, digits: int) -> str:
  mean, std = cell[name], cell[f"{name}_std"]
  if mean is None:
    return "-"
  text = f"{scale * mean:.{digits}f}"
  return text if std is None else f"{text} ± {scale * std:.{digits}f}"
