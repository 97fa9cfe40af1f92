"""Keyword spotting from a folder of audio files to an accuracy."""

import json
import types
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import config as config_lib
from ws_jax import data, tasks, train
from ws_jax.data import audio, audio_prepare
from ws_jax.train import build, predictions

RATE, SAMPLES = 4000, 1200
TINY = {
  "task.sample_rate": RATE,
  "task.bands": 12,
  "task.window_ms": 32.0,
  "task.hop_ms": 16.0,
  "task.shift_ms": 20.0,
  "task.time_mask_ms": 50.0,
  "task.band_mask": 2,
}
SETTINGS = {name.partition(".")[2]: value for name, value in TINY.items()}


def made_up(clips=12, seed=0):
  """Returns arrays as `ws_jax.data.load` does: two tones, in some noise."""
  rng = np.random.default_rng(seed)
  label = (np.arange(clips) % 2).astype(np.int32)
  length = rng.integers(SAMPLES // 2, SAMPLES + 1, clips).astype(np.int32)
  time = np.arange(SAMPLES) / RATE
  tones = np.sin(2 * np.pi * (400 + 800 * label[:, None]) * time)
  clip = 8000 * tones + 500 * rng.normal(size=tones.shape)
  clip *= np.arange(SAMPLES) < length[:, None]
  return {
    "audio": clip.astype(np.int16),
    "label": label,
    "length": length,
    "sample_rate": np.full(clips, RATE, np.int32),
  }


def dataset(**change):
  arrays = made_up() | change
  return data.Dataset(
    data.Info("tones", "audio", "label", 12, 12, (SAMPLES,), "int16", 2),
    train=arrays,
    test=arrays,
  )


def task(**settings):
  return tasks.create("keyword_spotting", dataset(), **SETTINGS | settings)


INDICES = np.array([3, 1, 8, 0], np.int32)


def test_a_batch_is_normalized_features_and_labels():
  arrays = made_up()
  batch = task().batch(arrays, INDICES, None)
  frames = 1 + SAMPLES // 64
  assert batch["inputs"].shape == (4, frames, 12)
  assert batch["inputs"].dtype == jnp.float32
  np.testing.assert_array_equal(batch["labels"], arrays["label"][INDICES])
  for clip, length in zip(
    batch["inputs"], arrays["length"][INDICES], strict=True
  ):
    heard = 1 + length // 64
    assert not np.asarray(clip[heard:]).any()
    assert np.asarray(clip[:heard]).any(1).all()
    np.testing.assert_allclose(clip[:heard].mean(), 0, atol=1e-4)
    np.testing.assert_allclose(clip[:heard].std(), 1, atol=1e-2)


def test_without_lengths_zeros_at_the_end_are_padding():
  arrays = made_up()
  bare = {name: arrays[name] for name in ("audio", "label")}
  ours, given = task(), task().batch(arrays, INDICES, None)["inputs"]
  got = ours.batch(bare, INDICES, None)["inputs"]
  np.testing.assert_array_equal(got, given)
  silent = bare | {"audio": np.zeros_like(arrays["audio"])}
  assert not np.asarray(ours.batch(silent, INDICES, None)["inputs"]).any()


def test_float_clips_are_those_of_sixteen_bits():
  arrays = made_up()
  floats = arrays | {"audio": (arrays["audio"] / 32768).astype(np.float32)}
  one, other = (task().batch(x, INDICES, None) for x in (arrays, floats))
  np.testing.assert_allclose(one["inputs"], other["inputs"], atol=1e-5)


@pytest.mark.parametrize("noise", ["none", "white", "pink", "clips"])
def test_a_key_augments_and_no_key_does_not(noise):
  arrays = made_up()
  ours = task(noise=noise, gain_db=3.0, noise_probability=1.0)
  plain, again, first, second = (
    np.asarray(ours.batch(arrays, INDICES, key)["inputs"])
    for key in (None, None, jax.random.key(0), jax.random.key(1))
  )
  np.testing.assert_array_equal(plain, again)
  assert np.isfinite(first).all()
  for augmented in (first, second):
    assert all(
      not np.array_equal(a, b) for a, b in zip(plain, augmented, strict=True)
    )
  assert not np.array_equal(first, second)
  assert not first[plain.any(2) == 0].any()  # Padding stays padding.


def test_noise_comes_from_the_files_of_a_folder(tmp_path):
  pytest.importorskip("soundfile")
  write_wav(tmp_path / "hiss.wav", np.full(2 * SAMPLES, 9000))
  arrays, key = made_up(), jax.random.key(0)
  still = {"shift_ms": 0.0, "time_masks": 0, "band_masks": 0}
  plain = task(**still).batch(arrays, INDICES, key)["inputs"]
  ours = task(**still, noise=str(tmp_path), noise_probability=1.0)
  noisy = ours.batch(arrays, INDICES, key)["inputs"]
  # A constant is power at the lowest frequencies alone.
  change = np.abs(np.asarray(noisy - plain)).mean((0, 1))
  assert change[0] > 0.1
  calm = ours.batch(arrays, INDICES, None)["inputs"]
  np.testing.assert_array_equal(calm, plain)


def test_augmentation_of_no_strength_is_none_at_all():
  arrays = made_up()
  still = task(
    shift_ms=0.0, gain_db=0.0, noise="none", time_masks=0, band_masks=0
  )
  plain, augmented = (
    still.batch(arrays, INDICES, key)["inputs"]
    for key in (None, jax.random.key(0))
  )
  np.testing.assert_array_equal(plain, augmented)


@pytest.mark.parametrize("training", [False, True])
def test_sums_against_float64(training):
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 3, (6, 5)).astype(np.float32)
  labels = rng.integers(0, 5, 6)
  mask = np.array([1, 1, 0, 1, 0, 1], np.float32)
  sums = task(label_smoothing=0.2).sums(
    logits, {"labels": labels}, mask, training
  )
  smoothing = 0.2 if training else 0.0
  targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
  wide = logits.astype(np.float64)
  scores = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
  losses = -(targets * scores).sum(-1)
  assert float(sums["loss"]) == pytest.approx((mask * losses).sum(), rel=1e-5)
  right = (wide.argmax(-1) == labels) * mask
  assert float(sums["accuracy"]) == right.sum()
  assert float(sums["count"]) == 4


