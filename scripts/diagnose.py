"""Runs the diagnostics on the checkpoints of a sweep.

  python scripts/sweep.py --experiment=experiments/smoothness.py
  python scripts/diagnose.py workdirs/smoothness --to=experiments/smoothness

Writes diagnostics.csv, with a row for each checkpoint of each run, and
diagnostics.png. Step 0 needs no checkpoint; beyond it a run has the last
`train.keep_checkpoints` of its checkpoints. Started again, the command measures
only what is not in the table yet.
"""

import pathlib
import sys
from collections.abc import Collection, Sequence

from ws_jax.base import disk, extras

with extras.program("train", "report", by="scripts/diagnose.py"):
  from absl import app, flags, logging

from ws_jax.diagnostics import checkpoints
from ws_jax.sweep import rows
from ws_jax.train import backend

_TO = flags.DEFINE_string("to", None, "Folder to write to. Default: DIR.")
_STEPS = flags.DEFINE_list(
  "steps", None, "Optimizer steps to measure. Default: all that were kept."
)
_PROBE = flags.DEFINE_integer(
  "probe",
  1024,
  "Number of training images on which activations are measured.",
  lower_bound=1,
)


def diagnose(
  folder: pathlib.Path,
  target: pathlib.Path,
  wanted: Collection[int] | None,
  probe_size: int,
) -> None:
  """Measures what is not measured yet, and draws all of it.

  Args:
    folder: folder of the sweep, with its `runs.csv`.
    target: folder to write table and figure to; made if missing.
    wanted: optimizer steps to measure; None for all that were kept.
    probe_size: number of training images on which activations are measured.

  Raises:
    ValueError: no run is finished, or none kept a step that is wanted.
  """
  runs = rows.read(folder / "runs.csv")
  runs = [run for run in runs if run["status"] in ("done", "diverged")]
  if not runs:
    raise ValueError(f"no finished run in {folder / 'runs.csv'}")
  target.mkdir(parents=True, exist_ok=True)
  table = rows.read(target / "diagnostics.csv")
  known = {(row["run"], row["step"]) for row in table}
  for run in runs:
    workdir = folder / run["run"]
    todo = [
      step
      for step in checkpoints.kept_steps(workdir)
      if (run["run"], step) not in known and (wanted is None or step in wanted)
    ]
    if not todo:
      continue
    config = checkpoints.read_config(workdir)
    for row in checkpoints.measure(
      config, workdir, todo, probe_size=probe_size
    ):
      table.append(row)
      rows.write(target / "diagnostics.csv", table)
      print(f"{row['run']} step {row['step']}: loss {row['loss']}", flush=True)
  if not table:
    name = runs[0]["run"]
    kept = ", ".join(map(str, checkpoints.kept_steps(folder / name)))
    raise ValueError(f"no run kept a step of --steps; {name} kept {kept}")
  with disk.whole(target / "diagnostics.png") as file:
    checkpoints.draw(table).savefig(file, format="png", dpi=80)


def parse_steps(texts: Sequence[str] | None) -> set[int] | None:
  """Returns the numbers of --steps.

  Args:
    texts: value of the flag.

  Raises:
    ValueError: a part is not an optimizer step.
  """
  wrong = [text for text in texts or () if not text.isdecimal()]
  if wrong:
    raise ValueError(
      f"--steps: {wrong[0]!r} is no step; write --steps=0,39,117"
    )
  return None if texts is None else {int(text) for text in texts}


def main(argv: list[str]) -> None:
  """Runs the command; exits 1 with one line if it cannot be run."""
  if len(argv) != 2:
    raise app.UsageError("give one folder: python scripts/diagnose.py DIR")
  logging.set_verbosity(logging.WARNING)
  backend.enable_compilation_cache()
  folder = pathlib.Path(argv[1])
  target = pathlib.Path(_TO.value or folder)
  try:
    diagnose(folder, target, parse_steps(_STEPS.value), _PROBE.value)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(f"table:  {target / 'diagnostics.csv'}")
  print(f"figure: {target / 'diagnostics.png'}")


if __name__ == "__main__":
  app.run(main)
