"""Writes the values of librosa that tests/test_spectrogram.py compares with.

    python -m pip install librosa
    python scripts/make_golden_spectrogram.py

Needed only to add settings: the file that it writes is committed. librosa gets
the samples in float64 and so computes in float64.
"""

import dataclasses
import json
import pathlib
import sys

import librosa
import numpy as np

from ws_jax.base import disk
from ws_jax.layers.spectrogram import LogMel

OUT = pathlib.Path(__file__).parents[1] / "tests/golden/log_mel.npz"
SETTINGS = {
  "default": LogMel(),
  "htk": LogMel(
    window=400, bands=64, fmin=60, fmax=7800, mel_scale="htk", mel_norm="none"
  ),
  "ds_cnn": LogMel(window=640, hop=320, fft_size=1024, bands=10, floor=1e-3),
  "telephone": LogMel(
    8000, window=201, hop=77, fft_size=256, bands=20, fmin=0, fmax=4000
  ),
}


def make_audio() -> np.ndarray:
  """Returns a rising tone in noise, int16 [3000], whose middle is silent."""
  time = np.arange(3000) / 16000
  rng = np.random.default_rng(0)
  tone = 0.4 * np.sin(2 * np.pi * (200 * time + 15000 * time**2))
  audio = tone + 0.01 * rng.normal(size=len(time))
  audio[1200:2000] = 0
  return np.round(audio * 32768).astype(np.int16)


def librosa_log_mel(audio: np.ndarray, settings: LogMel) -> np.ndarray:
  """Returns librosa's features, `[frames, bands]`."""
  mel = librosa.feature.melspectrogram(
    y=audio / 32768.0,
    sr=settings.sample_rate,
    n_fft=settings.fft_size,
    hop_length=settings.hop,
    win_length=settings.window,
    center=True,
    pad_mode="constant",
    power=2.0,
    n_mels=settings.bands,
    fmin=settings.fmin,
    fmax=settings.fmax,
    htk=settings.mel_scale == "htk",
    norm="slaney" if settings.mel_norm == "slaney" else None,
    dtype=np.float64,
  )
  return np.log(np.maximum(mel, settings.floor)).T


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    sys.exit("make_golden_spectrogram.py takes no arguments")
  audio = make_audio()
  content = {"audio": audio, "librosa": np.asarray(librosa.__version__)}
  for name, settings in SETTINGS.items():
    content[name] = librosa_log_mel(audio, settings).astype(np.float32)
    fields = json.dumps(dataclasses.asdict(settings))
    content[f"{name}_settings"] = np.asarray(fields)
  OUT.parent.mkdir(exist_ok=True)
  with disk.whole(OUT) as file:
    np.savez_compressed(file, **content)
  print(f"{OUT}: {len(SETTINGS)} settings, librosa {librosa.__version__}")


if __name__ == "__main__":
  main(sys.argv)
