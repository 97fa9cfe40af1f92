"""Reads the folder of a sweep, or of two that are to stand side by side."""

import json
import math
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ws_jax.base import disk
from ws_jax.report import contents, gallery, groups
from ws_jax.report import metric as metrics
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep import runner
from ws_jax.train import record

_RELATIVE_STEP = "train/relative_step"


class Sweep(NamedTuple):
  """What is known of the runs of a sweep.

  Attributes:
    rows: Rows of all runs; those that are planned have the status `missing`.
    histories: What each run logged, by the name of the run.
    folders: Folder of each run that has one, by the name of the run.
    planned: Whether the folder says which runs the sweep has.
    incomplete: Names of the rows of `runs.csv` that are cut short.
  """

  rows: list[rows_lib.Row]
  histories: dict[str, gallery.History]
  folders: dict[str, pathlib.Path]
  planned: bool
  incomplete: list[str]


def read(out: pathlib.Path) -> Sweep:
  """Returns the rows of a sweep, and what each of its runs logged.

  Adds to each row of `runs.csv` its mean `relative_step` (the last one that is
  logged belongs to a learning rate that has decayed) and the config value of
  every key that another run overrides. Planned runs get a row with the status
  `missing`.

  Args:
    out: Folder of the sweep. Without its `plan.json` missing runs are unknown.

  Raises:
    ValueError: There are no rows, or rows with different metrics.
  """
  rows = [
    {name: legible(value) for name, value in row.items()}
    for row in rows_lib.read_runs(out / "runs.csv")
  ]
  if not rows:
    raise ValueError(
      f"no rows in {out / 'runs.csv'}: run scripts/sweep.py first"
    )
  folders = {
    row["run"]: out / row["run"] for row in rows if _has_folder(row, out)
  }
  names = (*contents.logged(metrics.of(rows)), _RELATIVE_STEP)
  histories = {
    run: read_history(folder, names) for run, folder in folders.items()
  }
  for row in rows:
    steps = histories.get(row["run"], {}).get(_RELATIVE_STEP)
    if steps is not None:
      row["relative_step"] = float(steps[1].mean())
  base = runner.base_config(out)
  plan = disk.read_json(out / "plan.json")
  ended = {row["key"] for row in rows}
  keys = [] if plan is None else plan
  if not isinstance(keys, list) or not all(map(rows_lib.is_key, keys)):
    raise ValueError(
      f"{out / 'plan.json'} is damaged: it is no list of overrides. The command"
      " that ran the sweep writes it again"
    )
  for key in keys:
    if key not in ended:
      overrides = {
        name: rows_lib.plain(value) for name, value in json.loads(key).items()
      }
      status = {"status": "missing"}
      row = rows_lib.make(key, "", overrides, base | overrides, status)
      rows_lib.check(out / "plan.json", row)
      rows.append(row)
  _fill(rows, lambda row: base)
  incomplete = rows_lib.incomplete(out / "runs.csv")
  return Sweep(rows, histories, folders, plan is not None, incomplete)


def read_two(outs: Sequence[pathlib.Path]) -> Sweep:
  """Returns the runs of two sweeps as those of one that varies `sweep`.

  That key has the name of the folder of each.

  Args:
    outs: Folders of the sweeps.

  Raises:
    ValueError: Both are one folder, one has no rows, or the metrics differ.
  """
  names = _names(outs)
  bases = {name: runner.base_config(out) for name, out in names.items()}
  rows, histories, folders = [], {}, {}
  sweeps = {name: read(out) for name, out in names.items()}
  for name, sweep in sweeps.items():
    called = lambda run, name=name: f"{name}/{run}" if run else ""
    for row in sweep.rows:
      key = json.dumps(json.loads(row["key"]) | {groups.SWEEP: name})
      own = {"key": key, "run": called(row["run"]), groups.SWEEP: name}
      rows.append(row | own)
    histories |= {called(run): x for run, x in sweep.histories.items()}
    folders |= {called(run): x for run, x in sweep.folders.items()}
  metrics.of(rows)
  _fill(rows, lambda row: bases[row[groups.SWEEP]])
  return Sweep(
    rows,
    histories,
    folders,
    all(sweep.planned for sweep in sweeps.values()),
    [f"{name}/{run}" for name, s in sweeps.items() for run in s.incomplete],
  )


def _names(outs: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
  """Returns the folders by names that differ, as short as can be."""
  paths = [out.resolve() for out in outs]
  if len(set(paths)) < len(paths):
    raise ValueError(f"{outs[0]} is given twice: name two sweeps to compare")
  count = 1
  while len({path.parts[-count:] for path in paths}) < len(paths):
    count += 1
  names = ["/".join(path.parts[-count:]).strip("/") for path in paths]
  return dict(zip(map(name_of_file, names), outs, strict=True))


def _fill(rows: Sequence[rows_lib.Row], base_of: Any) -> None:
  """Gives every row a value for each key that any row overrides.

  Of a key that another model has and its own has not there is none: a net
  without norms is no net with the norm of the others.
  """
  for key in ("data.eval_split", *groups.overridden(rows)):
    section = key.partition(".")[0]
    owner = f"{section}.name" if section in ("model", "task") else ""
    for row in rows:
      base = base_of(row)
      own = row.get(owner) in (None, base.get(owner))
      if row.get(key) is None and own:
        row[key] = base.get(key)


def _has_folder(row: Mapping[str, Any], out: pathlib.Path) -> bool:
  """Returns whether a run has a folder, which lies in that of the sweep."""
  name = row["run"]
  if not name or pathlib.PurePath(name).name != name:
    return False
  return (out / name).is_dir()


def name_of_file(name: str) -> str:
  """Returns a name that came from the command line or the disk as UTF-8 text.

  Python keeps bytes that a locale cannot decode as surrogates, which no file
  can hold.
  """
  return legible(os.fsencode(name).decode("utf-8", "replace"))


def legible(value: Any) -> Any:
  """Returns a value whose texts can be written to any file of a report.

  No UTF-8 file can hold a surrogate, and no drawing a control character.

  Args:
    value: Value of a row: a text, a list, or what needs no change.

  Example:
    >>> legible([chr(0) + "text", 0.1])
    ['text', 0.1]
  """
  if isinstance(value, list):
    return [legible(x) for x in value]
  if not isinstance(value, str) or value.isprintable():
    return value
  text = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
  return "".join(
    x for x in text if x == "\n" or unicodedata.category(x) not in ("Cc", "Cn")
  )


def read_history(
  workdir: pathlib.Path, names: Sequence[str]
) -> gallery.History:
  """Returns what a run logged under the given names; finite values only."""
  points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
  for row in record.iterate(workdir):  # one by one: there may be a million
    for name in names:
      if row.get(name) is not None and math.isfinite(row[name]):
        points[name].append((row["step"], row[name]))
  return {name: np.array(x, float).T for name, x in points.items() if x}
