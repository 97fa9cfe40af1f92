"""Audio clips with one label each, read from a file that was prepared once.

Start reading at `open_folder`. `audio_prepare.py` decodes a folder of audio
files, or a set of TFDS, into one file of plain arrays; this module reads it, so
training needs neither an audio library nor TensorFlow.

Beside the splits that a set has by itself, each speaker makes two: `only-NAME`
and `without-NAME`, for leaving one speaker out.
"""

import dataclasses
import functools
import os
import pathlib
import re
import shlex
from typing import Any

import numpy as np

from ws_jax.base import disk
from ws_jax.data import audio_files, npz, splits
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_memory,
  unknown_key,
)

FILE_NAME = "ws_jax_audio.npz"
INPUT_KEY, LABEL_KEY, GROUP_KEY = "audio", "label", "speaker"

# Folders of audio that configs name, and where they come from.
FOLDERS = {
  "arabic_speech_commands": "Arabic Speech Commands, Ghandoura et al. 2021",
}
_ONLY, _WITHOUT = "only-", "without-"
_PER_CLIP = ("length", "label", "speaker", "split")
_TEXTS = ("classes", "speakers", "splits")
_RATE = "sample_rate"


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
  """The content of a prepared file.

  Attributes:
    audio: Samples, int16 `[N, samples]`; zeros after the end of a clip.
    length: Samples of each clip, int32 `[N]`.
    label: Number of its class, int32 `[N]`.
    speaker: Number of its speaker, int32 `[N]`; -1 where it is not known.
    split: Number of its split, int32 `[N]`.
    classes: Names of the classes.
    speakers: Names of the speakers; empty where none is known.
    splits: Names of the splits.
    sample_rate: Samples of a second.
  """

  audio: np.ndarray
  length: np.ndarray
  label: np.ndarray
  speaker: np.ndarray
  split: np.ndarray
  classes: tuple[str, ...]
  speakers: tuple[str, ...]
  splits: tuple[str, ...]
  sample_rate: int


def write(folder: pathlib.Path, clips: Clips, fingerprint: str) -> None:
  """Writes the prepared file of a folder, whole or not at all.

  Args:
    folder: Folder, made if need be.
    clips: Content of the file.
    fingerprint: State of the files that were decoded, as text.
  """
  folder.mkdir(parents=True, exist_ok=True)
  content: dict[str, Any] = {
    name: np.asarray(value, "U") if name in _TEXTS else np.asarray(value)
    for name, value in vars(clips).items()
  }
  with disk.whole(folder / FILE_NAME) as file:
    np.savez(file, fingerprint=np.asarray(fingerprint), **content)


def fingerprint(folder: pathlib.Path) -> str | None:
  """Returns what `write` was given as fingerprint; None without a file."""
  try:
    return str(_load(folder / FILE_NAME, ("fingerprint",))["fingerprint"])
  except DataError:
    return None


