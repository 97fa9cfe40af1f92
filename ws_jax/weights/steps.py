"""Finds the checkpoints of a run, and tells which are whole.

`seal` writes a checksum of each file beside what orbax has written, and of
which run and step it is; orbax itself notices no flipped byte. `check` refuses
a folder that is not what was sealed. `read_newest` is for all who read: it goes
on to the older checkpoint where the newest is broken, and says so.
"""

import functools
import hashlib
import json
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from ws_jax.base import disk

T = TypeVar("T")

# Name of the folder of all checkpoints, in the workdir of a run.
FOLDER = "checkpoints"
# Holds the checksums. It is written last, and not in older versions.
_SUMS = "checksums.json"
# Holds the step, and what the configuration says of the run.
_RUN = "run.json"


def say(line: str) -> None:
  """Prints a line where messages go; results have standard output."""
  print(line, file=sys.stderr, flush=True)


def hush_threads() -> None:
  """Drops what threads of orbax print behind an error, which is raised as well.

  They read or write other arrays, for an event loop that orbax has closed
  meanwhile.
  """
  hook = sys.unraisablehook
  if getattr(hook, "func", None) is not _hook:
    sys.unraisablehook = functools.partial(_hook, hook)


def seal(
  folder: pathlib.Path,
  step: int,
  config: Mapping[str, Any] | None = None,
  may_change: Collection[str] = (),
) -> None:
  """Writes which run and step a checkpoint is of, and its checksums.

  All of it is on the disk, and not only on its way there, when this returns.

  Args:
    folder: Folder that orbax has written.
    step: Step of the checkpoint.
    config: Configuration of the run, as in its `config.json`.
    may_change: Dotted keys that say nothing of which run it is.

  Raises:
    OSError: The disk is full, or broken.
  """
  told = {k: x for k, x in _flat(config or {}).items() if k not in may_change}
  disk.write_json(folder / _RUN, {"step": step, "config": told})
  sums = {
    path.relative_to(folder).as_posix(): _digest(path, sync=True)
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }
  disk.write_json(folder / _SUMS, {"sha256": sums})


def check(folder: pathlib.Path) -> bool:
  """Checks that a checkpoint is what was written, and is of its run.

  Args:
    folder: Folder of the checkpoint.

  Returns:
    Whether there are checksums: those of an older version have none, and
    nothing is checked.

  Raises:
    ValueError: A file is missing or damaged, or the checkpoint is of another
      run or step; the message names the file.
  """
  path = folder / _SUMS
  if not path.exists():
    if (folder / _RUN).exists():
      raise ValueError(f"{path}: is missing")
    return False
  sums = _table(path, "sha256")
  for name, digest in sums.items():
    try:
      found = _digest(folder / name)
    except FileNotFoundError:
      raise ValueError(f"{folder / name}: is missing") from None
    except OSError as error:
      raise ValueError(f"{folder / name}: {error.strerror}") from None
    if found != digest:
      raise ValueError(f"{folder / name}: is damaged: its checksum is another")
  if _RUN not in sums:
    raise ValueError(f"{path}: is damaged: it has no {_RUN}")
  _check_run(folder)
  return True


def _check_run(folder: pathlib.Path) -> None:
  """Refuses a checkpoint that belongs elsewhere, by its name or its config."""
  path = folder / _RUN
  told = _table(path)
  if folder.name.isdecimal() and told.get("step") != int(folder.name):
    raise ValueError(f"{path}: is of step {told.get('step')}")
  if folder.parent.name != FOLDER:
    return
  try:
    now = disk.read_json(folder.parents[1] / "config.json")
  except ValueError:
    return  # Others say that it is damaged; this is about the checkpoint.
  then, now = _table(path, "config"), _flat(now or {})
  as_text = lambda x: json.dumps(x, default=str)
  changed = [
    f"{key} is {then[key]!r} there, and {now[key]!r} here"
    for key in then
    if key in now and as_text(then[key]) != as_text(now[key])
  ]
  if changed:
    raise ValueError(f"{path}: is of another run: {'; '.join(changed[:3])}")


def steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of the checkpoints of a run, the newest first.

  Args:
    folder: Workdir of the run, or its folder of all checkpoints.
  """
  inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
  try:
    found = [p for p in inside.iterdir() if p.name.isdecimal() and p.is_dir()]
  except OSError:
    return []
  return sorted(found, key=lambda path: int(path.name), reverse=True)


def step_of(folder: pathlib.Path) -> int | None:
  """Returns the step of the folder of a checkpoint; None of any other."""
  return int(folder.name) if folder.name.isdecimal() else None


def told(folder: pathlib.Path) -> str:
  """Returns which step of a run a folder is, in words; "" of any other.

  Example:
    >>> told(pathlib.Path("workdirs/first/checkpoints/936"))
    'step 936 of workdirs/first'
  """
  if folder.parent.name != FOLDER or not folder.name.isdecimal():
    return ""
  workdir = folder.parents[1]
  try:
    status = disk.read_json(workdir / "status.json") or {}
    ended, last = status["status"], status["step"]
  except (KeyError, OSError, TypeError, ValueError):
    ended, last = "done", None
  words = f"step {folder.name} of {workdir}"
  if ended != "done" or last not in (None, int(folder.name)):
    words += f", which is {ended} at step {last}"
  return words


def read_newest(
  path: pathlib.Path,
  read: Callable[[pathlib.Path], T],
  *,
  check: Callable[[pathlib.Path], bool] = check,
) -> tuple[T, pathlib.Path, list[pathlib.Path]]:
  """Reads the newest checkpoint that is whole.

  Args:
    path: Workdir of a run, its folder of all checkpoints, the folder of one
      step, or any other orbax folder.
    read: Function that reads one folder, and raises where it cannot.
    check: Function that is called before, as `check` of this module.

  Returns:
    What `read` returned, the folder that was read, and those that are broken.

  Raises:
    ValueError: None can be read; the message names file and reason of the
      newest.
  """
  hush_threads()
  broken: list[pathlib.Path] = []
  errors: list[Exception] = []
  for folder in _untried(path, broken):
    try:
      if not check(folder) and folder.parent.name == FOLDER:
        say(f"{folder}: is of an older version, without checksums: not checked")
      found = read(folder), folder, broken
    # The error that orbax raises depends on which of its files is broken.
    except Exception as error:
      broken.append(folder)
      errors.append(error)
      continue
    for error in errors:
      line = " ".join(str(error).split())
      say(f"warning: {line}; the older {folder} takes its place")
    return found
  if len(errors) == 1:
    raise errors[0] if isinstance(errors[0], ValueError) else _plain(errors[0])
  line = "; ".join(" ".join(str(error).split()) for error in errors)
  raise ValueError(line)


def _hook(before: Callable[[Any], Any], raised: Any) -> None:
  late = "Event loop is closed" in str(raised.exc_value)
  if threading.current_thread() is threading.main_thread() or not late:
    before(raised)


def _plain(error: Exception) -> ValueError:
  return ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _untried(
  path: pathlib.Path, tried: list[pathlib.Path]
) -> Iterator[pathlib.Path]:
  """Yields each folder, the newest first; `path` itself if it has no steps.

  The list is read anew each time: a run that is under way adds some, and
  deletes others.
  """
  if not steps(path):
    inner = path / FOLDER
    yield inner if inner.is_dir() else path
  while left := [folder for folder in steps(path) if folder not in tried]:
    yield left[0]


def _digest(path: pathlib.Path, sync: bool = False) -> str:
  with path.open("rb") as file:
    if sync:
      os.fsync(file.fileno())
    return hashlib.file_digest(file, "sha256").hexdigest()


def _table(path: pathlib.Path, key: str = "") -> dict[str, Any]:
  """Returns a table of a JSON file."""
  try:
    table = disk.read_json(path)
    table = table[key] if key else table
  except (KeyError, TypeError):
    table = None
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: is damaged: {error}") from None
  if not isinstance(table, dict):
    raise ValueError(f"{path}: is damaged: it has no table {key}".rstrip())
  return table


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns the values of nested tables, by dotted key."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat
