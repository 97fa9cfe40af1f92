"""Decodes audio files into one array of 16-bit samples.

Files are decoded by soundfile (libsndfile): WAV, FLAC, Ogg Vorbis and Opus.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import importlib
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ws_jax.base import cores, extras
from ws_jax.data.request import DataError, check_memory

SUFFIXES = (".wav", ".flac", ".opus", ".ogg")
# Longest noise of a user's files: the six of Speech Commands have 400 s.
NOISE_SECONDS = 1200
_LARGEST_RATE = 768_000  # The rate of no recorder is larger.
_SHOWN = 10  # Files that a warning names.


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
  """Clips of one rate and one length.

  Attributes:
    audio: Samples, int16 `[N, samples]`, zeros after the end of a clip.
    length: Samples of each clip, int32 `[N]`.
    kept: Positions in the list of files of those that could be read.
    sample_rate: Samples of a second.
  """

  audio: np.ndarray
  length: np.ndarray
  kept: np.ndarray
  sample_rate: int


def decode(
  files: Sequence[pathlib.Path],
  *,
  sample_rate: int | None = None,
  seconds: float | None = None,
  skip_unreadable: bool = False,
) -> Decoded:
  """Decodes files, and tells of what it does to them, once for all.

  Args:
    files: Paths of the files.
    sample_rate: Samples of a second that all clips get; None for the rate that
      most of them have.
    seconds: Length that clips are padded or cut to; None for the longest.
    skip_unreadable: Whether a file that cannot be read is left out with a
      warning, and is no error.

  Raises:
    DataError: a file cannot be read, or they do not fit in memory.
  """
  headers = _each(files, read_header)
  kept = _readable(files, headers, skip_unreadable)
  found = [headers[i] for i in kept]
  rates = collections.Counter(rate for rate, _ in found)
  rate = sample_rate or rates.most_common(1)[0][0]
  lengths = [-(-frames * rate // own) for own, frames in found]
  samples = round(seconds * rate) if seconds else max(lengths)
  check_memory(f"audio of {len(kept)} files", len(kept) * samples * 2)
  audio = np.zeros((len(kept), samples), np.int16)
  length = np.zeros(len(kept), np.int32)
  chosen = [files[i] for i in kept]

  def fill(item: tuple[int, pathlib.Path]) -> None:
    row, path = item
    clip = fit(read_clip(path, rate), samples)
    audio[row, : len(clip)], length[row] = clip, len(clip)

  done = _each(list(enumerate(chosen)), fill, "decoded")
  rows = _readable(chosen, done, skip_unreadable)
  tell(rates, rate, lengths, samples)
  if len(rows) < len(kept):
    audio, length = audio[rows], length[rows]
  return Decoded(audio, length, np.asarray(kept)[rows], rate)


def read_clip(path: pathlib.Path, sample_rate: int) -> np.ndarray:
  """Returns an audio file as one channel at the rate that is wanted.

  Args:
    path: Path of the file.
    sample_rate: Samples of a second; another rate is resampled by a polyphase
      filter (`scipy.signal.resample_poly`).

  Returns:
    int16 `[samples]`: the mean of all channels.

  Raises:
    DataError: the file cannot be read or holds nothing; the message names it.
  """
  soundfile = _soundfile()
  try:
    with soundfile.SoundFile(path) as file:
      rate = _checked(path, file)
      # Float64 twice, and float32: before and after it is resampled.
      size = file.frames * (4 * file.channels + 8)
      check_memory(path, size + 16 * file.frames * sample_rate // rate)
      # Not as int16: what overshoots in a lossy format would wrap around.
      samples = file.read(dtype="float32", always_2d=True)
  except DataError:
    raise
  except Exception as error:  # libsndfile and the disk have their own.
    raise DataError(f"{path} cannot be read: {error}") from error
  mono = samples.mean(axis=1, dtype=np.float64)
  if not len(mono) or not np.isfinite(mono).all():
    raise DataError(f"{path} cannot be read: no samples, or some are no number")
  return to_int16(resample(mono, rate, sample_rate))


def read_input(
  path: pathlib.Path, sample_rate: int, samples: int
) -> np.ndarray:
  """Returns an audio file as a model takes it: padded or cut, int16.

  Args:
    path: Path of the file.
    sample_rate: Samples of a second.
    samples: Number of samples of the model's inputs.

  Raises:
    DataError: the file cannot be read or holds nothing; the message names it.
  """
  clip = fit(read_clip(path, sample_rate), samples)
  return np.pad(clip, (0, samples - len(clip)))


@functools.lru_cache(maxsize=4)
def read_noise(folder: pathlib.Path, sample_rate: int) -> np.ndarray:
  """Returns the recordings of a folder one after the other, as one.

  They are decoded once in a process; the program of a step holds them.

  Args:
    folder: Folder with audio files, and with no folders of them.
    sample_rate: Samples of a second; other rates are resampled.

  Returns:
    int16 `[samples]`.

  Raises:
    DataError: there is no audio, a file cannot be read, or they last longer
      than `NOISE_SECONDS`.
  """
  paths = list_noise(folder)
  seconds = sum(frames / rate for rate, frames in map(read_header, paths))
  if seconds > NOISE_SECONDS:
    raise DataError(
      f"{folder} holds {seconds:.0f} s of noise; at most {NOISE_SECONDS} s stay"
      " beside the training clips: choose fewer files"
    )
  return np.concatenate([read_clip(path, sample_rate) for path in paths])


def list_noise(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the audio files in a folder, by name.

  Raises:
    DataError: there is no such folder, or it holds no audio file.
  """
  if not folder.is_dir():
    raise DataError(f"there is no folder {folder.absolute()}")
  found = sorted(
    path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES)
  )
  if not found:
    raise DataError(
      f"{folder} holds no audio file ({', '.join(SUFFIXES)}) to take noise from"
    )
  return found


