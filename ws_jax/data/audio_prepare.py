"""Prepares audio for `audio.py`: a folder of files, or a set of TFDS.

Either is decoded once into one file of plain arrays. How a folder may look, and
where its splits come from, is in `audio_folder.py`.
"""

import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from ws_jax.data import audio, audio_files, audio_folder, find
from ws_jax.data.audio_folder import File
from ws_jax.data.request import DataError

# Sets of TFDS with a key of file names, and where the speaker stands in one.
SPEAKERS_OF_SETS = {"spoken_digit": r"^\d_([^_]+)_"}


def prepare_folder(
  folder: pathlib.Path,
  name: str,
  *,
  data_dir: pathlib.Path | None = None,
  sample_rate: int | None = None,
  seconds: float | None = None,
  speaker: str | None = None,
  val_speakers: Sequence[str] = (),
  test_speakers: Sequence[str] = (),
  skip_unreadable: bool = False,
) -> str:
  """Decodes a folder of audio files, once, into `data_dir / name`.

  Args:
    folder: Folder with a folder of files for each class.
    name: Name that the set gets, for `data.name`.
    data_dir: Folder of all prepared sets; None for the one that TFDS uses.
    sample_rate: Samples of a second; None for the rate that most clips have.
    seconds: Length that clips are padded or cut to; None for the longest.
    speaker: Regular expression, with one group, that finds the speaker in the
      path of a file; None for what stands before the first `_` of its name.
    val_speakers: Speakers for validation, where no file says the splits; none
      and no `test_speakers`: a fifth of the speakers each, drawn by a hash.
    test_speakers: Speakers for the test.
    skip_unreadable: Whether a file that cannot be read is left out.

  Returns:
    A sentence that says what is there.

  Raises:
    DataError: the folder has no such layout, a file cannot be read, or the
      name is taken by another data set.
  """
  if not re.fullmatch(r"\w[\w.-]*", name):
    raise DataError(f"name {name!r} must be letters, digits, '_', '-' and '.'")
  if not folder.is_dir():
    raise DataError(f"there is no folder {folder.absolute()}")
  out = find.data_folder(data_dir) / name
  if out.exists() and not (out / audio.FILE_NAME).exists():
    raise DataError(f"{out} holds another data set: choose another name")
  listed = audio_folder.list_folder(
    folder,
    speaker=speaker,
    val_speakers=val_speakers,
    test_speakers=test_speakers,
  )
  settings = repr((sample_rate, seconds, skip_unreadable))
  mark = _fingerprint(folder, listed, settings)
  if audio.fingerprint(out) == mark:
    return f"{name} is there already: {out}"
  decoded = audio_files.decode(
    [folder / file.path for file in listed],
    sample_rate=sample_rate,
    seconds=seconds,
    skip_unreadable=skip_unreadable,
  )
  clips = _clips([listed[i] for i in decoded.kept], decoded)
  audio.write(out, clips, mark)
  return f"{describe(name, clips)}: {out}"


def prepare_set(
  folder: pathlib.Path,
  *,
  sample_rate: int | None = None,
  seconds: float | None = None,
  speaker: str | None = None,
) -> str:
  """Decodes a set that TFDS prepared, once, for reading without TensorFlow.

  TFDS cannot describe audio without TensorFlow, so this needs it.

  Args:
    folder: Folder of the prepared version.
    sample_rate: Samples of a second; None for the rate of the set.
    seconds: Length that clips are padded or cut to; None for the longest.
    speaker: Regular expression, with one group, that finds the speaker in a
      file name; None for the one of `SPEAKERS_OF_SETS`.

  Returns:
    A sentence that says what is there.

  Raises:
    DataError: the set is not of clips with one label each.
  """
  import tensorflow_datasets as tfds

  try:
    builder: Any = tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS raises whatever its parsers raise.
    raise DataError(f"cannot read {folder}: {error}") from error
  info: Any = builder.info
  input_key, label_key, name_key = _keys_of_set(folder, info)
  rate = info.features[input_key].sample_rate or sample_rate
  if rate is None:
    raise DataError(
      f"{folder} does not say its sample rate: pass --sample_rate"
    )
  wanted = sample_rate or rate
  pattern = speaker or SPEAKERS_OF_SETS.get(info.name)
  mark = repr((info.full_name, sample_rate, seconds, pattern))
  if audio.fingerprint(folder) == mark:
    return f"{info.name} is there already: {folder}"
  classes, rows, listed = info.features[label_key].names, [], []
  for split in info.splits:
    for number, example in enumerate(builder.as_data_source(split)):
      clip = _samples(example[input_key], f"{folder}, {split} {number}")
      moved = audio_files.resample(clip, rate, wanted)
      rows.append(audio_files.to_int16(moved))
      path = _text(example[name_key]) if name_key else f"{split}/{number}"
      label = classes[int(example[label_key])]
      listed.append(File(path, label, str(split)))
  if pattern and name_key:
    listed = audio_folder.with_speakers(listed, pattern, folder)
  lengths = [len(row) for row in rows]
  samples = round(seconds * wanted) if seconds else max(lengths)
  audio_files.tell({rate: len(rows)}, wanted, lengths, samples)
  decoded = _pack(rows, samples, wanted)
  clips = _clips(listed, decoded, tuple(classes), tuple(info.splits))
  audio.write(folder, clips, mark)
  return f"{describe(info.name, clips)}: {folder}"


