"""Turns the folder of a sweep into tables, figures and one HTML page."""

import io
import json
import math
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ws_jax.base import disk, extras
from ws_jax.report import (
  contents,
  figures,
  gallery,
  groups,
  headline,
  mistakes,
  page,
  summary,
  tables,
)
from ws_jax.report import metric as metrics
from ws_jax.sweep import rows as rows_lib
from ws_jax.train import record

_RELATIVE_STEP = "train/relative_step"


def write(
  out: pathlib.Path, target: pathlib.Path | None = None, title: str = ""
) -> tables.Lines:
  """Writes the report of a sweep, finished or not.

  Args:
    out: Folder of the sweep, with `runs.csv`.
    target: Folder to write `report.html`, a copy of `runs.csv`, the tables (CSV
      and Markdown) and the figures (PNG and SVG) to; None for `out`.
    title: Title of the page and the figures.

  Returns:
    The table of all cells.

  Raises:
    ValueError: There are no rows, or rows with different metrics.
  """
  extras.need("report", by="ws_jax.report")
  target, title = target or out, _legible(title)
  rows, histories = read(out)
  results = summary.analyze(rows)
  target.mkdir(parents=True, exist_ok=True)
  if target.resolve() != out.resolve():
    ended = [row for row in rows if row["status"] != "missing"]
    rows_lib.write(target / "runs.csv", ended)
  for name, entries in (
    ("summary", results.cells),
    ("best", results.best),
    ("differences", results.differences),
  ):
    rows_lib.write(target / f"{name}.csv", entries)
  found = headline.of(results)
  texts = contents.tables_of(results)
  wrong = mistakes.read(results, out)
  texts |= mistakes.tables_of(wrong) if wrong else {}
  for name, lines in texts.items():
    disk.write_text(target / f"{name}.md", tables.markdown(lines))
  pictures = {
    figure.name: _save(figure, target, title)
    for figure in gallery.figures_of(results, histories)
  }
  links = _links(results, out, target)
  text = page.render(
    title or f"Sweep {_legible(out.resolve().name)}",
    contents.facts(results),
    contents.warnings(
      results, planned(out) is not None, rows_lib.incomplete(out / "runs.csv")
    ),
    contents.sections(results, texts, pictures, links, wrong),
    contents.curves(results, histories, links),
    found,
  )
  disk.write_text(target / "report.html", text)
  return texts["summary"]


def _legible(name: str) -> str:
  """Returns a name that came from the command line or the disk as UTF-8 text.

  Python keeps bytes that a locale cannot decode as surrogates, which no file
  can hold.
  """
  return os.fsencode(name).decode("utf-8", "replace")


def read(
  out: pathlib.Path,
) -> tuple[list[rows_lib.Row], dict[str, gallery.History]]:
  """Returns the rows of a sweep, and what each of its runs logged, by name.

  Adds to each row of `runs.csv` its mean `relative_step` (the last one that is
  logged belongs to a learning rate that has decayed) and the config value of
  every key that another run overrides. Planned runs get a row with the status
  `missing`.

  Args:
    out: Folder of the sweep. Without its `plan.json` missing runs are unknown.

  Raises:
    ValueError: There are no rows, or rows with different metrics.
  """
  rows = rows_lib.read(out / "runs.csv")
  if not rows:
    raise ValueError(
      f"no rows in {out / 'runs.csv'}: run scripts/sweep.py first"
    )
  names = (*contents.logged(metrics.of(rows)), _RELATIVE_STEP)
  histories = {
    row["run"]: read_history(out / row["run"], names) for row in rows
  }
  for row in rows:
    if (steps := histories[row["run"]].get(_RELATIVE_STEP)) is not None:
      row["relative_step"] = float(steps[1].mean())
  base = disk.read_json(out / "base_config.json") or {}
  ended = {row["key"] for row in rows}
  for key in planned(out) or ():
    if key not in ended:
      overrides = json.loads(key)
      status = {"status": "missing"}
      rows.append(rows_lib.make(key, "", overrides, base | overrides, status))
  for key in groups.overridden(rows):
    for row in rows:
      if row.get(key) is None:
        row[key] = base.get(key)
  return rows, histories


def planned(out: pathlib.Path) -> list[str] | None:
  """Returns the keys of all runs, as `plan.json` has them; None without it."""
  return disk.read_json(out / "plan.json")


def read_history(
  workdir: pathlib.Path, names: Sequence[str]
) -> gallery.History:
  """Returns what a run logged under the given names; finite values only."""
  lines = record.read_metrics(workdir)
  history = {}
  for name in names:
    points = [
      (line["step"], line[name])
      for line in lines
      if line.get(name) is not None and math.isfinite(line[name])
    ]
    if points:
      history[name] = np.array(points, float).T
  return history


def _save(
  figure: gallery.Figure, target: pathlib.Path, title: str
) -> page.Picture:
  """Writes `NAME.png` and `NAME.svg`; returns what the page embeds."""
  wide = figure.draw(title=title)
  with disk.whole(target / f"{figure.name}.png") as file:
    wide.savefig(file, format="png", dpi=160)
  svg = _svg(wide)
  disk.write_text(target / f"{figure.name}.svg", svg)
  return page.Picture(figure.caption, svg, _svg(figure.draw(1)))


def _svg(drawing: Any) -> str:
  import matplotlib

  file = io.StringIO()
  with matplotlib.rc_context(figures.STYLE):
    drawing.savefig(file, format="svg", metadata={"Date": None})
  return file.getvalue()


def _links(
  results: summary.Results, out: pathlib.Path, target: pathlib.Path
) -> Mapping[str, str]:
  """Returns links from the page to the folders of runs, by their names."""
  links = {}
  for row in results.rows:
    folder = out / row["run"]
    if row["run"] and folder.is_dir():
      path = os.path.relpath(folder, target).replace(os.sep, "/")
      links[row["run"]] = urllib.parse.quote(os.fsencode(path)) + "/"
  return links
