"""One row for each run of a sweep, in `runs.csv`: the evidence, kept whole.

The file is replaced in one step, under a lock that ends with its process, so a
reader never sees half a row and two writers never lose one.
"""

import csv
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ws_jax import config as config_lib
from ws_jax.base import disk

Row = dict[str, Any]

# Of the resolved config: what a result must say whether or not it was varied.
FACTS = (
  "data.name",
  "model.name",
  "model.norm",
  "model.ws",
  "model.ws_convention",
  "optim.centralize",
  "optim.learning_rate",
  "optim.base_learning_rate",
  "optim.weight_decay",
  "optim.momentum",
  "seed",
)
# Of status.json: where it ran.
_MACHINE = ("device", "cpu_count", "xla_flags", "commit")
# Read back as they stand: a commit such as 12e4567 is not a number.
_TEXT = {
  *("key", "run", "status", "reason", "device", "xla_flags", "commit"),
  *("metric", "metric_goal", "metric_unit"),
}


def make(
  key: str,
  run: str,
  overrides: Mapping[str, Any],
  config: Mapping[str, Any],
  status: Mapping[str, Any],
  history: Sequence[Mapping[str, Any]] = (),
) -> Row:
  """Returns the row of one run.

  Args:
    key: Canonical overrides, which are the identity of the row.
    run: Name of the folder of the run.
    overrides: Values that the run changed in the config, by dotted key.
    config: Resolved config of the run, nested or flat.
    status: Content of `status.json`: `status`, `step`, `reason`, `metric`,
      `metrics`, `seconds`, `versions`, `device` and its like; all but the first
      are optional.
    history: Lines of the run's `metrics.jsonl`.

  Returns:
    Column name to value. The batch of the optimizer, of one normalization and
    of one gradient are three columns; per-example norms have 1 as the second.
    `step` is the step that the run reached, `steps` and `epochs` its planned
    length. `metric`, `metric_goal` and `metric_unit` say what the task is
    judged by. `best_step` and `best/eval/...` belong to the best evaluation,
    which is a little better than what an untouched test set would show.
  """
  metric = status.get("metric") or {}
  flat = config_lib.flatten(config)
  batch = flat.get("data.batch_size")
  micro = flat.get("optim.micro_batch_size") or batch
  over_batch = flat.get("model.norm") == "batch"
  row: Row = {
    "key": key,
    "run": run,
    "status": status["status"],
    "step": status.get("step"),
    "reason": status.get("reason"),
  }
  row |= {fact: flat.get(fact) for fact in FACTS}
  row |= overrides
  row |= {
    "optimizer_batch": batch,
    "normalization_batch": (
      (flat.get("model.norm_batch_size") or micro) if over_batch else 1
    ),
    "micro_batch": micro,
    "steps": flat.get("train.steps"),
    "epochs": flat.get("train.epochs"),
  }
  row |= {
    "metric": metric.get("name"),
    "metric_goal": metric.get("goal"),
    "metric_unit": metric.get("unit"),
  }
  row |= status.get("metrics") or {}
  row |= _best(history, metric)
  for group in ("seconds", "versions"):
    values = status.get(group) or {}
    row |= {f"{group}.{name}": value for name, value in values.items()}
  row |= {name: status.get(name) for name in _MACHINE}
  return row


def column_of(metric: str | None) -> str:
  """Returns the column of the metric of that name; None means accuracy."""
  return f"eval/{metric or 'accuracy'}"


def _best(
  history: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]
) -> Row:
  """Returns step and value of the best evaluation; empty if there was none.

  A run without the metric is judged by its loss.
  """
  own = (
    column_of(metric.get("name")),
    -1 if metric.get("goal") == "min" else 1,
  )
  for name, sign in (own, ("eval/loss", -1)):
    seen = [line for line in history if _finite(line.get(name))]
    if seen:
      best = max(seen, key=lambda line: sign * line[name])
      return {"best_step": best["step"], f"best/{name}": best[name]}
  return {}


def _finite(value: Any) -> bool:
  return value is not None and math.isfinite(value)


def seconds(row: Row) -> float:
  """Seconds of a run: compiling, training and evaluating."""
  spent = (row[name] for name in row if name.startswith("seconds."))
  return sum(value for value in spent if value is not None)


def verdict(row: Row) -> str:
  """Returns one line on how a run ended, with its metric in front."""
  took = f"{seconds(row):.0f} s"
  if row["status"] == "done":
    first = column_of(row.get("metric"))
    names = [k for k in row if k.startswith("eval/") and row[k] is not None]
    names.sort(key=lambda name: name != first)
    shown = (f"{name} {row[name]:.4f}" for name in names)
    return ", ".join(["done", *shown, took])
  step = "" if row["step"] is None else f" at step {row['step']}"
  reason = f": {row['reason']}" if row["reason"] else ""
  return f"{row['status']}{step}, {took}{reason}"


def read(path: pathlib.Path) -> list[Row]:
  """The rows of a `runs.csv`; none if there is no such file.

  Numbers and booleans are read as such, empty cells as None.
  """
  if not path.exists():
    return []
  with path.open(newline="", encoding="utf-8") as file:
    return [
      {name: _parse(name, text) for name, text in row.items()}
      for row in csv.DictReader(file)
    ]


def append(path: pathlib.Path, row: Row) -> None:
  """Adds a row, in place of an earlier one with its key, in one step.

  Args:
    path: the `runs.csv`; made if missing. A column that it lacks is added.
    row: as `make` returns it.
  """
  with disk.locked(path.with_name(f".{path.name}.lock")):
    rows = [old for old in read(path) if old["key"] != row["key"]]
    write(path, [*rows, row])


def write(path: pathlib.Path, rows: list[Row]) -> None:
  """Writes a CSV file whole or not at all; a row may lack columns."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow({name: _text(value) for name, value in row.items()})
  disk.write_text(path, text.getvalue())


def _text(value: Any) -> str:
  if value is None:
    return ""
  return value if isinstance(value, str) else json.dumps(value)


def _parse(name: str, text: str) -> Any:
  if not text:
    return None
  if name in _TEXT or name.startswith("versions."):
    return text
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return text


def status_of(workdir: pathlib.Path) -> dict[str, Any]:
  """What `status.json` of a run says; empty if it has not begun."""
  return disk.read_json(workdir / "status.json") or {}