def test_a_task_is_a_hashable_value():
  assert task() == task()
  assert hash(task()) == hash(task())
  assert task() != task(bands=13)
  assert task().num_outputs == 2


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"sample_rate": 8000}, "set task.sample_rate=4000"),
    ({"fmax": 3000.0}, "half of the sample rate"),
    ({"fft_size": 64}, "does not fit a Fourier transform of 64"),
    ({"bands": 200}, "holds no frequency"),
    ({"normalize": "clips"}, "did you mean 'clip'"),
    ({"noise": "whit"}, "did you mean 'white'"),
    ({"noise": "no/such"}, "there is no folder .*no/such"),
    ({"mel_norm": "slany"}, "did you mean 'slaney'"),
  ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
  with pytest.raises(ValueError, match=said):
    task(**settings)


def test_images_are_no_clips():
  images = types.SimpleNamespace(
    info=data.Info("x", "image", "label", 1, 1, (28, 28, 1), "uint8", 10),
    train={},
  )
  with pytest.raises(ValueError, match="needs clips, int16"):
    tasks.create("keyword_spotting", images)


def test_the_window_of_the_papers_is_the_default():
  keys = tasks.keys("keyword_spotting")
  settings = {name: key.default for name, key in keys.items()}
  features = tasks.speech.make_features(settings)
  assert (features.window, features.hop, features.fft_size) == (480, 160, 512)
  assert features.num_frames(16000) == 101


