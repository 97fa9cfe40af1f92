"""Augmentation of audio on the device: pure functions inside the jitted step.

Those of clips take float32 samples `[B, samples]` and the samples that each
clip has before its padding, `[B]`. Padding stays zero and lengths stay as they
are. `mask_features` works on log-mel features.
"""

import jax
import jax.numpy as jnp

from ws_jax.base.names import lookup

NOISES = {
  "none": "no noise",
  "white": "equal power at all frequencies",
  "pink": "power falls as 1 / frequency",
  "clips": "other clips of the training set",
}
# Noise of a batch is cut from one stream of this many times a clip's length.
_STREAM = 8


def shift_time(
  key: jax.Array, audio: jax.Array, length: jax.Array, most: int
) -> jax.Array:
  """Moves each clip by a random number of samples; zeros come in.

  What leaves a clip at its end is lost, so it does not grow into its padding.

  Args:
    key: Random key.
    audio: Clips, `[B, samples]`.
    length: Samples of each clip, int32 `[B]`.
    most: Largest shift to either side, in samples; 0 for none.

  Returns:
    Array like `audio`.

  Example:
    >>> audio, length = jnp.ones((2, 8)), jnp.asarray([8, 4])
    >>> shifted = shift_time(jax.random.key(0), audio, length, 3)
    >>> shifted.shape, float(shifted[1, 4:].sum())
    ((2, 8), 0.0)
  """
  if most == 0:
    return audio
  shift = jax.random.randint(key, length.shape, -most, most + 1, jnp.int32)
  padded = jnp.pad(audio, ((0, 0), (most, most)))

  def cut(clip, start):
    return jax.lax.dynamic_slice(clip, (start,), (audio.shape[1],))

  return jax.vmap(cut)(padded, most - shift) * _inside(audio, length)


def change_gain(key: jax.Array, audio: jax.Array, most_db: float) -> jax.Array:
  """Makes each clip louder or quieter by up to `most_db` decibels.

  Args:
    key: Random key.
    audio: Clips, `[B, samples]`.
    most_db: Largest change to either side; 0 for none.

  Returns:
    Array like `audio`; samples may exceed 1, nothing is clipped.

  Example:
    >>> change_gain(jax.random.key(0), jnp.ones((2, 8)), 0.0).max().item()
    1.0
  """
  if most_db == 0:
    return audio
  gain = jax.random.uniform(key, (audio.shape[0], 1), jnp.float32, minval=-1.0)
  return audio * 10 ** (gain * most_db / 20)


def make_noise(
  key: jax.Array, kind: str, clips: jax.Array, num_clips: int
) -> jax.Array:
  """Makes noise for a batch, of any power.

  White and pink noise is cut at random places from one stream, because a
  sample for every sample of a batch would take longer than a small model.

  Args:
    key: Random key.
    kind: A name of `NOISES` but "none".
    clips: All clips of the training set, `[N, samples]`, of any dtype; "clips"
      takes random ones, other kinds take only their length.
    num_clips: Number of clips of the batch.

  Returns:
    float32 `[num_clips, samples]`.

  Raises:
    ValueError: an unknown kind.

  Example:
    >>> make_noise(jax.random.key(0), "pink", jnp.zeros((9, 100)), 4).shape
    (4, 100)
  """
  lookup(NOISES, kind, "noise")
  key, cut_key = jax.random.split(key)
  if kind == "clips":
    chosen = jax.random.randint(key, (num_clips,), 0, clips.shape[0], jnp.int32)
    return jnp.take(clips, chosen, axis=0).astype(jnp.float32)
  samples = clips.shape[1]
  size = 2 ** (_STREAM * samples - 1).bit_length()
  stream = jax.random.normal(key, (size,), jnp.float32)
  if kind == "pink":
    spectrum = jnp.fft.rfft(stream)
    frequency = jnp.maximum(jnp.arange(spectrum.shape[0], dtype=jnp.float32), 1)
    stream = jnp.fft.irfft(spectrum / jnp.sqrt(frequency), n=size)
  return cut_noise(cut_key, stream, num_clips, samples)


