"""Laws of the augmentation of audio: what it may change, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax.data import augment_audio

LENGTH = np.array([40, 25, 1, 0], np.int32)


@pytest.fixture
def audio():
  rng = np.random.default_rng(0)
  clips = rng.normal(0, 0.3, (4, 40)).astype(np.float32)
  return jnp.asarray(clips * (np.arange(40) < LENGTH[:, None]))


def keys(number):
  return jax.random.split(jax.random.key(1), number)


def padding(x):
  return np.asarray(x)[np.arange(x.shape[1]) >= LENGTH[:, None]]


def energy(x):
  return np.square(np.asarray(x, np.float64)).sum(1)


def test_a_shifted_clip_is_the_clip_at_another_place(audio):
  seen = set()
  for key in keys(60):
    got = np.asarray(augment_audio.shift_time(key, audio, LENGTH, 5))
    assert not padding(got).any()
    for clip, moved, length in zip(np.asarray(audio), got, LENGTH, strict=True):
      shifts = []
      for shift in range(-5, 6):
        expected = np.zeros(40, np.float32)
        for t in range(length):
          if 0 <= t - shift < length:
            expected[t] = clip[t - shift]
        if np.array_equal(expected, moved):
          shifts.append(shift)
      assert shifts, "not the clip at any place within the largest shift"
      if length == 40:
        seen |= set(shifts)
  assert seen == set(range(-5, 6))


def test_a_shift_never_adds_energy(audio):
  for key in keys(10):
    moved = augment_audio.shift_time(key, audio, LENGTH, 20)
    assert (energy(moved) <= energy(audio) + 1e-9).all()


def test_gain_is_one_factor_for_a_clip_within_its_bounds(audio):
  for key in keys(20):
    got = augment_audio.change_gain(key, audio, 6.0)
    decibels = 10 * np.log10(energy(got)[:3] / energy(audio)[:3])
    assert (np.abs(decibels) <= 6.0 + 1e-4).all()
    factor = 10 ** (decibels / 20)
    np.testing.assert_allclose(
      got[:3], np.asarray(audio)[:3] * factor[:, None], rtol=1e-5
    )
    assert len(set(factor.round(4))) == 3  # each clip its own
    assert not padding(got).any()


@pytest.mark.parametrize("length", [3, 8, 50])
def test_noise_is_cut_out_of_one_recording(length):
  recording = jnp.arange(length, dtype=jnp.int16)
  got = np.asarray(augment_audio.cut_noise(jax.random.key(4), recording, 20, 8))
  assert got.shape == (20, 8) and got.dtype == np.float32
  # Neighbours stay neighbours; a short recording begins again at its end.
  np.testing.assert_array_equal(got, (got[:, :1] + np.arange(8)) % length)
  assert length != 50 or len({*got[:, 0]}) > 5


def test_noise_has_the_energy_that_the_ratio_says(audio):
  noise = jax.random.normal(jax.random.key(2), audio.shape)
  for key in keys(20):
    got = augment_audio.add_noise(
      key, audio, LENGTH, noise, probability=1.0, snr_db=(3.0, 12.0)
    )
    added = energy(got - audio)[:3]
    ratio = 10 * np.log10(energy(audio)[:3] / added)
    assert (ratio > 3.0 - 1e-3).all()
    assert (ratio < 12.0 + 1e-3).all()
    assert not padding(got).any()
    assert np.isfinite(got).all()


def test_noise_comes_to_the_share_of_the_clips_that_is_asked_for():
  audio = jnp.ones((400, 8))
  noise = jax.random.normal(jax.random.key(3), audio.shape)
  got = augment_audio.add_noise(
    jax.random.key(4),
    audio,
    jnp.full(400, 8),
    noise,
    probability=0.3,
    snr_db=(10.0, 10.0),
  )
  share = np.mean(np.any(np.asarray(got) != 1, axis=1))
  assert 0.2 < share < 0.4


def test_a_silent_clip_stays_silent():
  silent, length = jnp.zeros((2, 8)), jnp.asarray([8, 8])
  noise = jnp.ones((2, 8))
  for given in (noise, silent):
    got = augment_audio.add_noise(
      jax.random.key(0), silent, length, given, probability=1.0, snr_db=(0, 0)
    )
    assert not np.asarray(got).any()


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -1.0)])
def test_noise_has_the_spectrum_of_its_name(kind, slope):
  clips = jnp.zeros((1, 4096), jnp.int16)
  noise = augment_audio.make_noise(jax.random.key(5), kind, clips, 64)
  power = np.mean(
    np.abs(np.fft.rfft(np.hanning(4096) * np.asarray(noise))) ** 2, axis=0
  )
  octaves = [power[2**i : 2 ** (i + 1)].mean() for i in range(3, 11)]
  found = np.polyfit(np.arange(len(octaves)), np.log2(octaves), 1)[0]
  assert found == pytest.approx(slope, abs=0.1)


def test_noise_of_clips_is_clips_of_the_set():
  clips = jnp.arange(12, dtype=jnp.int16).reshape(6, 2)
  noise = augment_audio.make_noise(jax.random.key(6), "clips", clips, 50)
  rows = {tuple(row) for row in np.asarray(noise).tolist()}
  assert rows == {(2.0 * i, 2.0 * i + 1) for i in range(6)}


def test_each_clip_gets_noise_of_its_own():
  clips = jnp.zeros((1, 100))
  noise = augment_audio.make_noise(jax.random.key(7), "white", clips, 8)
  correlation = np.corrcoef(noise) - np.eye(8)
  assert np.abs(correlation).max() < 0.6


def masked(key, features, mask, **change):
  given = {"time_masks": 2, "most_frames": 10, "band_masks": 1, "most_bands": 4}
  return np.asarray(
    augment_audio.mask_features(key, features, mask, **given | change)
  )


def test_masks_are_stretches_of_frames_and_of_bands():
  features = jnp.ones((6, 50, 12))
  mask = jnp.ones((6, 50))
  lengths, starts = set(), set()
  for key in keys(30):
    got = masked(key, features, mask, time_masks=1)
    for clip in got:
      frames, bands = clip.any(1), clip.any(0)
      # A masked point lies in a masked frame or a masked band.
      np.testing.assert_array_equal(clip, np.outer(frames, bands))
      for kept, most in ((frames, 10), (bands, 4)):
        gone = np.flatnonzero(~kept)
        assert len(gone) <= most
        assert len(gone) == 0 or gone[-1] - gone[0] + 1 == len(gone)
      gone = np.flatnonzero(~frames)
      lengths.add(len(gone))
      starts |= set(gone[:1])
  assert lengths == set(range(11))
  assert min(starts) < 5
  assert max(starts) > 40


def test_a_short_clip_keeps_half_of_its_frames():
  mask = (jnp.arange(50).reshape(1, -1) < jnp.asarray([[6], [1], [0]])) * 1.0
  features = jnp.ones((3, 50, 4)) * mask[..., None]
  for key in keys(20):
    got = masked(key, features, mask, time_masks=1, band_masks=0)
    frames = got.any(2).sum(1)
    assert 3 <= frames[0] <= 6
    assert frames[1] == 1
    assert frames[2] == 0


def test_without_strength_nothing_changes(audio):
  key = jax.random.key(8)
  features, mask = jnp.ones((2, 9, 5)), jnp.ones((2, 9))
  noise = jnp.ones_like(audio)
  pairs = [
    (augment_audio.shift_time(key, audio, LENGTH, 0), audio),
    (augment_audio.change_gain(key, audio, 0.0), audio),
    (
      augment_audio.add_noise(
        key, audio, LENGTH, noise, probability=0.0, snr_db=(0.0, 0.0)
      ),
      audio,
    ),
    (masked(key, features, mask, time_masks=0, band_masks=0), features),
    (masked(key, features, mask, most_frames=0, most_bands=0), features),
  ]
  for got, expected in pairs:
    np.testing.assert_array_equal(got, expected)


def test_the_same_key_does_the_same(audio):
  for key in keys(2):
    twice = [augment_audio.shift_time(key, audio, LENGTH, 9) for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_an_unknown_noise_is_named():
  with pytest.raises(ValueError, match="did you mean 'pink'"):
    augment_audio.make_noise(jax.random.key(0), "pinc", jnp.ones((1, 8)), 1)
