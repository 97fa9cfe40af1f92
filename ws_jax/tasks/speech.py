"""Keywords from raw audio: features, augmentation and accuracy."""

import dataclasses
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ws_jax.base import keys, names
from ws_jax.data import audio_files, augment_audio
from ws_jax.layers import spectrogram
from ws_jax.layers.spectrogram import LogMel
from ws_jax.tasks import classification
from ws_jax.tasks.metric import Metric

Batch = dict[str, jax.Array]

NORMALIZATIONS = {
  "clip": "each clip to mean 0 and deviation 1",
  "none": "the logarithms themselves",
}


@dataclasses.dataclass(frozen=True)
class KeywordSpotting:
  """Clips of one word each; the model gets log-mel features.

  The data have `audio` [N, samples], int16 or float in [-1, 1], and `label`
  [N]. `length` [N] says how much of a clip is no padding; without it, zeros at
  the end of a clip are padding. `sample_rate` [N], if it is there, must be that
  of the features. Frames of padding are 0 in all bands, by which a model knows
  them; in training so are frames that are masked.

  Attributes:
    num_outputs: Number of classes.
    features: Settings of the log-mel features.
    normalize: A name of `NORMALIZATIONS`.
    shift: Largest shift of a training clip, in samples.
    gain_db: Largest change of its level, in decibels.
    noise: A name of `augment_audio.NOISES`, or the path of a folder of audio
      files, whose samples become a constant of the compiled step.
    noise_probability: Share of the training clips that get noise.
    noise_snr_db: Lowest and highest ratio of a clip to its noise.
    time_masks: Number of stretches of frames that training masks.
    time_mask: Most frames of a stretch.
    band_masks: Number of stretches of bands that training masks.
    band_mask: Most bands of a stretch.
    label_smoothing: Label smoothing of the training loss; the evaluation loss
      is never smoothed.
    input_key: Name of the clips in the data.
    label_key: Name of the labels in the data.
    group_key: Name of the speakers in the data; "" where they are not known.
  """

  num_outputs: int
  features: LogMel = LogMel()
  normalize: str = "clip"
  shift: int = 0
  gain_db: float = 0.0
  noise: str = "none"
  noise_probability: float = 0.0
  noise_snr_db: tuple[float, float] = (0.0, 0.0)
  time_masks: int = 0
  time_mask: int = 0
  band_masks: int = 0
  band_mask: int = 0
  label_smoothing: float = 0.0
  input_key: str = "audio"
  label_key: str = "label"
  group_key: str = ""

  METRIC: ClassVar[Metric] = Metric("accuracy", "max", "%")
  KEYS: ClassVar[dict[str, keys.Key]] = {
    "sample_rate": keys.integer(16000, "samples of a second of audio", low=1),
    "window_ms": keys.number(30.0, "length of a window", above=0),
    "hop_ms": keys.number(10.0, "time between two frames", above=0),
    "fft_size": keys.integer(
      None, "samples of a Fourier transform; none: what holds a window", low=2
    ),
    "bands": keys.integer(40, "mel bands", low=1),
    "fmin": keys.number(20.0, "lowest frequency in Hz"),
    "fmax": keys.number(
      None, "highest frequency in Hz; none: half of the sample rate", above=0
    ),
    "floor": keys.number(1e-6, "smallest power of a band", above=0),
    "mel_scale": keys.text("slaney", "slaney or htk"),
    "mel_norm": keys.text("slaney", "slaney (unit area) or none (unit height)"),
    "normalize": keys.text("clip", "clip (mean 0, deviation 1) or none"),
    "shift_ms": keys.number(100.0, "largest time shift in training"),
    "gain_db": keys.number(0.0, "largest change of level in training"),
    "noise": keys.text(
      "none",
      "none, white, pink, clips (other clips) or a folder of audio files",
    ),
    "noise_probability": keys.number(
      0.8, "share of the training clips that get noise", high=1
    ),
    "noise_snr_db": keys.numbers(
      (5.0, 25.0),
      "lowest and highest ratio of a clip to its noise, in decibels",
      lambda ratio: len(ratio) == 2 and ratio[0] <= ratio[1],
      "two numbers, the lower one first",
    ),
    "time_masks": keys.integer(2, "stretches of frames masked in training"),
    "time_mask_ms": keys.number(250.0, "longest of these"),
    "band_masks": keys.integer(2, "stretches of bands masked in training"),
    "band_mask": keys.integer(7, "most bands of a stretch"),
    "label_smoothing": keys.number(
      0.0, "label smoothing of the training loss", below=1
    ),
  }

  @classmethod
  def create(cls, dataset: Any, **settings: Any) -> "KeywordSpotting":
    """Makes the task for a data set.

    Args:
      dataset: Data, as `ws_jax.data.load` returns them.
      **settings: Values of `KEYS`.

    Raises:
      ValueError: the data are no clips of classes, their sample rate is
        another, or the settings of the features do not fit each other.
    """
    settings = {name: key.default for name, key in cls.KEYS.items()} | settings
    info, rate = dataset.info, settings["sample_rate"]
    _check_data(dataset, rate)
    classification.check(dataset)
    names.lookup(NORMALIZATIONS, settings["normalize"], "normalization")
    if dataset.train or "/" not in settings["noise"]:
      _check_noise(settings["noise"])
    kept = {field.name for field in dataclasses.fields(cls)} & set(settings)
    return cls(
      num_outputs=info.num_classes,
      features=make_features(settings),
      shift=round(settings["shift_ms"] * rate / 1000),
      time_mask=round(settings["time_mask_ms"] / settings["hop_ms"]),
      input_key=info.input_key,
      label_key=info.label_key,
      group_key=info.group_key,
      **{name: settings[name] for name in kept},
    )

  def batch(
    self, arrays: Any, indices: jax.Array, key: jax.Array | None
  ) -> Batch:
    """Returns `inputs` [B, frames, bands] float32 and `labels` [B] int32.

    Without a key they are to be evaluated; then `groups` [B], the numbers of
    the speakers, come besides where they are known.
    """
    take = lambda name: jnp.take(arrays[name], indices, axis=0)
    audio = as_float(take(self.input_key))
    samples = audio.shape[1]
    length = take("length") if "length" in arrays else measure(audio)
    mask = spectrogram.frame_mask(length, samples, self.features)
    if key is None:
      batch = {"inputs": self._features(audio, mask)}
      if self.group_key in arrays:
        batch["groups"] = take(self.group_key)
    else:
      audio_key, mask_key = jax.random.split(key)
      audio = self._augment(audio_key, audio, length, arrays[self.input_key])
      masked = augment_audio.mask_features(
        mask_key,
        self._features(audio, mask),
        mask,
        time_masks=self.time_masks,
        most_frames=self.time_mask,
        band_masks=self.band_masks,
        most_bands=self.band_mask,
      )
      batch = {"inputs": masked}
    return batch | {"labels": take(self.label_key)}

  def preprocess(self, clips: jax.Array) -> jax.Array:
    """Returns features for clips as in the data, `[B, samples]`."""
    audio = as_float(clips)
    mask = spectrogram.frame_mask(measure(audio), audio.shape[1], self.features)
    return self._features(audio, mask)

  def _features(self, audio: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns features [B, frames, bands], 0 in frames of padding."""
    features = spectrogram.log_mel(audio, self.features)
    if self.normalize == "clip":
      return spectrogram.normalize_clips(features, mask)
    return features * mask[..., None]

  def _augment(
    self, key: jax.Array, audio: jax.Array, length: jax.Array, clips: jax.Array
  ) -> jax.Array:
    """Shifts clips, changes their level and adds noise."""
    shift_key, gain_key, make_key, add_key = jax.random.split(key, 4)
    audio = augment_audio.shift_time(shift_key, audio, length, self.shift)
    audio = augment_audio.change_gain(gain_key, audio, self.gain_db)
    if self.noise == "none":
      return audio
    if self.noise in augment_audio.NOISES:
      noise = augment_audio.make_noise(make_key, self.noise, clips, len(audio))
    else:
      recorded = audio_files.read_noise(
        pathlib.Path(self.noise).expanduser(), self.features.sample_rate
      )
      noise = augment_audio.cut_noise(
        make_key, jnp.asarray(recorded), *audio.shape
      )
    return augment_audio.add_noise(
      add_key,
      audio,
      length,
      noise,
      probability=self.noise_probability,
      snr_db=self.noise_snr_db,
    )

  def sums(
    self, outputs: jax.Array, batch: Batch, mask: jax.Array, training: bool
  ) -> dict[str, jax.Array]:
    """Sums the cross-entropy (nats) and the correct answers.

    Args:
      outputs: Logits [B, classes].
      batch: Batch of `batch`.
      mask: Weights [B], 1.0 for clips that count.
      training: Whether the labels are smoothed.
    """
    smoothing = self.label_smoothing if training else 0.0
    return classification.sums(outputs, batch["labels"], mask, smoothing)

  def answers(self, outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns label, answer and group of each example, int32 [3, B]."""
    return classification.answers(outputs, batch)


def as_float(audio: jax.Array) -> jax.Array:
  """Returns samples as float32 in [-1, 1].

  Example:
    >>> as_float(jnp.asarray([16384, -32768], jnp.int16)).tolist()
    [0.5, -1.0]
  """
  if jnp.issubdtype(audio.dtype, jnp.integer):
    return audio.astype(jnp.float32) / 32768
  return audio.astype(jnp.float32)


def measure(audio: jax.Array) -> jax.Array:
  """Returns the samples of each clip before the zeros at its end, int32 [B].

  Example:
    >>> measure(jnp.asarray([[0.0, 0.1, 0.0], [0.0, 0.0, 0.0]])).tolist()
    [2, 0]
  """
  number = jnp.arange(1, audio.shape[1] + 1, dtype=jnp.int32).reshape(1, -1)
  return jnp.max(jnp.where(audio != 0, number, 0), axis=1)


def make_features(settings: dict[str, Any]) -> LogMel:
  """Returns the settings of the features from the keys of the task.

  Raises:
    ValueError: they do not fit each other.
  """
  rate = settings["sample_rate"]
  window = max(1, round(settings["window_ms"] * rate / 1000))
  fft_size = settings["fft_size"]
  return LogMel(
    sample_rate=rate,
    window=window,
    hop=max(1, round(settings["hop_ms"] * rate / 1000)),
    fft_size=2 ** (window - 1).bit_length() if fft_size is None else fft_size,
    bands=settings["bands"],
    fmin=settings["fmin"],
    fmax=rate / 2 if settings["fmax"] is None else settings["fmax"],
    floor=settings["floor"],
    mel_scale=settings["mel_scale"],
    mel_norm=settings["mel_norm"],
  )


def _check_noise(noise: str) -> None:
  """Raises ValueError if `task.noise` is neither a kind nor a folder."""
  folder = pathlib.Path(noise).expanduser()
  if folder.is_dir() or "/" in noise:
    audio_files.list_noise(folder)
  else:
    names.lookup(augment_audio.NOISES, noise, "noise")


def _check_data(dataset: Any, rate: int) -> None:
  info = dataset.info
  if len(info.input_shape) != 1 or info.num_classes is None:
    raise ValueError(
      f"data set {info.name!r} has inputs {info.input_dtype}"
      f" {list(info.input_shape)}; keyword_spotting needs clips, int16"
      " [samples], with class numbers: prepare them by"
      " scripts/prepare_data.py --audio_folder=DIR --name=NAME"
    )
  rates = dataset.train.get("sample_rate")
  if rates is not None and set(rates.tolist()) != {rate}:
    own = int(rates[0])
    raise ValueError(
      f"clips of {info.name!r} have {own} samples a second, and"
      f" task.sample_rate is {rate}: set task.sample_rate={own}, or prepare the"
      f" clips again with --sample_rate={rate}"
    )