def prepared(folder, name, **change):
  """Writes a prepared folder that a config can load."""
  arrays = made_up(24)
  fields = {
    "speaker": np.arange(24, dtype=np.int32) % 3,
    "split": (np.arange(24) % 3 == 2).astype(np.int32),
    "classes": ("low", "high"),
    "speakers": ("jackson", "george", "theo"),
    "splits": ("train", "test"),
    "sample_rate": RATE,
  }
  given = {name: arrays[name] for name in ("audio", "label", "length")}
  audio.write(folder / name, audio.Clips(**given | fields | change), "")


@pytest.mark.parametrize(
  ("name", "arms"),
  [
    ("arabic_speech_commands", ("", "norm=batch,ws=false", "ws=false")),
    ("arabic_speech_commands", ("model=res15,num_groups=9",)),
    (
      "arabic_speech_commands",
      ("model=tc_resnet14", "model=ds_cnn_s,bands=10,window_ms=40,hop_ms=20"),
    ),
    ("speech_commands", ("", "norm=batch,ws=false")),
    ("spoken_digit", ("", "norm=batch,ws=false")),
  ],
)
def test_each_config_and_arm_of_its_docstring_can_be_set_up(
  tmp_path, name, arms
):
  prepared(tmp_path, name)
  for arm in arms:
    config = config_lib.load(f"configs/{name}.py:{arm}")
    config_lib.apply(
      config,
      {
        "data.dir": str(tmp_path),
        "task.sample_rate": RATE,
        "task.bands": 10,
      },
    )
    # It traces a step of the whole batch: with two examples BN was refused,
    # whose normalization batch is the whole one.
    setup = build.start(config)
    assert setup.program.task.num_outputs == 2


def write_wav(path, clip):
  with wave.open(str(path), "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(RATE)
    file.writeframes(clip.astype(np.int16).tobytes())


def write_folder(folder):
  """Writes audio files of a low and a high tone by five speakers."""
  rng = np.random.default_rng(2)
  for word, hertz in (("low", 400), ("high", 1200)):
    (folder / word).mkdir(parents=True)
    for speaker in "abcde":
      for take in range(2):
        time = np.arange(rng.integers(800, SAMPLES)) / RATE
        clip = 8000 * np.sin(2 * np.pi * hertz * time + ord(speaker))
        write_wav(folder / word / f"{speaker}_{take}.wav", clip)


@pytest.mark.slow
def test_two_tones_in_a_folder_of_audio_are_learnt(tmp_path):
  pytest.importorskip("soundfile")
  write_folder(tmp_path / "words")
  audio_prepare.prepare_folder(
    tmp_path / "words", "tones", data_dir=tmp_path, speaker=r"/(\w)_"
  )
  config = config_lib.load("configs/arabic_speech_commands.py:width=0.5")
  config_lib.apply(
    config,
    TINY
    | {
      "data.name": "tones",
      "data.dir": str(tmp_path),
      "data.batch_size": 8,
      "data.eval_batch_size": 4,
      "model.num_groups": 4,
      "optim.micro_batch_size": 4,
      "task.noise": "pink",
      "train.steps": 12,
    },
  )
  metrics = train.train_and_evaluate(config, tmp_path / "run")
  assert metrics["eval/accuracy"] == 1.0
  status = json.loads((tmp_path / "run/status.json").read_text())
  assert status["status"] == "done"
  # All that is needed for a confusion matrix and the accuracy of a speaker.
  kept = predictions.read(tmp_path / "run")
  assert kept.confusion.tolist() == [[2, 0], [0, 2]]
  assert kept.classes == ("high", "low")
  assert kept.group_key == "speaker"
  assert len(kept.by_group) == 1 and [*kept.by_group.values()] == [(4, 4)]
  run = train.load_run(tmp_path / "run")
  again, answers = run.answer([("data.eval_split", "train")])
  assert sum(count for _, count in answers.by_group.values()) == 12
  right = sum(right for right, _ in answers.by_group.values())
  assert again["accuracy"] == pytest.approx(right / 12)
  clips = data.load(data.Request("tones", dir=str(tmp_path))).test
  np.testing.assert_array_equal(
    run.predict(clips["audio"]).argmax(-1), clips["label"]
  )
