"""A folder of audio files: `CLASS/*.wav`, with class, split and speaker.

Splits come from the first of these that is there:

- `train.csv`, `val.csv` and `test.csv`, of which the first is needed: a path
  and a class in each line, as in Arabic Speech Commands;
- `validation_list.txt` and `testing_list.txt`, as in Speech Commands: a path in
  each line, and all other clips are for training;
- the speakers: some are for validation, some for the test, the others train.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from ws_jax.base import disk, names
from ws_jax.data import audio_files
from ws_jax.data.request import DataError

SPLITS = ("train", "val", "test")
_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
_FILE_COLUMNS = ("file", "path", "filename")
_CLASS_COLUMNS = ("class", "label", "word")
# The name of a speaker begins the name of a file: `SPEAKER_NO_03.opus`.
SPEAKER = r"([^/_]+)_[^/]*$"


@dataclasses.dataclass(frozen=True)
class File:
  """A clip that is to be decoded.

  Attributes:
    path: Path relative to the folder, with `/`.
    label: Name of its class.
    split: A name of `SPLITS`.
    speaker: Name of its speaker, or "".
  """

  path: str
  label: str
  split: str
  speaker: str = ""


def list_folder(
  folder: pathlib.Path,
  *,
  speaker: str | None = None,
  val_speakers: Sequence[str] = (),
  test_speakers: Sequence[str] = (),
) -> list[File]:
  """Lists the clips of a folder with class, split and speaker.

  Within a split they are ordered by a hash of their paths: by path they would
  be sorted by class, and a slice such as `train[:90%]` would leave some out.

  Args:
    folder: Folder with a folder of files for each class.
    speaker: Regular expression, as for `prepare_folder`.
    val_speakers: Speakers for validation, as for `prepare_folder`.
    test_speakers: Speakers for the test, as for `prepare_folder`.

  Raises:
    DataError: the folder has no such layout.
  """
  if (folder / "train.csv").is_file():
    found = _from_csv(folder)
  else:
    found = _from_folders(folder)
    lists = {split: folder / name for split, name in _LISTS.items()}
    if any(path.is_file() for path in lists.values()):
      found = _by_lists(found, lists)
    elif speaker is None:
      raise DataError(
        f"{folder} has neither train.csv, val.csv and test.csv nor"
        f" {' and '.join(_LISTS.values())}: say by --speaker, a regular"
        " expression with one group, where the speaker stands in a path, and"
        " the splits are made of speakers"
      )
    else:
      named = with_speakers(found, speaker, folder)
      found = _by_speakers(named, val_speakers, test_speakers, folder)
  found = with_speakers(found, speaker, folder)
  return sorted(found, key=_order)


def with_speakers(
  found: Iterable[File], pattern: str | None, folder: pathlib.Path
) -> list[File]:
  """Returns the clips with their speakers.

  A file that the user's own pattern does not fit is an error; one that the
  usual pattern does not fit is of nobody.
  """
  try:
    compiled = re.compile(pattern or SPEAKER)
  except re.error as error:
    raise DataError(f"speaker pattern {pattern!r}: {error}") from error
  if compiled.groups != 1:
    raise DataError(
      f"speaker pattern {pattern!r} has {compiled.groups} groups: needed is one"
      r" around the speaker, as in '/(\w+?)_'"
    )
  named = []
  for file in found:
    match = compiled.search(file.path)
    if match is None and pattern is not None:
      raise DataError(
        f"speaker pattern {pattern!r} does not fit {file.path} of {folder}"
      )
    named.append(dataclasses.replace(file, speaker=match[1] if match else ""))
  return named


def _from_csv(folder: pathlib.Path) -> list[File]:
  """Returns the clips that `train.csv`, `val.csv` and `test.csv` list."""
  found: dict[str, File] = {}
  for split in SPLITS:
    path = folder / f"{split}.csv"
    for name, label in _read_csv(path) if path.is_file() else ():
      inside = _inside(folder, name, path)
      if inside in found:
        raise DataError(
          f"{path}: {inside} is in {found[inside].split}.csv, too"
        )
      label = label or pathlib.PurePosixPath(inside).parent.name
      found[inside] = File(inside, label, split)
  if not found:
    raise DataError(f"{folder / 'train.csv'} lists no file")
  return list(found.values())


def _read_csv(path: pathlib.Path) -> list[tuple[str, str]]:
  """Returns the path and the class of each line; "" for a class not given."""
  try:
    text = path.read_bytes().decode("utf-8-sig")
    lines = [line for line in disk.parse_csv(text) if line]
  except ValueError as error:
    raise DataError(f"{path}: {error}") from None
  header = [cell.strip().lower() for cell in lines[0]] if lines else []
  files = [i for i, cell in enumerate(header) if cell in _FILE_COLUMNS]
  labels = [i for i, cell in enumerate(header) if cell in _CLASS_COLUMNS]
  if files:
    lines = lines[1:]
  elif header and not header[0].endswith(audio_files.SUFFIXES):
    raise DataError(
      f"{path}: the columns are {', '.join(header)}; needed are"
      f" {_FILE_COLUMNS[0]!r} and {_CLASS_COLUMNS[0]!r}"
    )
  at = files[0] if files else 0
  label_at = labels[0] if labels else (-1 if files else 1)
  rows = []
  for line in lines:
    if at >= len(line):
      raise DataError(f"{path}: the line {','.join(line)!r} names no file")
    label = line[label_at] if 0 <= label_at < len(line) else ""
    rows.append((line[at].strip(), label.strip()))
  return rows


def _inside(folder: pathlib.Path, name: str, where: pathlib.Path) -> str:
  """Returns a listed path relative to the folder.

  A list may have been written a folder further up: `dataset/CLASS/FILE`.
  """
  path = pathlib.PurePosixPath(name.replace("\\", "/"))
  shorter = pathlib.PurePosixPath(*path.parts[1:])
  for inside in (path, shorter):
    outside = inside.is_absolute() or ".." in inside.parts
    # False for a name that is too long.
    if not outside and os.path.isfile(folder / inside):
      return inside.as_posix()
  raise DataError(f"{where}: there is no file {folder / path}")


def _from_folders(folder: pathlib.Path) -> list[File]:
  """Returns the clips in the folders of the classes, all of them to train."""
  found = [
    File(f"{child.name}/{path.name}", child.name, "train")
    for child in sorted(folder.iterdir())
    # Speech Commands keeps its noise in `_background_noise_`.
    if child.is_dir() and not child.name.startswith((".", "_"))
    for path in sorted(child.iterdir())
    if path.name.lower().endswith(audio_files.SUFFIXES)
    and not path.name.startswith(".")
  ]
  if not found:
    raise DataError(
      f"{folder} holds no audio: needed is a folder for each class with files"
      f" in {', '.join(audio_files.SUFFIXES)}"
    )
  return found


def _by_lists(found: list[File], lists: dict[str, pathlib.Path]) -> list[File]:
  split_of: dict[str, str] = {}
  known = {file.path for file in found}
  for split, path in lists.items():
    if path.is_file():
      try:
        text = path.read_text(encoding="utf-8")
      except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
      for line in text.split("\n"):
        if line.strip() and line.strip() not in known:
          raise DataError(f"{path}: there is no file {line.strip()}")
        split_of[line.strip()] = split
  return [
    dataclasses.replace(file, split=split_of.get(file.path, "train"))
    for file in found
  ]


def _by_speakers(
  found: list[File],
  val_speakers: Sequence[str],
  test_speakers: Sequence[str],
  folder: pathlib.Path,
) -> list[File]:
  """Returns the clips with splits that have no speaker in common."""
  speakers = sorted(
    {file.speaker for file in found},
    key=lambda name: hashlib.sha256(name.encode()).digest(),
  )
  for name in (*val_speakers, *test_speakers):
    if name not in speakers:
      raise DataError(
        f"{folder}: no speaker {name!r}: {names.suggest(name, speakers)}"
      )
  if not val_speakers and not test_speakers:
    part = max(1, round(len(speakers) / 5))
    val_speakers, test_speakers = speakers[:part], speakers[part : 2 * part]
  split_of = dict.fromkeys(val_speakers, "val")
  split_of |= dict.fromkeys(test_speakers, "test")
  if len(split_of) == len(speakers):
    raise DataError(
      f"{folder}: of the speakers {', '.join(speakers)} none is left to train"
      " on; with so few, say by --test_speakers who is for the test"
    )
  return [
    dataclasses.replace(file, split=split_of.get(file.speaker, "train"))
    for file in found
  ]


def _order(file: File) -> tuple[int, bytes]:
  digest = hashlib.sha256(file.path.encode()).digest()
  return SPLITS.index(file.split), digest