def describe(name: str, clips: audio.Clips) -> str:
  """Returns a sentence on the clips of a set."""
  sizes = np.bincount(clips.split, minlength=len(clips.splits)).tolist()
  parts = [
    f"{size:,} {split}" for size, split in zip(sizes, clips.splits, strict=True)
  ]
  seconds = clips.audio.shape[1] / clips.sample_rate
  text = (
    f"{name} is ready: {', '.join(parts)} clips of {seconds:.2f} s at"
    f" {clips.sample_rate} Hz, {len(clips.classes)} classes"
  )
  if not clips.speakers:
    return f"{text}, speakers not known"
  by_split = [
    set(clips.speaker[clips.split == i].tolist()) - {-1}
    for i in range(len(clips.splits))
  ]
  counts = " + ".join(str(len(found)) for found in by_split)
  if len(by_split) == 1:
    return f"{text}, {counts} speakers"
  twice = sum(map(len, by_split)) - len(set().union(*by_split))
  shared = f"{twice} of them in two splits" if twice else "none in two splits"
  return f"{text}, speakers {counts}, {shared}"


def _fingerprint(
  folder: pathlib.Path, listed: list[File], settings: str
) -> str:
  digest = hashlib.sha256(settings.encode())
  for file in listed:
    path = folder / file.path
    stat = path.stat()
    digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
  return digest.hexdigest()


def _clips(
  listed: list[File],
  decoded: audio_files.Decoded,
  classes: tuple[str, ...] = (),
  splits: tuple[str, ...] = (),
) -> audio.Clips:
  """Returns decoded clips with the numbers of their classes and speakers."""
  classes = classes or tuple(sorted({file.label for file in listed}))
  present = {file.split for file in listed}
  splits = splits or tuple(
    name for name in audio_folder.SPLITS if name in present
  )
  speakers = tuple(sorted({file.speaker for file in listed} - {""}))
  _warn_of_missing(listed, classes, splits)
  number = lambda known, values: np.asarray(
    [known.get(value, -1) for value in values], np.int32
  )
  numbered = lambda known: {name: i for i, name in enumerate(known)}
  return audio.Clips(
    audio=decoded.audio,
    length=decoded.length,
    label=number(numbered(classes), [file.label for file in listed]),
    speaker=number(numbered(speakers), [file.speaker for file in listed]),
    split=number(numbered(splits), [file.split for file in listed]),
    classes=classes,
    speakers=speakers,
    splits=splits,
    sample_rate=decoded.sample_rate,
  )


def _warn_of_missing(
  listed: list[File], classes: tuple[str, ...], splits: tuple[str, ...]
) -> None:
  for split in splits:
    there = {file.label for file in listed if file.split == split}
    missing = sorted(set(classes) - there)
    if missing:
      logging.warning("%s has no clip of %s", split, ", ".join(missing[:10]))


def _keys_of_set(folder: pathlib.Path, info: Any) -> tuple[str, str, str]:
  """Returns the keys of clip, label and file name ("" without a name)."""
  kinds = {key: type(info.features[key]).__name__ for key in info.features}
  clips = [key for key, kind in kinds.items() if kind == "Audio"]
  labels = [key for key, kind in kinds.items() if kind == "ClassLabel"]
  named = [key for key in kinds if key.endswith("filename")]
  if len(clips) != 1 or len(labels) != 1:
    raise DataError(
      f"{folder} is not a set of audio clips with one label each: it has"
      f" {', '.join(f'{key} ({kind})' for key, kind in kinds.items())}"
    )
  return clips[0], labels[0], named[0] if named else ""


def _samples(clip: Any, where: str) -> np.ndarray:
  """Returns a clip of TFDS as one channel of floats in [-1, 1]."""
  clip = np.asarray(clip)
  if clip.dtype.kind in "iu":
    if not clip.size or np.abs(clip).max() > 32768:
      raise DataError(f"{where}: not a clip of 16-bit samples")
    clip = clip / 32768
  return clip.reshape(len(clip), -1).mean(axis=1, dtype=np.float64)


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _pack(
  rows: list[np.ndarray], samples: int, rate: int
) -> audio_files.Decoded:
  """Returns clips of several lengths as one array."""
  packed = np.zeros((len(rows), samples), np.int16)
  length = np.zeros(len(rows), np.int32)
  for i, row in enumerate(rows):
    clip = audio_files.fit(row, samples)
    packed[i, : len(clip)], length[i] = clip, len(clip)
  return audio_files.Decoded(packed, length, np.arange(len(rows)), rate)
