"""Reports: the folder of a sweep -> tables, figures and one HTML page."""

import io
import json
import math
import os
import pathlib
import urllib.parse
from collections.abc import Mapping

import numpy as np

from ws_jax.base import disk, extras
from ws_jax.report import contents, gallery, page, summary, tables
from ws_jax.sweep import rows as rows_lib
from ws_jax.train import record

_RELATIVE_STEP = "train/relative_step"


def write(
  out: pathlib.Path, target: pathlib.Path | None = None, title: str = ""
) -> tables.Lines:
  """Writes the report of a sweep, finished or not.

  Args:
    out: the folder of the sweep, with `runs.csv`.
    target: where `report.html`, a copy of `runs.csv`, the tables (CSV and
      Markdown) and the figures (PNG and SVG) go; None for `out`.
    title: of the page and the figures.

  Returns:
    The table of all cells.

  Raises:
    ValueError: there are no rows.
  """
  extras.need("report", by="ws_jax.report")
  target = target or out
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
  texts = contents.tables_of(results)
  for name, lines in texts.items():
    (target / f"{name}.md").write_text(tables.markdown(lines))
  pictures = {
    figure.name: _save(figure, target, title)
    for figure in gallery.figures_of(results, histories)
  }
  links = _links(results, out, target)
  text = page.render(
    title or f"Sweep {out.resolve().name}",
    contents.facts(results),
    contents.warnings(results, planned(out) is not None),
    contents.sections(results, texts, pictures, links),
    contents.curves(results, histories, links),
  )
  (target / "report.html").write_text(text, encoding="utf-8")
  return texts["summary"]


def read(
  out: pathlib.Path,
) -> tuple[list[rows_lib.Row], dict[str, gallery.History]]:
  """The rows of a sweep, and what its runs logged on the way, by name.

  A row says more than in `runs.csv`: `relative_step`, the mean of what the run
  logged (what is logged last is of a learning rate that has decayed), and the
  value of the config for each key that other runs override. A run to come
  has a row too, which is `missing`.

  Args:
    out: the folder of the sweep. Where it holds no `plan.json`, what is
      missing is not known.

  Raises:
    ValueError: there are no rows.
  """
  rows = rows_lib.read(out / "runs.csv")
  if not rows:
    raise ValueError(
      f"no rows in {out / 'runs.csv'}: run scripts/sweep.py first"
    )
  histories = {row["run"]: read_history(out / row["run"]) for row in rows}
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
  for key in summary.overridden(rows):
    for row in rows:
      if row.get(key) is None:
        row[key] = base.get(key)
  return rows, histories


def planned(out: pathlib.Path) -> list[str] | None:
  """Keys of all runs of the sweep, from its `plan.json`; None without it."""
  return disk.read_json(out / "plan.json")


def read_history(workdir: pathlib.Path) -> gallery.History:
  """What a run logged on the way; what is not finite is left out."""
  lines = record.read_metrics(workdir)
  found = {}
  for metric in (*contents.METRICS, _RELATIVE_STEP):
    points = [
      (line["step"], line[metric])
      for line in lines
      if line.get(metric) is not None and math.isfinite(line[metric])
    ]
    if points:
      found[metric] = np.array(points, float).T
  return found


def _save(
  figure: gallery.Figure, target: pathlib.Path, title: str
) -> page.Picture:
  """Writes `NAME.png` and `NAME.svg`; returns what the page embeds."""
  wide = figure.draw(title=title)
  wide.savefig(target / f"{figure.name}.png", dpi=160)
  wide.set_layout_engine("none")  # It is laid out; that is half the work.
  svg = _svg(wide)
  (target / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
  return page.Picture(figure.caption, svg, _svg(figure.draw(1)))


def _svg(drawing) -> str:
  import matplotlib

  file = io.StringIO()
  # The same bytes for the same rows, as the file is committed.
  with matplotlib.rc_context({"svg.hashsalt": "ws_jax"}):
    drawing.savefig(file, format="svg", metadata={"Date": None})
  return file.getvalue()


def _links(
  results: summary.Results, out: pathlib.Path, target: pathlib.Path
) -> Mapping[str, str]:
  """From the page to the folder of each run that is there, by its name."""
  found = {}
  for row in results.rows:
    folder = out / row["run"]
    if row["run"] and folder.is_dir():
      path = os.path.relpath(folder, target).replace(os.sep, "/")
      found[row["run"]] = urllib.parse.quote(path) + "/"
  return found
