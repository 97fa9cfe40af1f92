"""Turns the folder of a sweep into tables, figures and one HTML page."""

import io
import os
import pathlib
import urllib.parse
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ws_jax.base import disk, extras, names
from ws_jax.report import (
  changes,
  contents,
  figures,
  gallery,
  headline,
  mistakes,
  page,
  reading,
  summary,
  tables,
)
from ws_jax.sweep import rows as rows_lib

FORMATS = ("png", "svg", "pdf")


def write(
  out: pathlib.Path | Sequence[pathlib.Path],
  target: pathlib.Path | None = None,
  title: str = "",
  formats: Sequence[str] = FORMATS,
) -> tables.Lines:
  """Writes the report of a sweep, finished or not, or of two side by side.

  Args:
    out: Folder of the sweep, with `runs.csv`; or two of them.
    target: Folder to write `report.html`, a copy of `runs.csv`, the tables (CSV
      and Markdown) and the figures to; None for the folder that
      `default_target` returns.
    title: Title of the page and the figures.
    formats: Formats of the figures' files, of `FORMATS`.

  Returns:
    The table of all cells.

  Raises:
    ValueError: There are no rows, or rows with different metrics, or a format
      is not known.
  """
  extras.need("report", by="ws_jax.report")
  for format in formats:
    if format not in FORMATS:
      known = names.suggest(format, FORMATS)
      raise ValueError(f"no format {format!r} of figures: {known}")
  outs = [out] if isinstance(out, pathlib.Path) else list(out)
  target, title = target or default_target(outs), reading.name_of_file(title)
  sweep = reading.read(outs[0]) if len(outs) == 1 else reading.read_two(outs)
  results = summary.analyze(sweep.rows)
  target.mkdir(parents=True, exist_ok=True)
  if all(target.resolve() != one.resolve() for one in outs):
    ended = [row for row in sweep.rows if row["status"] != "missing"]
    rows_lib.write(target / "runs.csv", ended)
  compared = changes.between_sweeps(results)
  for name, entries in (
    ("summary", results.cells),
    ("best", results.best),
    ("differences", results.differences),
    *([("changes", compared)] if len(outs) > 1 else []),
  ):
    rows_lib.write(target / f"{name}.csv", entries)
  found = headline.of(results)
  if len(outs) > 1:
    found = changes.headline_of(results)
  texts = contents.tables_of(results)
  if compared:
    texts["changes"] = changes.table(results, compared)
  wrong = mistakes.read(results, sweep.folders)
  texts |= mistakes.tables_of(wrong) if wrong else {}
  for name, lines in texts.items():
    disk.write_text(target / f"{name}.md", tables.markdown(lines))
  said = "\n\n".join(text for text in found if text)
  disk.write_text(target / "headline.md", f"{said}\n")
  pictures = {
    figure.name: _save(figure, target, title, formats)
    for figure in gallery.figures_of(results, sweep.histories)
  }
  links = _links(sweep.folders, target)
  text = page.render(
    title or _title(outs),
    contents.facts(results),
    contents.warnings(results, sweep.planned, sweep.incomplete),
    contents.sections(results, texts, pictures, links, wrong),
    contents.curves(results, sweep.histories, links),
    found,
  )
  disk.write_text(target / "report.html", text)
  return texts["summary"]


def default_target(outs: Sequence[pathlib.Path]) -> pathlib.Path:
  """Returns the folder of a report: that of a sweep, or one beside the first.

  Example:
    >>> default_target([pathlib.Path("runs/a"), pathlib.Path("runs/b")]).name
    'a_vs_b'
  """
  if len(outs) == 1:
    return outs[0]
  one, other = (out.resolve() for out in outs)
  return outs[0].parent / f"{one.name}_vs_{other.name}"


def _title(outs: Sequence[pathlib.Path]) -> str:
  every = [reading.name_of_file(out.resolve().name) for out in outs]
  return f"Sweep {every[0]}" if len(every) == 1 else " and ".join(every)


def read(
  out: pathlib.Path,
) -> tuple[list[rows_lib.Row], dict[str, gallery.History]]:
  """Returns the rows of a sweep, and what each of its runs logged, by name.

  Args:
    out: Folder of the sweep. Without its `plan.json` missing runs are unknown.

  Raises:
    ValueError: There are no rows, or rows with different metrics.
  """
  sweep = reading.read(out)
  return sweep.rows, sweep.histories


def _save(
  figure: gallery.Figure,
  target: pathlib.Path,
  title: str,
  formats: Sequence[str],
) -> page.Picture:
  """Writes the files of a figure; returns what the page embeds."""
  wide = figure.draw(title=title)
  svg = _svg(wide)
  for format in formats:
    with disk.whole(target / f"{figure.name}.{format}") as file:
      file.write(svg.encode() if format == "svg" else _drawn(wide, format))
  if len(figure.panels) > 1 or title:
    return page.Picture(figure.caption, svg, _svg(figure.draw(1)))
  return page.Picture(figure.caption, svg, svg)


def _svg(drawing: Any) -> str:
  return _drawn(drawing, "svg").decode()


def _drawn(drawing: Any, format: str) -> bytes:
  """Returns a figure as a file of that format, without a date."""
  import matplotlib

  file = io.BytesIO()
  dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
  with matplotlib.rc_context(figures.STYLE), warnings.catch_warnings():
    # A letter that the font lacks is drawn as a box; the page has it.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    drawing.savefig(file, format=format, dpi=160, metadata=dated[format])
  return file.getvalue()


def _links(
  folders: Mapping[str, pathlib.Path], target: pathlib.Path
) -> Mapping[str, str]:
  """Returns links from the page to the folders of runs, by their names."""
  links = {}
  for run, folder in folders.items():
    path = os.path.relpath(folder, target).replace(os.sep, "/")
    links[run] = urllib.parse.quote(os.fsencode(path)) + "/"
  return links