def find_folder(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
  """Returns the prepared folder of that name, None without one.

  Raises:
    DataError: it is a folder of audio that is known, and is not prepared.
  """
  if not re.fullmatch(r"\w[\w.-]*", name):
    return None  # A version, a config, or a way out of `data_dir`.
  if (data_dir / name / FILE_NAME).is_file():
    return data_dir / name
  if name in FOLDERS:
    raise DataError(
      f"data set {name!r} ({FOLDERS[name]}) is not prepared in {data_dir}: get"
      f" its folder and type {_command('DIR', name)}"
    )
  return None


def open_folder(path: pathlib.Path, request: Request) -> Source | None:
  """Returns the source of a folder of prepared audio; None without audio.

  Args:
    path: Folder with a prepared file, or any other.
    request: Splits that are wanted.

  Raises:
    DataError: the folder holds audio that is not prepared (the message has the
      command), a split is not there, or both splits have a clip in common.
  """
  file = path / FILE_NAME
  if not file.is_file():
    _refuse_unprepared(path, request)
    return None
  for what, own in (("input_key", INPUT_KEY), ("label_key", LABEL_KEY)):
    key = getattr(request, what)
    if key not in (None, own):
      raise unknown_key(f"{path}, prepared audio", what, key, [own])
  about = _about(file)
  pair, rows = _choose(request, about, str(path))
  samples = npz.read_headers(file)["audio"].shape[1]
  check_memory(path, sum(map(len, rows.values())) * samples * 2)
  return Source(
    name=str(request.name),
    splits=pair,
    sizes={split: len(chosen) for split, chosen in rows.items()},
    input_key=INPUT_KEY,
    label_key=LABEL_KEY,
    input_shape=(samples,),
    input_dtype="int16",
    num_classes=len(about.classes),
    classes=about.classes,
    read=functools.partial(_read, file, about, rows),
    group_key=GROUP_KEY if about.speakers else "",
    groups=about.speakers,
  )


def is_set(folder: pathlib.Path) -> bool:
  """Returns whether a folder is a set of TFDS that holds audio."""
  features = folder / "features.json"
  if not features.is_file():
    return False
  return "audio_feature.Audio" in features.read_text(encoding="utf-8")


def read(folder: pathlib.Path) -> Clips:
  """Returns all clips of a prepared folder.

  Raises:
    DataError: there is no prepared file, or it is damaged.
  """
  file = folder / FILE_NAME
  audio = _load(file, ("audio",))["audio"]
  return dataclasses.replace(_about(file), audio=audio)


def _read(
  file: pathlib.Path, about: Clips, rows: dict[str, np.ndarray]
) -> dict[str, Arrays]:
  audio = _load(file, ("audio",))["audio"]
  return {
    split: {
      "audio": audio[chosen],
      "label": about.label[chosen],
      "length": about.length[chosen],
      "speaker": about.speaker[chosen],
      # A task checks it, and so each clip brings it.
      "sample_rate": np.full(len(chosen), about.sample_rate, np.int32),
    }
    for split, chosen in rows.items()
  }


def _about(file: pathlib.Path) -> Clips:
  """Returns the content of a prepared file without its samples."""
  loaded: dict[str, Any] = {**_load(file, (*_PER_CLIP, *_TEXTS, _RATE))}
  loaded |= {name: tuple(loaded[name].tolist()) for name in _TEXTS}
  loaded[_RATE] = int(loaded[_RATE])
  return Clips(audio=np.zeros((0, 0), np.int16), **loaded)


def _load(file: pathlib.Path, wanted: tuple[str, ...]) -> Arrays:
  try:
    # np.load leaves a damaged file open that it has opened itself.
    with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as archive:
      return {name: archive[name] for name in wanted}
  except Exception as error:  # zipfile, zlib and NumPy each have their own.
    raise DataError(
      f"{file} cannot be read, prepare it again: {error}"
    ) from error


def _choose(
  request: Request, about: Clips, where: str
) -> tuple[tuple[str, str], dict[str, np.ndarray]]:
  """Returns the two splits that are wanted, and the clips of each."""
  available = dict(zip(about.splits, range(len(about.splits)), strict=True))
  parts = {
    name: np.flatnonzero(about.split == number)
    for name, number in available.items()
  }
  asked = f"{request.train_split} {request.eval_split}"
  if _ONLY in asked or _WITHOUT in asked:
    for number, speaker in enumerate(about.speakers):
      name = re.sub(r"[^\w-]", "_", speaker)
      parts[_ONLY + name] = np.flatnonzero(about.speaker == number)
      parts[_WITHOUT + name] = np.flatnonzero(about.speaker != number)
  elif request.eval_split is None and not set(splits.EVAL_SPLITS) & set(parts):
    _suggest_a_speaker(about, where)
  pair = splits.choose(request, parts, where)
  shared = np.intersect1d(parts[pair[0]], parts[pair[1]])
  if pair[0] != pair[1] and len(shared):
    raise DataError(
      f"{where}: {pair[0]!r} and {pair[1]!r} have {len(shared)} clips in"
      " common: training must not see what is evaluated"
    )
  return pair, {split: parts[split] for split in pair}


def _suggest_a_speaker(about: Clips, where: str) -> None:
  """Raises DataError if there is nothing to evaluate on but a speaker."""
  if about.speakers:
    name = re.sub(r"[^\w-]", "_", about.speakers[0])
    raise DataError(
      f"{where} has the splits {', '.join(about.splits)}, and nothing to"
      f" evaluate on: leave a speaker out by data.train_split={_WITHOUT}{name}"
      f" data.eval_split={_ONLY}{name}"
    )


def _refuse_unprepared(path: pathlib.Path, request: Request) -> None:
  """Raises DataError if a folder holds audio that nobody prepared."""
  if is_set(path):
    command = f"python scripts/prepare_data.py {shlex.quote(request.name)}"
    if request.dir:
      command += f" --data_dir={shlex.quote(request.dir)}"
    raise DataError(
      f"{path} holds audio, which is decoded once before training: type"
      f" `{command}`"
    )
  if any(_holds_files(child) for child in path.iterdir() if child.is_dir()):
    raise DataError(
      f"{path} holds audio, which is decoded once before training: type "
      f"{_command(shlex.quote(str(path)), path.name)}, and give that name as"
      " data.name"
    )


def _holds_files(folder: pathlib.Path) -> bool:
  with os.scandir(folder) as entries:
    return any(
      entry.name.lower().endswith(audio_files.SUFFIXES) for entry in entries
    )


def _command(folder: str, name: str) -> str:
  return (
    f"`python scripts/prepare_data.py --audio_folder={folder}"
    f" --name={shlex.quote(name)}`"
  )
