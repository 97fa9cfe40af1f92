"""Writes and reads `runs.csv`, which has one row for each run of a sweep.

The file is replaced in one step, under a lock that ends with its process, so a
reader never sees half a row and two writers never lose one. A row that somebody
else has cut short is left out: its run is not finished until it has a row.
"""

import csv
import io
import json
import math
import pathlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ws_jax import config as config_lib
from ws_jax.base import disk

Row = dict[str, Any]

# Keys of the resolved config that every row states, whether varied or not.
FACTS = (
  "data.name",
  "data.eval_split",
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
# Norms whose statistics are those of the examples of a batch.
OVER_BATCH = ("batch", "batch_channel")
# Values of status.json that say where the run took place.
_MACHINE = ("device", "cpu_count", "xla_flags", "commit")
# The same, in rows of runs that say so.
_MORE = ("backend", "native", "stack", "mixed")
# Values of status.json that are tables.
_TABLES = ("metric", "metrics", "seconds", "versions")
# These columns are text, read as it stands: a commit 12e4567 is not a number.
_TEXT = {
  *("key", "run", "status", "reason", "device", "xla_flags", "commit"),
  *("metric", "metric_goal", "metric_unit", "data.eval_split", "backend"),
}

# Columns that are of one kind. A file of an older version may lack some.
_NEEDED = ("key", "run", "status")
_ALWAYS = (
  *("step", "reason", "seed", "model.norm", "model.ws"),
  *("optim.learning_rate", "optim.base_learning_rate"),
)
_MEASURED = ("eval/", "best/", "train/", "seconds.")
_NUMBERS = {
  *("step", "steps", "epochs", "seed", "best_step", "optimizer_batch"),
  *("normalization_batch", "micro_batch", "optim.learning_rate"),
  *("optim.base_learning_rate", "optim.adaptive_clip"),
}
_SWITCHES = {"model.ws", "optim.centralize"}
_WORDS = {"model.norm", "model.ws_convention"}


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
  over_batch = flat.get("model.norm") in OVER_BATCH
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
  row |= {name: status[name] for name in _MORE if status.get(name) is not None}
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
  """Returns the seconds that a run took to compile, train and evaluate."""
  spent = (row[name] for name in row if name.startswith("seconds."))
  return sum(value for value in spent if value is not None)


def verdict(row: Row) -> str:
  """Returns one line on how a run ended, to print; its metric is in front."""
  took = f"{seconds(row):.0f} s"
  if row["status"] == "done":
    first = column_of(row.get("metric"))
    names = [k for k in row if k.startswith("eval/") and row[k] is not None]
    names.sort(key=lambda name: name != first)
    shown = (f"{name} {row[name]:.4f}" for name in names)
    return ", ".join(["done", *shown, took])
  step = "" if row["step"] is None else f" at step {row['step']}"
  reason = f": {row['reason']}" if row["reason"] else ""
  return printable(f"{row['status']}{step}, {took}{reason}")


def printable(text: str) -> str:
  """Returns a text with escapes for letters that standard output cannot show.

  A reason is whatever an exception says. It must not end a sweep that prints
  it where the locale is not UTF-8.
  """
  encoding = sys.stdout.encoding or "utf-8"
  return text.encode(encoding, "backslashreplace").decode(encoding)


def read(path: pathlib.Path, keys: Collection[str] | None = None) -> list[Row]:
  """Returns the rows of a CSV file; none if there is no such file.

  Numbers and booleans are read as such, empty cells as None. A row that is
  `incomplete` is left out.

  Args:
    path: Path of the file.
    keys: Keys of the rows to return; None for all. It takes hardly any time to
      find that there are none of them yet.

  Raises:
    ValueError: The file is not UTF-8, or is damaged.
  """
  if not path.exists():
    return []
  content = path.read_bytes()
  if keys is not None and not any(_may_hold(content, key) for key in keys):
    return []
  return [
    {name: _parse(name, text) for name, text in row.items()}
    for row, complete in _records(path, content)
    if complete and (keys is None or row.get("key") in keys)
  ]


def read_runs(
  path: pathlib.Path, keys: Collection[str] | None = None
) -> list[Row]:
  """Returns the rows of a `runs.csv`, as `read`, after it has checked them.

  Args:
    path: Path of the file.
    keys: Keys of the rows to return; None for all.

  Raises:
    ValueError: As `read`, or the file is no table of runs, or a value is of a
      kind that it cannot be.
  """
  rows = read(path, keys)
  for row in rows:
    check(path, row)
    for name in _ALWAYS:
      row.setdefault(name, None)
  return rows


def check(path: pathlib.Path, row: Row) -> None:
  """Refuses a row in which a value is of a kind that it cannot be.

  Args:
    path: Path of the file that the row comes from, for the message.
    row: Row, as `make` returns it.

  Raises:
    ValueError: The message names the file, the run and the column.
  """
  _check_columns(path, row, _NEEDED)
  for name, value in row.items():
    text = name in _NEEDED
    number = name in _NUMBERS or name.startswith(_MEASURED)
    wanted = ""
    if text and not isinstance(value, str):
      wanted = "a text"
    elif name == "key" and not is_key(value):
      wanted = "a table of overrides, as JSON"
    elif number and not (value is None or disk.is_number(value)):
      wanted = "a number"
    elif name in _SWITCHES and not (value is None or isinstance(value, bool)):
      wanted = "true or false"
    elif name in _WORDS and not (value is None or isinstance(value, str)):
      wanted = "a text"
    if wanted:
      raise ValueError(
        f"{path}, run {str(row['run'])[:200]!r}: {name} is {str(value)[:80]!r},"
        f" and must be {wanted}. Delete the row: the command that ran the sweep"
        " adds it again"
      )


def _check_columns(
  path: pathlib.Path, row: Mapping[str, Any], names: Sequence[str]
) -> None:
  if missing := [name for name in names if name not in row]:
    raise ValueError(f"{path} is no table of runs: no column {missing[0]!r}")


def is_key(text: Any) -> bool:
  """Returns whether a text is the key of a row: overrides as JSON.

  Example:
    >>> is_key('{"seed": 1}'), is_key("[1]")
    (True, False)
  """
  try:
    return isinstance(text, str) and isinstance(disk.parse_json(text), dict)
  except ValueError:
    return False


def _may_hold(content: bytes, key: str) -> bool:
  """Returns whether a CSV file may have a row with that key."""
  return key.replace('"', '""').encode() in content


def incomplete(path: pathlib.Path) -> list[str]:
  """Returns columns of the rows that are cut short, or their place in the file.

  A file that `write` has written has none: its rows are of one length, and its
  last line has an end.
  """
  names: list[str] = []
  if not path.exists():
    return names
  records = _records(path, path.read_bytes())
  for number, (row, complete) in enumerate(records, start=1):
    if not complete:
      # The name is whole only if something comes after it.
      columns = [*row]
      whole = "run" in columns and columns[-1] != "run"
      names.append(row["run"] if whole else f"row {number}")
  return names


def _records(
  path: pathlib.Path, content: bytes
) -> Iterator[tuple[dict[str, str], bool]]:
  """Yields each row of a file as text by column, and whether it is complete."""
  ended = content.endswith(b"\n")
  try:
    # What is cut short may end within a character.
    text = content.decode("utf-8", "strict" if ended else "ignore")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error}") from None
  try:
    columns, *records = disk.parse_csv(text) or [[]]
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  for number, record in enumerate(records, start=1):
    complete = len(record) == len(columns)
    complete = complete and (ended or number < len(records))
    if record:
      yield dict(zip(columns, record, strict=False)), complete


