"""Files written whole or not at all, and locks between processes."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import IO, Any


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


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8 text, whole or not at all."""
  with whole(path) as file:
    file.write(text.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: pathlib.Path) -> Any:
  """Returns the content of a JSON file, or None where there is no such file.

  Raises:
    ValueError: the file is not JSON; the message names it.
  """
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: damaged, not JSON: {error}") from None


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool = True) -> Iterator[bool]:
  """Holds the lock of a file, between processes and, by flock, between hosts.

  The kernel lets go of the lock when its process ends, however it ends.

  Args:
    path: the lock file, which is made and left there.
    wait: whether to wait until the lock is free.

  Yields:
    Whether the lock is held: False if another process holds it and `wait` is
    not set.
  """
  with path.open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True
