"""Evaluates the best runs of a sweep on a split that decided nothing.

  python scripts/evaluate_best.py workdirs/clinc150 --split=test \
    --to=experiments/clinc150

A sweep that is evaluated on a validation split chooses the learning rate of
each arm by it. This program loads the runs of each arm at that rate, evaluates
them on another split, and writes best_SPLIT.csv and best_SPLIT.md. The runs
must have kept their checkpoints.
"""

import pathlib
import sys

from ws_jax.base import extras

with extras.program("report", by="scripts/evaluate_best.py"):
  from absl import app, flags, logging

from ws_jax import report
from ws_jax.base import disk
from ws_jax.report import groups, summary, tables
from ws_jax.sweep import rows
from ws_jax.train import backend, trained

_SPLIT = flags.DEFINE_string(
  "split", "test", "Split to evaluate on, as test or test[:10%]."
)
_TO = flags.DEFINE_string(
  "to", None, "Folder to write the tables to. Default: DIR."
)


def evaluate(out: pathlib.Path, split: str) -> summary.Results:
  """Returns the results of a sweep, with those of the best runs exchanged.

  Args:
    out: Folder of the sweep.
    split: Split to evaluate on.

  Returns:
    The results, in which metric and loss of `best` are those of the split.

  Raises:
    ValueError: there are no rows, or a run has kept no checkpoint.
  """
  results = summary.analyze(report.read(out)[0])
  columns = groups.measured(results.metric)
  entries = []
  for entry in results.best:
    done = results.at_best(entry)
    runs = [trained.load_run(out / row["run"]) for row in done]
    found = [run.evaluate([("data.eval_split", split)]) for run in runs]
    values = {}
    for name in columns:
      values |= groups.spread(name, [metrics[name] for metrics in found])
    print(f"{entry['arm']}: {len(found)} runs", flush=True)
    entries.append(entry | values | {"n": len(found)})
  metric = results.metric._replace(split=split)
  return results._replace(best=entries, metric=metric)


def main(argv: list[str]) -> None:
  """Evaluates the best runs of the sweep in the folder DIR."""
  if len(argv) != 2:
    raise app.UsageError("give one folder: scripts/evaluate_best.py DIR")
  logging.set_verbosity(logging.WARNING)
  backend.configure()
  out, split = pathlib.Path(argv[1]), _SPLIT.value
  target = pathlib.Path(_TO.value) if _TO.value else out
  name = "".join(x if x.isalnum() else "_" for x in split).strip("_")
  try:
    results = evaluate(out, split)
    lines = tables.best(results)
    target.mkdir(parents=True, exist_ok=True)
    rows.write(target / f"best_{name}.csv", results.best)
    disk.write_text(target / f"best_{name}.md", tables.markdown(lines))
  except (ValueError, OSError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
  tables.show(lines)


if __name__ == "__main__":
  app.run(main)
