"""The rows that a run logs: `metrics.jsonl` and TensorBoard's event files.

A run that logs each of a million steps goes on within seconds: of its rows only
the last ones are read. `train.keep_log_rows` bounds both kinds of files.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from ws_jax.base import disk
from ws_jax.train.events import Events

NAME = "metrics.jsonl"
# Bytes that are read at once from the end of a file.
_BLOCK = 2**20
# How the names of what training and evaluations log begin.
_TRAIN, _EVAL = "train/", "eval/"


class MetricWriter:
  """Appends rows to `metrics.jsonl` and to TensorBoard events.

  Args:
    workdir: Folder of the run.
    step: Step that it goes on from; later rows of an earlier attempt are
      dropped, so that a resumed run leaves what an uninterrupted one would.
    keep: Number of training rows that are kept when older ones are thinned out,
      see `spacing`; None to keep all. Rows of evaluations stay.
    every: Number of steps between two training rows.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    step: int,
    *,
    keep: int | None = None,
    every: int = 1,
  ):
    self._path = workdir / NAME
    self._keep, self._every = keep, every
    cut(self._path, step)
    self._file = self._path.open("a", encoding="utf-8")
    self._events = Events(workdir, step)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one row, `step` and the metrics, and flushes it."""
    self._file.write(disk.to_json({"step": step, **metrics}) + "\n")
    self._file.flush()
    self._events.write(step, metrics)
    trained = any(name.startswith(_TRAIN) for name in metrics)
    if self._keep and trained and step % (self._keep * self._every) == 0:
      self._thin(step)

  def _thin(self, step: int) -> None:
    """Drops training rows; the steps that stay depend on `step` alone.

    So a run that is killed and goes on thins out as one in one piece does.
    """
    assert self._keep is not None
    apart = self._every * spacing(step // self._every, self._keep)
    stays = lambda at: at % apart == 0 or at == step
    self._file.close()
    with self._path.open("rb") as old, disk.whole(self._path) as new:
      for line in old:
        row = parse(line)
        if row and (stays(row["step"]) or not _has(row, _TRAIN)):
          new.write(line)
    self._file = self._path.open("a", encoding="utf-8")
    self._events.thin(lambda at, names: stays(at) or not _has(names, _TRAIN))

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    self._events.close()


def spacing(rows: int, keep: int) -> int:
  """Returns how many rows lie between two that stay: a power of two.

  Rows are thinned out each time that `keep` more have been written, to at most
  `keep`: there are never more than twice as many.

  Example:
    >>> [spacing(rows, keep=1000) for rows in (1000, 2000, 3000, 1_000_000)]
    [1, 2, 4, 1024]
  """
  return 1 << (-(-rows // keep) - 1).bit_length()


def cut(path: pathlib.Path, step: int) -> None:
  """Cuts off the rows behind a step, and what a crash left of one.

  Args:
    path: Path of `metrics.jsonl`, which need not be there.
    step: Last step whose rows stay.
  """
  if not path.exists():
    return
  with path.open("r+b") as file:
    stays = lambda row: row is not None and row["step"] <= step
    early = (one for one in _backwards(file) if stays(parse(one[1])))
    begin, line = next(early, (0, b""))
    file.truncate(begin + len(line))
    if line and not line.endswith(b"\n"):
      file.seek(0, os.SEEK_END)
      file.write(b"\n")


def newest(workdir: pathlib.Path) -> tuple[dict[str, float], int | None]:
  """Returns the newest metrics that a run has logged.

  Returns:
    The newest row of training and that of evaluations as one, and the step of
    the latter; None if there was no evaluation.
  """
  found = {kind: _newest(workdir / NAME, kind) for kind in (_TRAIN, _EVAL)}
  metrics = found[_TRAIN] | found[_EVAL]
  metrics.pop("step", None)
  return metrics, found[_EVAL].get("step")


def _newest(path: pathlib.Path, kind: str) -> dict[str, Any]:
  """Returns the newest row of one kind; empty if there is none."""
  if not path.exists():
    return {}
  begins = f'"{kind}'.encode()
  with path.open("rb") as file:
    for _, line in _backwards(file):
      if begins in line and (row := parse(line)):
        return row
  return {}


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of `metrics.jsonl`, but for any that is cut or damaged."""
  return list(iterate(workdir))


def iterate(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields what `read_metrics` returns, one row at a time."""
  path = workdir / NAME
  if not path.exists():
    return
  with path.open("rb") as file:
    for line in file:
      if row := parse(line):
        yield row


def parse(line: bytes) -> dict[str, Any] | None:
  """Returns the row that a line holds, or None if it is cut or damaged.

  Example:
    >>> parse(b'{"step": 5, "train/loss": "NaN"}'), parse(b'{"step": 5, "tr')
    ({'step': 5, 'train/loss': nan}, None)
  """
  try:
    row = disk.from_json(line.decode("utf-8", "replace"))
  except (RecursionError, ValueError):
    return None
  if not isinstance(row, dict) or not all(map(disk.is_number, row.values())):
    return None
  return row if isinstance(row.get("step"), int) else None


def _has(names: Any, kind: str) -> bool:
  return any(name.startswith(kind) for name in names)


def _backwards(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
  """Yields the place and the content of each line, the last one first."""
  at, rest = file.seek(0, os.SEEK_END), b""
  while at:
    begin = max(0, at - _BLOCK)
    file.seek(begin)
    text = file.read(at - begin) + rest
    at = begin
    # Up to its first line's end may be the end of a line that began before.
    first = text.find(b"\n") + 1 if begin else 0
    if begin and not first:
      rest = text
      continue
    rest, place = text[:first], begin + len(text)
    for line in reversed(text[first:].splitlines(keepends=True)):
      place -= len(line)
      yield place, line
