"""The log-mel front end against librosa, and against float64 NumPy."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax.layers import spectrogram
from ws_jax.layers.spectrogram import LogMel, frame_mask, log_mel

GOLDEN = pathlib.Path(__file__).with_name("golden") / "log_mel.npz"
NAMES = ("default", "htk", "ds_cnn", "telephone")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN, allow_pickle=False) as archive:
    return dict(archive)


def settings_of(golden, name):
  return LogMel(**json.loads(str(golden[f"{name}_settings"])))


def reference(audio, s):
  """Returns the features, frame by frame and band by band, in float64."""

  def mel(hertz):
    if s.mel_scale == "htk":
      return 1127.01048 * np.log(1 + hertz / 700)
    return (
      hertz / 66.6666667
      if hertz < 1000
      else (15 + 27 * np.log(hertz / 1000) / np.log(6.4))
    )

  grid = np.linspace(0, s.sample_rate / 2, 200_001)
  mels = np.array([mel(hertz) for hertz in grid])
  edges = np.linspace(mel(s.fmin), mel(s.fmax), s.bands + 2)
  corners = np.interp(edges, mels, grid)
  hertz = np.arange(s.fft_size // 2 + 1) * s.sample_rate / s.fft_size
  n = np.arange(s.window)
  hann = np.sin(np.pi * n / s.window) ** 2
  offset = (s.fft_size - s.window) // 2 - s.fft_size // 2
  rows = []
  for frame in range(1 + len(audio) // s.hop):
    at = frame * s.hop + offset + n
    inside = (at >= 0) & (at < len(audio))
    piece = np.where(inside, audio[np.clip(at, 0, len(audio) - 1)], 0) * hann
    angle = -2j * np.pi * np.outer(np.arange(len(hertz)), n) / s.fft_size
    power = np.abs(np.exp(angle) @ piece) ** 2
    row = []
    for low, mid, high in zip(
      corners[:-2], corners[1:-1], corners[2:], strict=True
    ):
      shape = np.interp(hertz, [low, mid, high], [0, 1, 0], left=0, right=0)
      if s.mel_norm == "slaney":
        shape = shape * 2 / (high - low)
      row.append(np.log(max(power @ shape, s.floor)))
    rows.append(row)
  return np.asarray(rows)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_librosa(golden, name):
  audio = jnp.asarray(golden["audio"], jnp.float32)[None] / 32768
  got = jax.jit(log_mel, static_argnums=1)(audio, settings_of(golden, name))
  np.testing.assert_allclose(
    got[0],
    golden[name],
    atol=1e-4,
    rtol=0,
    err_msg="the features changed: trained models no longer fit them",
  )


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_a_loop_in_float64(golden, name):
  settings = settings_of(golden, name)
  rng = np.random.default_rng(1)
  audio = np.clip(rng.normal(0, 0.2, (2, 1501)), -1, 1).astype(np.float32)
  got = log_mel(jnp.asarray(audio), settings)
  for features, clip in zip(got, audio, strict=True):
    expected = reference(clip.astype(np.float64), settings)
    np.testing.assert_allclose(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", spectrogram.MEL_SCALES)
@pytest.mark.parametrize("norm", spectrogram.MEL_NORMS)
def test_bands_overlap_so_that_no_frequency_inside_is_lost(scale, norm):
  settings = LogMel(fft_size=4096, mel_scale=scale, mel_norm=norm)
  filters = spectrogram.mel_filters(settings)
  assert filters.shape == (2049, 40)
  assert filters.min() >= 0
  if norm == "slaney":  # Each band has an area of 1 in hertz.
    area = filters.sum(0) * 16000 / 4096
    np.testing.assert_allclose(area, 1, atol=0.03)
  else:  # Between the first and the last centre the triangles sum to 1.
    first, last = filters[:, 0].argmax() + 1, filters[:, -1].argmax() - 1
    np.testing.assert_allclose(filters[first:last].sum(1), 1, atol=1e-9)


def test_a_louder_clip_is_shifted_by_the_square_of_the_factor():
  rng = np.random.default_rng(2)
  audio = jnp.asarray(rng.normal(0, 0.1, (1, 4000)), jnp.float32)
  settings = LogMel(floor=1e-12)
  louder = log_mel(2 * audio, settings) - log_mel(audio, settings)
  np.testing.assert_allclose(louder, 2 * np.log(2), atol=1e-4)


def test_silence_is_the_logarithm_of_the_floor():
  got = log_mel(jnp.zeros((1, 800)), LogMel(floor=1e-5))
  np.testing.assert_allclose(got, np.log(1e-5), rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 159, 160, 3000, 4000])
def test_a_padded_clip_has_its_own_features_and_then_padding(length):
  settings, samples = LogMel(), 4000
  rng = np.random.default_rng(3)
  clip = rng.normal(0, 0.1, (1, length)).astype(np.float32)
  padded = np.pad(clip, ((0, 0), (0, samples - length)))
  mask = frame_mask(jnp.asarray([length]), samples, settings)
  alone = log_mel(jnp.asarray(clip), settings)
  assert mask.sum() == alone.shape[1] == settings.num_frames(length)
  got = log_mel(jnp.asarray(padded), settings)[:, : alone.shape[1]]
  np.testing.assert_allclose(got, alone, atol=1e-5)
  normalized = spectrogram.normalize_clips(
    log_mel(jnp.asarray(padded), settings), mask
  )
  assert not np.asarray(normalized[:, alone.shape[1] :]).any()
  np.testing.assert_allclose(
    normalized[:, : alone.shape[1]],
    spectrogram.normalize_clips(alone, jnp.ones(alone.shape[:2])),
    atol=1e-4,
  )


def test_normalized_clips_do_not_tell_how_loud_they_were():
  rng = np.random.default_rng(4)
  audio = jnp.asarray(rng.normal(0, 0.1, (1, 4000)), jnp.float32)
  settings = LogMel(floor=1e-12)
  quiet, loud = (
    spectrogram.normalize_clips(log_mel(x, settings), jnp.ones((1, 26)))
    for x in (audio, 5 * audio)
  )
  np.testing.assert_allclose(quiet, loud, atol=1e-4)
  np.testing.assert_allclose(quiet.mean(), 0, atol=1e-5)
  np.testing.assert_allclose(quiet.std(), 1, atol=1e-2)


def test_silence_stays_finite_when_it_is_normalized():
  features = log_mel(jnp.zeros((1, 4000)), LogMel())
  got = spectrogram.normalize_clips(features, jnp.ones((1, 26)))
  np.testing.assert_allclose(got, 0, atol=1e-2)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"window": 600}, "does not fit a Fourier transform of 512"),
    ({"fmax": 9000.0}, "half of the sample rate"),
    ({"fmin": 8000.0}, "fmin < fmax"),
    ({"bands": 400}, "holds no frequency"),
    ({"hop": 0}, "hop is 0"),
    ({"window": 2**17, "fft_size": 2**17}, "must be from 1 to 65536"),
    ({"sample_rate": 10**16}, "must be from 1 to 10000000"),
    ({"floor": 0.0}, "floor is 0"),
    ({"mel_scale": "hkt"}, "did you mean 'htk'"),
    ({"mel_norm": "slany"}, "did you mean 'slaney'"),
  ],
)
def test_settings_that_cannot_be_are_refused(change, said):
  with pytest.raises(ValueError, match=said):
    LogMel(**change)


def test_the_same_settings_share_a_compiled_program():
  assert LogMel(hop=80) == LogMel(hop=80)
  assert hash(LogMel(hop=80)) == hash(LogMel(hop=80)) != hash(LogMel())
