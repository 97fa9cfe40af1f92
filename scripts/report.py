"""Reports on a sweep: prints the table of its cells, and writes all the rest.

  python scripts/report.py workdirs/quickstart
  python scripts/report.py workdirs/quickstart --to=experiments/quickstart

Writes one page, report.html, that needs no network, and its parts as files:
tables (CSV and Markdown) and figures (PNG and SVG). They go beside the runs or,
with a copy of runs.csv, to another folder. The report of a sweep that is not
finished shows what there is, and says what is missing.
"""

import pathlib
import sys

from ws_jax.base import extras

with extras.program("report", by="scripts/report.py"):
  from absl import app, flags, logging

from ws_jax import report
from ws_jax.report import tables

_TO = flags.DEFINE_string(
  "to", None, "Folder to write the report to. Default: DIR."
)
_TITLE = flags.DEFINE_string("title", "", "Title of the page and the figures.")


def main(argv: list[str]) -> None:
  """Writes the report of the sweep in the folder DIR."""
  if len(argv) != 2:
    raise app.UsageError("give one folder: python scripts/report.py DIR")
  logging.set_verbosity(logging.WARNING)
  out = pathlib.Path(argv[1])
  target = pathlib.Path(_TO.value) if _TO.value else out
  try:
    lines = report.write(out, target, _TITLE.value)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  tables.show(lines)
  print(f"page:   {target / 'report.html'}\nfigure: {target / 'figure.png'}")


if __name__ == "__main__":
  app.run(main)