def cut_noise(
  key: jax.Array, stream: jax.Array, num_clips: int, samples: int
) -> jax.Array:
  """Cuts noise for a batch at random places out of one long recording.

  Args:
    key: Random key.
    stream: Recording, `[M]` of any dtype; a shorter one than a clip is
      repeated.
    num_clips: Number of clips of the batch.
    samples: Samples of a clip.

  Returns:
    float32 `[num_clips, samples]`.

  Example:
    >>> cut_noise(jax.random.key(0), jnp.arange(8), 2, 4).shape
    (2, 4)
  """
  times = -(-samples // stream.shape[0])
  stream = jnp.tile(stream, times) if times > 1 else stream
  places = max(stream.shape[0] - samples, 1)
  starts = jax.random.randint(key, (num_clips,), 0, places, jnp.int32)
  cut = lambda start: jax.lax.dynamic_slice(stream, (start,), (samples,))
  return jax.vmap(cut)(starts).astype(jnp.float32)


def add_noise(
  key: jax.Array,
  audio: jax.Array,
  length: jax.Array,
  noise: jax.Array,
  *,
  probability: float,
  snr_db: tuple[float, float],
) -> jax.Array:
  """Adds noise to some of the clips at a random ratio of signal to noise.

  Args:
    key: Random key.
    audio: Clips, `[B, samples]`.
    length: Samples of each clip, int32 `[B]`.
    noise: Noise of any power, `[B, samples]`.
    probability: Share of the clips that get noise.
    snr_db: Lowest and highest ratio of the energy of a clip to that of its
      noise, in decibels, both over the length of the clip.

  Returns:
    Array like `audio`. A silent clip stays silent.

  Example:
    >>> audio, noise = jnp.full((1, 4), 2.0), jnp.asarray([[1.0, -1, 1, -1]])
    >>> add_noise(
    ...   jax.random.key(0), audio, jnp.asarray([4]), noise, probability=1.0,
    ...   snr_db=(20.0, 20.0),
    ... ).round(2)
    Array([[2.2, 1.8, 2.2, 1.8]], dtype=float32)
  """
  ratio_key, choice_key = jax.random.split(key)
  noise = noise * _inside(audio, length)
  energy = lambda x: jnp.square(x).sum(1, keepdims=True)
  shape = (audio.shape[0], 1)
  low, high = snr_db
  decibels = jax.random.uniform(
    ratio_key, shape, jnp.float32, minval=low, maxval=high
  )
  ratio = energy(audio) / jnp.maximum(energy(noise), 1e-20)
  factor = jnp.sqrt(ratio * 10 ** (-decibels / 10))
  chosen = jax.random.bernoulli(choice_key, jnp.float32(probability), shape)
  return audio + jnp.where(chosen, factor, 0.0) * noise


def mask_features(
  key: jax.Array,
  features: jax.Array,
  mask: jax.Array,
  *,
  time_masks: int,
  most_frames: int,
  band_masks: int,
  most_bands: int,
) -> jax.Array:
  """Sets random stretches of frames and of bands to 0 (SpecAugment).

  Park et al. 2019 (arXiv:1904.08779), without its time warp. Of the frames of
  a clip at most half are masked at once, so that something is left of a word.

  Args:
    key: Random key.
    features: Features with mean 0, `[B, frames, bands]`.
    mask: 1 for frames of the clip and 0 for padding, `[B, frames]`.
    time_masks: Number of stretches of frames.
    most_frames: Most frames of a stretch.
    band_masks: Number of stretches of bands.
    most_bands: Most bands of a stretch.

  Returns:
    Array like `features`.

  Example:
    >>> features, mask = jnp.ones((1, 9, 8)), jnp.ones((1, 9))
    >>> masked = mask_features(
    ...   jax.random.key(0), features, mask, time_masks=1, most_frames=3,
    ...   band_masks=0, most_bands=0,
    ... )
    >>> 6 * 8 <= float(masked.sum()) <= 9 * 8
    True
  """
  batch, frames, bands = features.shape
  time_key, band_key = jax.random.split(key)
  valid = mask.sum(1).astype(jnp.int32)
  most = jnp.minimum(most_frames, valid // 2)
  kept = _stretches(time_key, time_masks, most, valid, frames)
  features = features * kept[:, :, None]
  whole = jnp.full((batch,), bands, jnp.int32)
  most = jnp.minimum(most_bands, whole)
  kept = _stretches(band_key, band_masks, most, whole, bands)
  return features * kept[:, None, :]


def _stretches(
  key: jax.Array, number: int, most: jax.Array, valid: jax.Array, size: int
) -> jax.Array:
  """Returns 0 in `number` random stretches of `[0, valid)`, else 1: [B, size].

  Lengths are uniform in [0, most], and so are places where a stretch fits.
  """
  shape = (len(valid), number)
  draws = jax.random.uniform(key, (2, *shape), jnp.float32)
  length = jnp.floor(draws[0] * (most.reshape(-1, 1) + 1))
  start = jnp.floor(draws[1] * (valid.reshape(-1, 1) - length + 1))
  position = jnp.arange(size).reshape(1, 1, -1)
  start, length = start[..., None], length[..., None]
  masked = (position >= start) & (position < start + length)
  return 1.0 - masked.any(1).astype(jnp.float32)


def _inside(audio: jax.Array, length: jax.Array) -> jax.Array:
  """Returns 1 for the samples of each clip and 0 for its padding."""
  position = jnp.arange(audio.shape[1]).reshape(1, -1)
  return (position < length.reshape(-1, 1)).astype(audio.dtype)
