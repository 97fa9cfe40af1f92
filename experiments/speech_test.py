"""How good are the best rates, chosen on `val`, on speakers of `test`?

Question: the sweeps on Arabic Speech Commands choose the learning rate of each
arm on the six speakers of `val`. What is the accuracy on the six speakers of
`test`, which nothing was chosen on?

Scientific parameters: those of the sweep whose folder is given.
Nuisance parameters: the learning rate; each arm has its best one of the sweep.
Fixed parameters: the checkpoint of the last step of each run, evaluated as it
  was on `val`.

  python experiments/speech_test.py --runs=workdirs/speech_lr \
    --out=workdirs/speech_lr_test
  python scripts/report.py workdirs/speech_lr_test \
    --to=experiments/speech_lr/test

Nothing is trained: it reads what a sweep left, and takes a few seconds for each
run. What it writes has the form of a sweep, so that its report has the
accuracy of each speaker and the confusion matrix.
"""

import pathlib
import sys

from absl import app, flags, logging

from ws_jax import report, train
from ws_jax.report import summary
from ws_jax.sweep import rows
from ws_jax.train import backend

_RUNS = flags.DEFINE_string(
  "runs", "workdirs/speech_lr", "Folder of a sweep that kept checkpoints."
)
_OUT = flags.DEFINE_string(
  "out", "workdirs/speech_lr_test", "Folder to write runs.csv to."
)
_SPLIT = flags.DEFINE_string("split", "test", "Split to evaluate on.")


def chosen(out: pathlib.Path) -> list[rows.Row]:
  """Returns the rows of the runs at the best rate of their arm and setting.

  Raises:
    ValueError: no run is done.
  """
  results = summary.analyze(report.read(out)[0])
  done = [row for row in results.rows if row["status"] == "done"]
  return [row for row in done if results.is_best(row)]


def evaluate(
  row: rows.Row, runs: pathlib.Path, out: pathlib.Path, split: str
) -> rows.Row:
  """Evaluates a run on another split, and keeps its answers.

  Args:
    row: Row of the run.
    runs: Folder of the sweep.
    out: Folder to write a folder for the run to.
    split: Name of the split.

  Returns:
    The row with the metrics on that split.
  """
  run = train.load_run(runs / row["run"])
  metrics, answers = run.answer([("data.eval_split", split)])
  if answers is not None:
    folder = out / row["run"]
    folder.mkdir(parents=True, exist_ok=True)
    answers.write(folder)
  # What was best on the split of the sweep says nothing of this one.
  kept = {name: x for name, x in row.items() if not name.startswith("best")}
  kept["data.eval_split"] = split
  return kept | {f"eval/{name}": value for name, value in metrics.items()}


def main(argv: list[str]) -> None:
  """Evaluates the runs at the best rates, and writes runs.csv to --out."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  print(backend.configure(), file=sys.stderr)
  runs, out = pathlib.Path(_RUNS.value), pathlib.Path(_OUT.value)
  try:
    found = []
    for row in chosen(runs):
      found.append(evaluate(row, runs, out, _SPLIT.value))
      print(f"{row['run']}: {rows.verdict(found[-1])}", flush=True)
  except ValueError as error:
    sys.exit(f"error: {error}")
  out.mkdir(parents=True, exist_ok=True)
  rows.write(out / "runs.csv", found)


if __name__ == "__main__":
  app.run(main)
