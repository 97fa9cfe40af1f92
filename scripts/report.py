"""Reports on a sweep: prints the table of its cells, and writes all the rest.

  python scripts/report.py workdirs/quickstart
  python scripts/report.py workdirs/quickstart --to=experiments/quickstart
  python scripts/report.py workdirs/before workdirs/after

Writes one page, report.html, that needs no network, and its parts as files:
tables (CSV and Markdown) and figures (PNG, SVG and PDF). They go beside the
runs or, with a copy of runs.csv, to another folder. The report of a sweep that
is not finished shows what there is, and says what is missing. Two sweeps stand
side by side, by the names of their folders, on a page in a folder beside the
first (before_vs_after), with a table of what has changed for each arm.
"""

import pathlib
import sys

from ws_jax.base import extras

with extras.program("report", by="scripts/report.py"):
  from absl import app, flags, logging

from ws_jax import report
from ws_jax.report import tables

_TO = flags.DEFINE_string(
  "to", None, "Folder to write the report to. Default: DIR, or DIR_vs_OTHER."
)
_FIGURES = flags.DEFINE_list(
  "figures", [*report.FORMATS], "Formats of the files of the figures."
)
_TITLE = flags.DEFINE_string("title", "", "Title of the page and the figures.")


def main(argv: list[str]) -> None:
  """Writes the report of the sweep in the folder DIR, or of two of them."""
  if len(argv) not in (2, 3):
    raise app.UsageError(
      "give one folder, or two: python scripts/report.py DIR [OTHER]"
    )
  logging.set_verbosity(logging.WARNING)
  outs = [pathlib.Path(argument) for argument in argv[1:]]
  target = pathlib.Path(_TO.value) if _TO.value else report.default_target(outs)
  try:
    lines = report.write(outs, target, _TITLE.value, _FIGURES.value)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
  tables.show(lines)
  print((target / "headline.md").read_text(encoding="utf-8"))
  print(f"page:   {target / 'report.html'}")
  for name in _FIGURES.value[:1]:
    print(f"figure: {target / f'figure.{name}'}")


if __name__ == "__main__":
  app.run(main)
