"""Files written whole or not at all, and locks between processes."""

import contextlib
import csv
import datetime
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

# Errors of a disk, whatever was written.
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}

# Errors of a file system that has no locks, as some of clusters.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

_TOO_DEEP = "nested too deep"

_NOT_FINITE = {
  "NaN": math.nan,
  "Infinity": math.inf,
  "-Infinity": -math.inf,
}


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Opens a draft that becomes `path` when the `with` block ends.

  A reader sees the old file or the new one, never a part, and a crash of the
  machine leaves one of them: the draft is on disk before it takes the name. If
  the block raises, nothing has changed.

  Args:
    path: the file to write; its folder must be there.

  Raises:
    OSError: the disk is full, the folder is missing or cannot be written; the
      message names `path`, not the draft.

  Example:
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with whole(folder / "a.txt") as file:
    ...   _ = file.write(b"text")
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
  """
  draft = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
  try:
    with draft.open("xb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, path)
  except OSError as error:
    if error.filename == str(draft) or error.filename is None:
      raise type(error)(error.errno, error.strerror, str(path)) from error
    raise
  finally:
    draft.unlink(missing_ok=True)


def make_file(path: pathlib.Path, content: bytes, *, check: bool) -> str:
  """Writes a file that can be made anew, or compares it with what is there.

  Args:
    path: Path of the file.
    content: Bytes that it must have.
    check: Whether to compare, and write nothing.

  Returns:
    A line to print.

  Raises:
    ValueError: `check` is set and the file is missing or another one.
  """
  digest = hashlib.sha256(content).hexdigest()
  if not check:
    with whole(path) as file:
      file.write(content)
    return f"wrote {path}: {len(content)} bytes, sha256 {digest}"
  if not path.exists() or path.read_bytes() != content:
    raise ValueError(f"{path} is not what its source gives: sha256 {digest}")
  return f"{path} is what its source gives: sha256 {digest}"


def clean(folder: pathlib.Path) -> None:
  """Deletes drafts of `whole` that killed processes have left in a folder.

  Args:
    folder: Folder in which no other process writes.
  """
  for path in folder.glob(".*"):
    if re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}", path.name):
      path.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8 text, whole or not at all."""
  with whole(path) as file:
    file.write(text.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON, whole or not at all."""
  write_text(path, to_json(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
  """Returns the content of a JSON file, or None where there is no such file.

  Raises:
    ValueError: the file is not JSON; the message names it.
  """
  if not path.exists():
    return None
  try:
    return from_json(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: damaged, not JSON: {error}") from None


def to_json(value: Any, indent: int | None = None) -> str:
  """Returns JSON text that every parser takes, also of numbers not finite.

  JSON has no NaN and no infinity: they become strings, those of the JSON form
  of Protocol Buffers. What JSON does not know at all becomes its `str`.

  Example:
    >>> text = to_json({"loss": float("nan"), "rate": 0.5})
    >>> text, from_json(text)
    ('{"loss": "NaN", "rate": 0.5}', {'loss': nan, 'rate': 0.5})
  """
  write = functools.partial(json.dumps, indent=indent, default=str)
  text = write(value)
  if "NaN" in text or "Infinity" in text:
    text = write(_without_nan(value), allow_nan=False)
  return text


def from_json(text: str) -> Any:
  """Returns what `to_json` was given, with lists for tuples.

  Raises:
    ValueError: the text is not JSON.
  """
  value = parse_json(text)
  try:
    return _with_nan(value)
  except RecursionError:  # The parser of some versions of Python goes deeper.
    raise ValueError(_TOO_DEEP) from None


def parse_json(text: str | bytes, **how: Any) -> Any:
  """Returns the value of JSON text that others may have written.

  Args:
    text: The text.
    **how: Arguments of `json.loads`.

  Raises:
    ValueError: the text is not JSON, or is nested too deep to be read.

  Example:
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: nested too deep
  """
  try:
    return json.loads(text, **how)
  except RecursionError:
    raise ValueError(_TOO_DEEP) from None


def parse_csv(text: str) -> list[list[str]]:
  """Returns the cells of each line of CSV text that others may have written.

  Raises:
    ValueError: the text is not CSV.
  """
  try:
    return list(csv.reader(io.StringIO(text, newline="")))
  except csv.Error as error:
    raise ValueError(f"damaged, not CSV: {error}") from None


def is_number(value: Any) -> bool:
  """Returns whether a value of JSON is a number that arrays can hold."""
  kind = type(value)
  return kind is float or (kind is int and abs(value) < 2**63)


def _without_nan(value: Any) -> Any:
  if isinstance(value, float) and not math.isfinite(value):
    return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
  return _in_each(_without_nan, value)


def _with_nan(value: Any) -> Any:
  if isinstance(value, str):
    return _NOT_FINITE.get(value, value)
  return _in_each(_with_nan, value)


def _in_each(function: Callable[[Any], Any], value: Any) -> Any:
  """Applies a function to what a dict or a list holds."""
  if isinstance(value, dict):
    return {key: function(x) for key, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [function(x) for x in value]
  return value


def is_of_disk(error: OSError, folder: str | os.PathLike[str]) -> bool:
  """Returns whether an error says that a folder cannot be written.

  Its disk is full, broken or read-only; or the folder, or a file in it, is gone
  or forbidden.

  Args:
    error: Error that was raised.
    folder: Folder that was being written.

  Example:
    >>> is_of_disk(OSError(errno.ENOSPC, "No space left on device"), "runs")
    True
    >>> is_of_disk(FileNotFoundError(errno.ENOENT, "no", "my.npz"), "runs")
    False
  """
  inside = os.path.join(os.path.abspath(folder), "")
  path = os.path.abspath(error.filename) if _is_path(error.filename) else ""
  return error.errno in _OF_DISKS or f"{path}/".startswith(inside)


def _is_path(name: Any) -> bool:
  return isinstance(name, (str, os.PathLike))


def overwrite_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON over a file that is there; for a disk that is full.

  The place of the old content is taken, where `write_json` needs a new one. A
  crash meanwhile leaves a damaged file. Nothing is raised if this fails, too.
  """
  content = (to_json(value, indent=2) + "\n").encode()
  with contextlib.suppress(OSError), path.open("r+b") as file:
    file.write(content)
    file.truncate()


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool = True) -> Iterator[bool]:
  """Holds the lock of a file, between processes and, by flock, between hosts.

  The kernel lets go of the lock when its process ends, however it ends. The
  file is gone when the lock is let go of in order, and tells `holder` who has
  it until then.

  Args:
    path: the lock file, which is made.
    wait: whether to wait until the lock is free.

  Yields:
    Whether the lock is held: False if another process holds it and `wait` is
    not set.
  """
  file = _lock(path, wait)
  if file is None:
    yield False
    return
  with file:
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.suppress(OSError):  # on a full disk it is locked as well
      file.truncate(0)
      file.write(json.dumps(who).encode())
      file.flush()
    try:
      yield True
    finally:
      with contextlib.suppress(OSError):
        path.unlink()


def _lock(path: pathlib.Path, wait: bool) -> IO[bytes] | None:
  """Returns the lock file, open and locked; None if another process has it."""
  while True:
    file = path.open("ab")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      # Who had it before may have deleted it just now: then another process
      # can lock the next file of this name.
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file
    except FileNotFoundError:
      pass
    except BlockingIOError:
      file.close()
      return None
    except OSError:
      file.close()
      raise
    file.close()


def holder(path: pathlib.Path) -> str:
  """Returns who holds the lock of a file, in words.

  Example:
    >>> holder(pathlib.Path("/no/lock/here"))
    'another process'
  """
  try:
    who = read_json(path)
    return f"process {who['pid']} on {who['host']} since {who['since']}"
  except (OSError, ValueError, TypeError, KeyError):
    return "another process"