def read_header(path: pathlib.Path) -> tuple[int, int]:
  """Returns the sample rate and the number of samples of a file.

  Raises:
    DataError: the file cannot be read or holds nothing; the message names it.
  """
  soundfile = _soundfile()
  try:
    info = soundfile.info(path)
  except Exception as error:
    raise DataError(f"{path} cannot be read: {error}") from error
  return _checked(path, info), info.frames


def _checked(path: pathlib.Path, info: Any) -> int:
  """Returns the sample rate of a file that holds samples.

  Raises:
    DataError: it holds none, or has a rate that no clip has.
  """
  if not info.frames:
    raise DataError(f"{path} cannot be read: no samples")
  # The filter that resamples is as long as 20 times the rate.
  if not 0 < info.samplerate <= _LARGEST_RATE:
    raise DataError(
      f"{path} cannot be read: a sample rate of {info.samplerate} Hz, and it"
      f" must be from 1 to {_LARGEST_RATE}"
    )
  return info.samplerate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
  """Returns a clip at another sample rate, float64.

  Example:
    >>> resample(np.ones(80), 8000, 16000).shape
    (160,)
  """
  if rate == wanted:
    return samples
  from scipy import signal

  divisor = math.gcd(rate, wanted)
  return signal.resample_poly(samples, wanted // divisor, rate // divisor)


def to_int16(samples: np.ndarray) -> np.ndarray:
  """Returns samples in [-1, 1] as 16 bits; what is outside is clipped.

  Example:
    >>> to_int16(np.array([0.5, -1.0, 1.5])).tolist()
    [16384, -32768, 32767]
  """
  return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def fit(clip: np.ndarray, samples: int) -> np.ndarray:
  """Returns a clip, or its middle if it is longer than `samples`.

  Example:
    >>> fit(np.arange(10), 4).tolist()
    [3, 4, 5, 6]
  """
  start = max(0, (len(clip) - samples) // 2)
  return clip[start : start + samples]


def tell(
  rates: Mapping[int, int], rate: int, lengths: Sequence[int], samples: int
) -> None:
  """Logs what is done to clips of other rates and other lengths.

  Args:
    rates: Number of clips of each sample rate.
    rate: Sample rate that all of them get.
    lengths: Samples of each clip at that rate.
    samples: Samples that each is padded or cut to.
  """
  for own, count in sorted(rates.items()):
    if own != rate:
      logging.warning("resampled %d clips of %d Hz to %d Hz", count, own, rate)
  longer = sum(length > samples for length in lengths)
  shorter = sum(length < samples for length in lengths)
  seconds, median = samples / rate, float(np.median(lengths)) / rate
  if longer:
    logging.warning("cut %d clips to the middle %.2f s", longer, seconds)
  if shorter:
    logging.warning(
      "padded %d clips to %.2f s; the median clip has %.2f s",
      shorter,
      seconds,
      median,
    )


def _soundfile() -> Any:
  extras.need("audio", by="a folder of audio files")
  try:
    return importlib.import_module("soundfile")
  except OSError as error:  # no libsndfile beside it
    raise DataError(f"soundfile cannot be loaded: {error}") from error


def _each(
  items: Sequence[Any], work: Callable[[Any], Any], said: str = ""
) -> list[Any]:
  """Does the work for each item, in threads.

  Returns:
    Its results; a DataError in the place of a result where it raised one.
  """

  def guarded(item: Any) -> Any:
    try:
      return work(item)
    except DataError as error:
      return error

  began = time.monotonic()
  if items:  # A library that is missing is no matter of one file.
    _soundfile()
  with concurrent.futures.ThreadPoolExecutor(cores.count()) as workers:
    results = list(workers.map(guarded, items))
  if said:
    seconds = time.monotonic() - began
    print(f"{said} {len(items):,} clips in {seconds:.1f} s", file=sys.stderr)
  return results


def _readable(
  files: Sequence[pathlib.Path], results: list[Any], skip: bool
) -> list[int]:
  """Returns the positions of the results that are no error.

  Raises:
    DataError: there are errors that are not to be skipped, or nothing else.
  """
  errors = [result for result in results if isinstance(result, DataError)]
  if errors and not skip:
    more = f" (and {len(errors) - 1} more files)" if len(errors) > 1 else ""
    raise DataError(
      f"{errors[0]}{more}; to leave such files out pass --skip_unreadable"
    )
  if len(errors) == len(files):
    raise DataError(f"no audio file can be read: {errors[0] if errors else ''}")
  for error in errors[:_SHOWN]:
    logging.warning("left out: %s", error)
  if len(errors) > _SHOWN:
    logging.warning("left out: %d more files", len(errors) - _SHOWN)
  return [i for i, x in enumerate(results) if not isinstance(x, DataError)]
