"""Where each image lies in tar and TFRecord files, and which files are missing.

A file is gone through once, header by header; the places are kept beside the
files by `ws_jax.data.cache`, and any image is then read at once.
"""

import hashlib
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ws_jax.data import cache
from ws_jax.data.folder import SUFFIXES
from ws_jax.data.request import DataError

_CLS = ".cls"

_NUMBERED = re.compile(r"(.*?)(\d+)(-of-(\d+))?(\.\w+)?")

# What to do about something that is missing: `raise_error`, or keep the line.
Report = Callable[[str], None]


def raise_error(line: str) -> None:
  """Raises DataError, which is the report where errors are fatal."""
  raise DataError(line)


def missing(names: Iterable[str]) -> list[str]:
  """Returns the names that a row of numbered files lacks.

  Files `train-00000-of-00008.tar` say how many there are. Of files
  `train-0000.tar` only gaps can be seen, and not that the last is missing.

  Example:
    >>> missing(["a-00000-of-00003", "a-00002-of-00003"])
    ['a-00001-of-00003']
    >>> missing(["b-000000.tar", "b-000002.tar"])
    ['b-000001.tar']
  """
  rows: dict[tuple[str, ...], set[int]] = {}
  for name in names:
    if match := _NUMBERED.fullmatch(name):
      head, number, of, total, tail = match.groups(default="")
      row = (head, f"0{len(number)}d", of, total, tail)
      rows.setdefault(row, set()).add(int(number))
  found = []
  for (head, width, of, total, tail), numbers in rows.items():
    first = 0 if total else min(min(numbers), 1)
    last = int(total) if total else max(numbers)
    wanted = set(range(first, last)) - numbers
    found += [f"{head}{n:{width}}{of}{tail}" for n in sorted(wanted)]
  return found


def tar_index(
  paths: list[pathlib.Path], where: pathlib.Path, report: Report
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Returns where each image of a split of tar files lies, and the classes.

  A file `KEY.cls` beside `KEY.jpg` holds the class number, as WebDataset has
  it; without such files the folder that an image is in is its class.

  Args:
    paths: the tar files.
    where: the file to keep the places in.
    report: called with a line for each file that is cut off.

  Returns:
    The index of `records.Packed`, and the names of the classes: () where they
    are numbers.

  Raises:
    DataError: no image, or an image without a class.
  """

  def look() -> tuple[dict[str, np.ndarray], list[str]]:
    found, numbers, lines = [], {}, []
    for shard, path in enumerate(paths):
      for key, tail, *place, content in _members(path, lines.append):
        if tail.lower() != _CLS:
          found.append((shard, *place, key, tail))
        elif content.strip().isdigit():
          numbers[key] = int(content)
        else:
          raise DataError(f"{path}: {key}{tail} holds no class number")
    if not found:
      raise DataError(
        f"{paths[0].parent}: the tar files hold no image, no file that ends in "
        f"{', '.join(SUFFIXES)}"
      )
    labels, classes = _labels([key for *_, key, _ in found], numbers, paths[0])
    names = [os.fsencode(key + tail) for *_, key, tail in found]
    places = np.asarray([row[:3] for row in found], np.int64).T
    index = dict(zip(("shard", "offset", "size"), places, strict=True))
    more = {"label": labels, "name": np.asarray(names)}
    return index | more | {"classes": np.asarray(classes, str)}, lines

  index = _kept(paths, where, look, report)
  return index, tuple(map(str, index.pop("classes")))


def tfrecord_index(
  paths: list[pathlib.Path], where: pathlib.Path, report: Report
) -> dict[str, np.ndarray]:
  """Returns where each record of a split of TFRecord files lies.

  Args:
    paths: the files.
    where: the file to keep the places in.
    report: called with a line for each file that is cut off.
  """

  def look() -> tuple[dict[str, np.ndarray], list[str]]:
    found, lines = [], []
    for shard, path in enumerate(paths):
      end = path.stat().st_size
      with open(path, "rb") as file:
        place = 0
        while place < end:
          length = int.from_bytes(file.read(8), "little")
          # Length and its checksum come before, another checksum after.
          start, place = place + 12, place + 16 + length
          if place > end:
            lines.append(f"{path} is cut off in the record at byte {start}")
            break
          found.append((shard, start, length))
          file.seek(place)
    if not found:
      raise DataError(f"{paths[0].parent}: the files hold no record")
    places = np.asarray(found, np.int64).T
    return dict(zip(("shard", "offset", "size"), places, strict=True)), lines

  return _kept(paths, where, look, report)


def _kept(
  paths: list[pathlib.Path],
  where: pathlib.Path,
  look: Callable[[], tuple[dict[str, np.ndarray], list[str]]],
  report: Report,
) -> dict[str, np.ndarray]:
  """Returns the index that was kept, or looks and keeps it."""
  digest = hashlib.sha256()
  for path in paths:
    stat = path.stat()
    digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
  index = cache.read(where, digest.hexdigest())
  if index is None:
    index, lines = look()
    index["lines"] = np.asarray(lines, str)
    cache.write(where, digest.hexdigest(), index)
  for line in index.pop("lines"):
    report(str(line))
  return index


def _members(
  path: pathlib.Path, tell: Report
) -> Iterator[tuple[str, str, int, int, bytes]]:
  """Yields key, the rest of the name, place, size and, of a `.cls`, content."""
  end = path.stat().st_size
  try:
    with tarfile.open(path, "r:") as opened:
      archive: Any = opened
      while (member := archive.next()) is not None:
        archive.members = []  # It would keep all of them.
        head, slash, base = member.name.rpartition("/")
        stem, dot, rest = base.partition(".")
        tail = dot + rest
        if not member.isfile() or not tail.lower().endswith((*SUFFIXES, _CLS)):
          continue
        if member.offset_data + member.size > end:
          tell(f"{path} is cut off in {member.name}")
          return
        is_class = tail.lower() == _CLS
        content = archive.extractfile(member).read() if is_class else b""
        place = member.offset_data, member.size
        yield f"{head}{slash}{stem}", tail, *place, content
  except (tarfile.TarError, OSError, EOFError) as error:
    tell(f"{path} cannot be read to its end: {error}")


def _labels(
  keys: list[str], numbers: dict[str, int], path: pathlib.Path
) -> tuple[np.ndarray, list[str]]:
  """Returns the class of each image, and the names of the classes."""
  if numbers:
    without = [key for key in keys if key not in numbers]
    if without:
      raise DataError(f"{path} and others: {without[0]} has no .cls beside it")
    return np.asarray([numbers[key] for key in keys], np.int32), []
  folders = [key.rpartition("/")[0].rpartition("/")[2] for key in keys]
  if "" in folders:
    raise DataError(
      f"{path} and others: {keys[folders.index('')]} is in no folder, which "
      "would be its class, and has no .cls beside it"
    )
  classes = sorted(set(folders))
  number = {name: i for i, name in enumerate(classes)}
  return np.asarray([number[name] for name in folders], np.int32), classes
