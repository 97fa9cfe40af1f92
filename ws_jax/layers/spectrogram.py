"""Log-mel features of audio, computed on the device within the jitted step.

Start reading at `log_mel`. Frame `j` is centred on sample `j * hop`, with zeros
beyond both ends of the clip, so a clip of `n` samples has `1 + n // hop`
frames. Windows are periodic Hann windows, and bands are triangles in hertz that
are spaced evenly on a mel scale. The numbers are those of librosa's
`melspectrogram` with `center=True`, `pad_mode="constant"` and `power=2`
(McFee et al. 2015, "librosa: Audio and music signal analysis in Python").
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax.base.names import lookup

# The two definitions of a mel in use, as functions of the frequency in hertz.
# Slaney's (Auditory Toolbox, 1998) is linear up to 1 kHz and logarithmic above;
# that of HTK is the formula of O'Shaughnessy (1987).
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0
_STEP = np.log(6.4) / 27
MEL_SCALES = {"slaney": "linear up to 1 kHz", "htk": "2595 log10(1 + f / 700)"}
MEL_NORMS = {"slaney": "unit area in hertz", "none": "unit height"}


# What is larger is a slip, and may take more memory than there is.
_MOST = {
  "sample_rate": 10**7,
  "window": 2**16,
  "hop": 2**20,
  "fft_size": 2**16,
  "bands": 1024,
}


@dataclasses.dataclass(frozen=True)
class LogMel:
  """Settings of the features, as a hashable value.

  Attributes:
    sample_rate: Samples of a second of audio.
    window: Samples of a window.
    hop: Samples between the centres of two frames.
    fft_size: Samples of a Fourier transform; a shorter window is padded.
    bands: Number of mel bands.
    fmin: Lowest frequency of the first band, in hertz.
    fmax: Highest frequency of the last band, in hertz.
    floor: Smallest power of a band; the logarithm is taken of nothing less.
    mel_scale: A name of `MEL_SCALES`.
    mel_norm: A name of `MEL_NORMS`: the scale of a band's triangle.

  Raises:
    ValueError: a number is out of range, or a band falls between two
      frequencies of the Fourier transform.

  Example:
    >>> LogMel(16000, window=480, hop=160, fft_size=512).num_frames(16000)
    101
  """

  sample_rate: int = 16000
  window: int = 480
  hop: int = 160
  fft_size: int = 512
  bands: int = 40
  fmin: float = 20.0
  fmax: float = 8000.0
  floor: float = 1e-6
  mel_scale: str = "slaney"
  mel_norm: str = "slaney"

  def __post_init__(self):
    lookup(MEL_SCALES, self.mel_scale, "mel scale")
    lookup(MEL_NORMS, self.mel_norm, "mel norm")
    for name, most in _MOST.items():
      if not 1 <= getattr(self, name) <= most:
        raise ValueError(
          f"{name} is {getattr(self, name)}, but must be from 1 to {most}"
        )
    if self.window > self.fft_size:
      raise ValueError(
        f"a window of {self.window} samples does not fit a Fourier transform"
        f" of {self.fft_size}"
      )
    half = self.sample_rate / 2
    if not 0 <= self.fmin < self.fmax <= half:
      raise ValueError(
        f"bands from {self.fmin:g} to {self.fmax:g} Hz: needed is 0 <= fmin <"
        f" fmax <= {half:g}, half of the sample rate"
      )
    if self.floor <= 0:
      raise ValueError(f"floor is {self.floor}, but must be over 0")
    empty = np.flatnonzero(mel_filters(self).sum(0) == 0)
    if len(empty):
      raise ValueError(
        f"band {empty[0]} of {self.bands} holds no frequency of a Fourier"
        f" transform of {self.fft_size} samples: take fewer bands or a larger"
        " transform"
      )

  def num_frames(self, num_samples: int) -> int:
    """Returns the number of frames of a clip."""
    return 1 + num_samples // self.hop


def log_mel(audio: jax.Array, settings: LogMel) -> jax.Array:
  """Returns the logarithm of the power in each mel band.

  Args:
    audio: Samples in [-1, 1], float32 `[B, samples]`.
    settings: The settings of the features.

  Returns:
    Natural logarithms, float32 `[B, frames, bands]`.

  Example:
    >>> log_mel(jnp.zeros((2, 16000)), LogMel()).shape
    (2, 101, 40)
  """
  window = jnp.asarray(_hann(settings.window), jnp.float32)
  frames = _frames(audio.astype(jnp.float32), settings)
  spectrum = jnp.fft.rfft(
    frames * window.reshape(1, 1, -1), n=settings.fft_size
  )
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  # Full precision: a matrix unit's bfloat16 would show in quiet bands.
  mel = jnp.matmul(
    power,
    jnp.asarray(mel_filters(settings), jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return jnp.log(jnp.maximum(mel, settings.floor))


def frame_mask(
  length: jax.Array, num_samples: int, settings: LogMel
) -> jax.Array:
  """Returns 1 for the frames of a clip and 0 for those of its padding.

  Args:
    length: Samples of each clip, int32 `[B]`.
    num_samples: Samples of each clip with its padding.
    settings: The settings of the features.

  Returns:
    float32 `[B, frames]`. A clip keeps the frames that it has by itself.

  Example:
    >>> settings = LogMel(window=4, hop=2, fft_size=512)
    >>> frame_mask(jnp.asarray([3, 8]), 8, settings).tolist()
    [[1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]]
  """
  number = jnp.arange(settings.num_frames(num_samples), dtype=jnp.int32)
  valid = number.reshape(1, -1) * settings.hop <= length.reshape(-1, 1)
  return valid.astype(jnp.float32)


def normalize_clips(features: jax.Array, mask: jax.Array) -> jax.Array:
  """Brings each clip to mean 0 and deviation 1; frames of padding become 0.

  One mean and one deviation, over frames and bands: how loud a clip is goes,
  the shape of its spectrum stays.

  Args:
    features: Log-mel features, `[B, frames, bands]`.
    mask: 1 for frames of the clip and 0 for padding, `[B, frames]`.

  Example:
    >>> x = jnp.asarray([[[1.0, 3.0], [9.0, 9.0]]])
    >>> normalize_clips(x, jnp.asarray([[1.0, 0.0]])).round(2).tolist()
    [[[-1.0, 1.0], [0.0, 0.0]]]
  """
  weights = mask[..., None]
  count = jnp.maximum(mask.sum(1) * features.shape[-1], 1.0).reshape(-1, 1, 1)
  mean = (features * weights).sum((1, 2), keepdims=True) / count
  centred = (features - mean) * weights
  variance = jnp.square(centred).sum((1, 2), keepdims=True) / count
  # Speech has a variance of about 10. Digital silence has none but that of
  # rounding, which must not be blown up: it stays 0.
  return centred * jax.lax.rsqrt(variance + 1e-3)


@functools.cache
def mel_filters(settings: LogMel) -> np.ndarray:
  """Returns the weight of each frequency in each band, `[fft // 2 + 1, bands]`.

  Example:
    >>> bool(mel_filters(LogMel(mel_norm="none")).max() <= 1)
    True
  """
  s = settings
  low, high = _mel(np.asarray([s.fmin, s.fmax]), s.mel_scale)
  corners = _hertz(np.linspace(low, high, s.bands + 2), s.mel_scale)
  frequencies = np.arange(s.fft_size // 2 + 1) * s.sample_rate / s.fft_size
  left, centre, right = corners[:-2], corners[1:-1], corners[2:]
  rising = (frequencies[:, None] - left) / (centre - left)
  falling = (right - frequencies[:, None]) / (right - centre)
  weights = np.maximum(0.0, np.minimum(rising, falling))
  if s.mel_norm == "slaney":
    weights *= 2.0 / (right - left)
  return weights


def _frames(audio: jax.Array, settings: LogMel) -> jax.Array:
  """Cuts clips into overlapping frames, `[B, frames, window]`.

  The clip is cut into pieces of one hop, and shifted copies of them are joined:
  a gather of single samples takes several times as long on a CPU.
  """
  s = settings
  count = s.num_frames(audio.shape[1])
  pieces = -(-s.window // s.hop)
  # A window lies in the middle of its Fourier transform.
  before = s.fft_size // 2 - (s.fft_size - s.window) // 2
  total = (count - 1 + pieces) * s.hop
  after = max(total - before - audio.shape[1], 0)
  padded = jnp.pad(audio, ((0, 0), (before, after)))[:, :total]
  hops = padded.reshape(audio.shape[0], -1, s.hop)
  shifted = [hops[:, i : i + count] for i in range(pieces)]
  return jnp.concatenate(shifted, axis=-1)[..., : s.window]


def _hann(length: int) -> np.ndarray:
  """Returns the periodic Hann window."""
  return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def _mel(hertz: np.ndarray, scale: str) -> np.ndarray:
  if scale == "htk":
    return 2595 * np.log10(1 + hertz / 700)
  above = _BREAK_MEL + np.log(np.maximum(hertz, 1e-9) / _BREAK_HZ) / _STEP
  return np.where(hertz < _BREAK_HZ, hertz * _BREAK_MEL / _BREAK_HZ, above)


def _hertz(mel: np.ndarray, scale: str) -> np.ndarray:
  if scale == "htk":
    return 700 * (10 ** (mel / 2595) - 1)
  above = _BREAK_HZ * np.exp(_STEP * (mel - _BREAK_MEL))
  return np.where(mel < _BREAK_MEL, mel * _BREAK_HZ / _BREAK_MEL, above)
