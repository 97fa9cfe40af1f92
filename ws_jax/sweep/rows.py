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
_TEXT = {"key", "run", "status", "reason", "device", "xla_flags", "commit"}


def make(
  key: str,
  run: str,
  overrides: Mapping[str, Any],
  config: Mapping[str, Any],
  status: Mapping[str, Any],
  history: Sequence[Mapping[str, Any]] = (),
) -> Row:
  """The row of one run.

  Args:
    key: canonical overrides; the identity of the row.
    run: the name of its folder.
    overrides: what it changed in the config, by dotted key.
    config: the config as it ran, resolved, nested or flat.
    status: as in `status.json`: `status`, `step`, `reason`, `metrics`,
      `seconds`, `versions`, `device` and its like; all but the first may lack.
    history: the lines of its `metrics.jsonl`.

  Returns:
    Column name to value. The batch of the optimizer, of one normalization and
    of one gradient are three columns; per-example norms have 1 as the second.
    `step` is how far it came, `steps` and `epochs` how far it was to go;
    `best_step` and the `best/` of its metric are of the best evaluation, which
    is a little better than what an untouched test set would say.
  """
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
  row |= status.get("metrics") or {}
  row |= _best(history)
  for group in ("seconds", "versions"):
    values = status.get(group) or {}
    row |= {f"{group}.{name}": value for name, value in values.items()}
  row |= {name: status.get(name) for name in _MACHINE}
  return row


def _best(history: Sequence[Mapping[str, Any]]) -> Row:
  """When the test metric was best, and what it was; nothing if never seen."""
  for name, sign in (("eval/accuracy", 1), ("eval/loss", -1)):
    seen = [line for line in history if math.isfinite(line.get(name, math.nan))]
    if seen:
      best = max(seen, key=lambda line: sign * line[name])
      return {"best_step": best["step"], f"best/{name}": best[name]}
  return {}


def seconds(row: Row) -> float:
  """Seconds of a run: compiling, training and evaluating."""
  spent = (row[name] for name in row if name.startswith("seconds."))
  return sum(value for value in spent if value is not None)


def verdict(row: Row) -> str:
  """How a run ended, in one line."""
  took = f"{seconds(row):.0f} s"
  if row["status"] == "done":
    shown = (f"{k} {row[k]:.4f}" for k in row if k.startswith("eval/"))
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