def append(path: pathlib.Path, row: Row) -> None:
  """Adds a row, in place of an earlier one with its key, in one step.

  Args:
    path: Path of the `runs.csv`. A file or a column that is missing is added.
    row: Row of the run, as `make` returns it.

  Raises:
    ValueError: The file is not UTF-8, is damaged, or is no table of runs.
  """
  with disk.locked(path.with_name(f".{path.name}.lock")):
    content = path.read_bytes() if path.exists() else b""
    # Long sweeps would spend their time on rows that are there already.
    if line := _line_more(content, row):
      with disk.whole(path) as file:
        file.writelines([content, line])
      return
    there = [old for old, complete in _records(path, content) if complete]
    for old in there:
      _check_columns(path, old, ("key",))
    kept = [old for old in there if old["key"] != row["key"]]
    write(path, [*kept, row])


def _line_more(content: bytes, row: Row) -> bytes:
  """Returns the line that adds a row to a file, as all else in it stays.

  Empty if something else has to change too: the file has no such column or may
  have a row of that key, or its last one is cut short.
  """
  head, _, _ = content.partition(b"\n")
  try:
    columns, *_ = disk.parse_csv(head.decode(errors="replace")) or [[]]
  except ValueError:
    return b""
  if (
    not content.endswith(b"\n")
    or row.keys() - set(columns)
    or _may_hold(content, row["key"])
  ):
    return b""
  return _csv(columns, [row]).encode()


def write(path: pathlib.Path, rows: list[Row]) -> None:
  """Writes a CSV file, whole or not at all.

  Args:
    path: Path of the file to write.
    rows: Rows, which need not have the same columns.
  """
  columns = list(dict.fromkeys(name for row in rows for name in row))
  head = _csv(columns, [dict(zip(columns, columns, strict=True))])
  disk.write_text(path, head + _csv(columns, rows))


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns rows as lines of a CSV file."""
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  for row in rows:
    writer.writerow({name: _text(value) for name, value in row.items()})
  return text.getvalue()


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
    value = disk.parse_json(text)
  except ValueError:
    return text
  return plain(value)


def plain(value: Any) -> Any:
  """Returns the value of a key as runs can be grouped by: a table as text.

  Also a number that no array holds.
  """
  odd = isinstance(value, int) and not isinstance(value, bool)
  odd = odd and abs(value) >= 2**63
  return json.dumps(value) if odd or isinstance(value, dict) else value


def status_of(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the content of `status.json`.

  It is empty if the run has not begun, or if the file is damaged: then the run
  makes a new one as it goes on.
  """
  try:
    status = disk.read_json(workdir / "status.json")
  except ValueError:
    status = None
  status = status if isinstance(status, dict) else {}
  return {
    name: value
    for name, value in status.items()
    if name not in _TABLES or isinstance(value, dict)
  }
