"""Audio: files in, arrays out, and splits that share no clip."""

import logging
import math
import pathlib
import types
import wave

import numpy as np
import pytest

from ws_jax import data
from ws_jax.base import extras
from ws_jax.data import audio, audio_files, audio_folder, audio_prepare

RATE = 8000


def tone(hertz, samples=400, rate=RATE, channels=1):
  """Returns a tone as int16 `[samples, channels]`; channels differ in level."""
  time = np.arange(samples) / rate
  one = 8000 * np.sin(2 * np.pi * hertz * time)
  levels = np.arange(1, channels + 1)
  return np.round(one[:, None] * levels).astype(np.int16)


def write_wav(path, samples, rate=RATE):
  path.parent.mkdir(parents=True, exist_ok=True)
  with wave.open(str(path), "wb") as file:
    file.setnchannels(samples.shape[1])
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes(samples.tobytes())


@pytest.fixture
def folder(tmp_path):
  """Two words by five speakers, two takes each, one tone a speaker."""
  pytest.importorskip("soundfile")
  for word in ("up", "down"):
    for number, speaker in enumerate("abcde"):
      for take in (1, 2):
        hertz = 200 + 100 * number + 10 * take
        write_wav(tmp_path / f"in/{word}/{speaker}_{take}.wav", tone(hertz))
  return tmp_path / "in"


def prepare(folder, name="words", **settings):
  return audio_prepare.prepare_folder(
    folder, name, data_dir=folder.parent / "sets", **settings
  )


def by_csv(folder, header="file,class\n", prefix=""):
  for split, speakers in (("train", "abc"), ("val", "d"), ("test", "e")):
    lines = [
      f"{prefix}{word}/{speaker}_{take}.wav,{word}\n"
      for word in ("up", "down")
      for speaker in speakers
      for take in (1, 2)
    ]
    (folder / f"{split}.csv").write_text(header + "".join(lines))


def load(folder, name="words", **settings):
  request = data.Request(name, dir=str(folder.parent / "sets"), **settings)
  return data.load(request)


def test_a_folder_with_csv_splits_comes_back_as_arrays(folder):
  by_csv(folder)
  said = prepare(folder)
  assert "12 train, 4 val, 4 test clips of 0.05 s at 8000 Hz" in said
  assert "2 classes, speakers 3 + 1 + 1, none in two splits" in said
  dataset = load(folder)
  assert dataset.info.classes == ("down", "up")
  assert dataset.info.input_shape == (400,)
  assert (dataset.info.train_size, dataset.info.eval_size) == (12, 4)
  assert {k: (v.shape, str(v.dtype)) for k, v in dataset.train.items()} == {
    "audio": ((12, 400), "int16"),
    "label": ((12,), "int32"),
    "length": ((12,), "int32"),
    "speaker": ((12,), "int32"),
    "sample_rate": ((12,), "int32"),
  }
  # Every clip is the tone of its speaker and take, whatever its place.
  for split in (dataset.train, dataset.test):
    for clip, speaker in zip(split["audio"], split["speaker"], strict=True):
      tones = [tone(200 + 100 * speaker + 10 * take)[:, 0] for take in (1, 2)]
      assert any(np.array_equal(clip, one) for one in tones)
  assert set(dataset.test["speaker"].tolist()) == {4}
  assert load(folder, eval_split="val").info.eval_size == 4
  assert load(folder, train_split="train[:50%]").info.train_size == 6


@pytest.mark.parametrize("header", ["file,class\n", "path,label\n", ""])
@pytest.mark.parametrize("prefix", ["", "./", "dataset/"])
def test_csv_files_of_several_forms_list_the_same(folder, header, prefix):
  by_csv(folder, header, prefix)
  files = audio_folder.list_folder(folder)
  assert len(files) == 20
  assert {(file.split, file.speaker) for file in files} == {
    *(("train", speaker) for speaker in "abc"),
    ("val", "d"),
    ("test", "e"),
  }
  assert all(file.path.startswith(f"{file.label}/") for file in files)


def test_clips_are_not_sorted_by_class(folder):
  by_csv(folder)
  labels = [file.label for file in audio_folder.list_folder(folder)][:12]
  assert labels not in (sorted(labels), sorted(labels, reverse=True))


def test_the_lists_of_speech_commands_are_splits(folder):
  (folder / "validation_list.txt").write_text("up/a_1.wav\n")
  (folder / "testing_list.txt").write_text("up/b_1.wav\ndown/b_2.wav\n")
  (folder / "_background_noise_").mkdir()
  write_wav(folder / "_background_noise_/pink.wav", tone(50))
  said = prepare(folder)
  assert "17 train, 1 val, 2 test clips" in said
  assert "speakers 5 + 1 + 1, 2 of them in two splits" in said


def test_splits_of_speakers_share_none(folder):
  pattern = r"/(\w)_"
  files = audio_folder.list_folder(folder, speaker=pattern)
  by_split = {}
  for file in files:
    by_split.setdefault(file.split, set()).add(file.speaker)
  assert {split: len(names) for split, names in by_split.items()} == {
    "train": 3,
    "val": 1,
    "test": 1,
  }
  assert set.union(*by_split.values()) == set("abcde")
  chosen = audio_folder.list_folder(
    folder, speaker=pattern, test_speakers=["b", "c"]
  )
  assert {file.speaker for file in chosen if file.split == "test"} == {"b", "c"}
  assert {file.split for file in chosen} == {"train", "test"}


def test_one_speaker_can_be_left_out(folder):
  by_csv(folder)
  prepare(folder)
  dataset = load(folder, train_split="without-b", eval_split="only-b")
  assert set(dataset.train["speaker"].tolist()) == {0, 2, 3, 4}
  assert set(dataset.test["speaker"].tolist()) == {1}
  with pytest.raises(data.DataError, match="did you mean 'only-b'"):
    load(folder, train_split="train", eval_split="only-bb")
  with pytest.raises(data.DataError, match="4 clips in common"):
    load(folder, train_split="train", eval_split="only-b")


def test_a_set_of_one_split_says_how_to_leave_a_speaker_out(tmp_path):
  clips = made_up(split=np.zeros(4, np.int32), splits=("train",))
  audio.write(tmp_path / "digits", clips, "")
  with pytest.raises(data.DataError, match="eval_split=only-ann_b"):
    data.read_info(data.Request("digits", dir=str(tmp_path)))
  request = data.Request("digits", str(tmp_path), "without-ann_b", "only-ann_b")
  assert data.load(request).info.eval_size == 2


def made_up(**change):
  fields = {
    "audio": np.arange(40, dtype=np.int16).reshape(4, 10),
    "length": np.full(4, 10, np.int32),
    "label": np.array([0, 1, 0, 1], np.int32),
    "speaker": np.array([0, 1, 0, 1], np.int32),
    "split": np.array([0, 0, 1, 1], np.int32),
    "classes": ("a", "b"),
    "speakers": ("ann b", "bob"),
    "splits": ("train", "test"),
    "sample_rate": RATE,
  }
  return audio.Clips(**fields | change)


def test_what_is_written_is_read(tmp_path):
  clips = made_up()
  audio.write(tmp_path / "set", clips, "state")
  assert audio.fingerprint(tmp_path / "set") == "state"
  got = vars(audio.read(tmp_path / "set"))
  assert list(got) == list(vars(clips))
  for name, value in vars(clips).items():
    np.testing.assert_array_equal(got[name], value)


def test_a_path_works_as_well_as_a_name(tmp_path):
  audio.write(tmp_path / "set", made_up(), "")
  for request in (
    data.Request("set", dir=str(tmp_path)),
    data.Request(str(tmp_path / "set")),
    data.Request(tmp_path / "set"),
  ):
    dataset = data.load(request)
    np.testing.assert_array_equal(dataset.test["audio"], made_up().audio[2:])


def test_a_damaged_file_is_named(tmp_path):
  audio.write(tmp_path / "set", made_up(), "")
  file = tmp_path / "set" / audio.FILE_NAME
  file.write_bytes(file.read_bytes()[:-200])
  with pytest.raises(data.DataError, match="prepare it again"):
    data.read_info(data.Request("set", dir=str(tmp_path)))


def test_audio_that_is_not_prepared_names_the_command(folder, tmp_path):
  with pytest.raises(data.DataError, match="prepare_data.py --audio_folder="):
    data.read_info(data.Request(str(folder)))
  request = data.Request("arabic_speech_commands", dir=str(tmp_path))
  with pytest.raises(data.DataError, match="--name=arabic_speech_commands"):
    data.read_info(request)


def test_a_set_of_tfds_with_audio_names_the_command(tmp_path):
  version = tmp_path / "spoken_digit" / "1.0.9"
  version.mkdir(parents=True)
  (version / "dataset_info.json").write_text("{}")
  (version / "features.json").write_text(
    '{"audio": {"pythonClassName": "x.features.audio_feature.Audio"}}'
  )
  with pytest.raises(data.DataError, match="prepare_data.py spoken_digit"):
    data.read_info(data.Request("spoken_digit", dir=str(tmp_path)))


def test_nothing_is_decoded_twice(folder, monkeypatch):
  by_csv(folder)
  prepare(folder)
  monkeypatch.setattr(audio_files, "read_clip", None)
  assert "is there already" in prepare(folder)


def test_a_changed_file_or_setting_is_decoded_again(folder):
  by_csv(folder)
  prepare(folder)
  write_wav(folder / "up/a_1.wav", tone(900, samples=500))
  assert "is ready" in prepare(folder)
  assert load(folder).train["audio"].shape == (12, 500)
  assert "is ready" in prepare(folder, seconds=0.03)
  assert load(folder).train["audio"].shape == (12, 240)


def test_clips_are_padded_with_zeros_and_cut_to_their_middle(folder, caplog):
  by_csv(folder)
  write_wav(folder / "up/e_1.wav", tone(700, samples=100))
  write_wav(folder / "up/e_2.wav", tone(700, samples=600))
  with caplog.at_level(logging.WARNING, logger="absl"):
    prepare(folder, seconds=0.05)
  test = load(folder).test
  assert sorted(test["length"].tolist()) == [100, 400, 400, 400]
  short = test["audio"][test["length"] == 100][0]
  np.testing.assert_array_equal(short[:100], tone(700, samples=100)[:, 0])
  assert not short[100:].any()
  middle = tone(700, samples=600)[100:500, 0]
  assert any(np.array_equal(clip, middle) for clip in test["audio"])
  said = [record.getMessage() for record in caplog.records]
  assert sum("cut 1 clips" in line for line in said) == 1
  assert sum("padded 1 clips" in line for line in said) == 1


def test_other_rates_are_resampled_and_told_of_once(folder, caplog):
  by_csv(folder)
  for name in ("up/e_1.wav", "down/e_1.wav"):
    write_wav(folder / name, tone(700, samples=800, rate=16000), rate=16000)
  with caplog.at_level(logging.WARNING, logger="absl"):
    prepare(folder)  # 8000 Hz, as most clips have.
  said = [record.getMessage() for record in caplog.records]
  assert [line for line in said if "resampled" in line] == [
    "resampled 2 clips of 16000 Hz to 8000 Hz"
  ]
  test = load(folder).test
  assert (test["length"] == 400).all()
  assert (test["sample_rate"] == 8000).all()
  expected = tone(700)[50:350, 0].astype(float)
  errors = [
    np.abs(clip[50:350] - expected).max() / 8000 for clip in test["audio"]
  ]
  assert sorted(errors)[1] < 0.02  # Both, but for the ends of the filter.


def test_several_channels_become_their_mean(tmp_path):
  pytest.importorskip("soundfile")
  write_wav(tmp_path / "a.wav", tone(300, channels=2))
  got = audio_files.read_clip(tmp_path / "a.wav", RATE)
  expected = tone(300, channels=2).mean(1)
  np.testing.assert_allclose(got, expected, atol=0.5)


def test_sixteen_bits_pass_unchanged(tmp_path):
  pytest.importorskip("soundfile")
  values = np.arange(-32768, 32768, dtype=np.int16)[:, None]
  write_wav(tmp_path / "a.wav", values)
  got = audio_files.read_clip(tmp_path / "a.wav", RATE)
  np.testing.assert_array_equal(got, values[:, 0])


@pytest.mark.parametrize("samples", [400, 900])
def test_one_file_is_read_as_a_model_takes_it(tmp_path, samples):
  pytest.importorskip("soundfile")
  write_wav(tmp_path / "a.wav", tone(300, samples=samples))
  got = audio_files.read_input(tmp_path / "a.wav", RATE, 600)
  whole = tone(300, samples=samples)[:, 0]
  expected = whole[150:750] if samples > 600 else np.pad(whole, (0, 200))
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", ["flac", "ogg", "opus"])
def test_other_formats_are_read(tmp_path, kind):
  soundfile = pytest.importorskip("soundfile")
  path = tmp_path / f"a.{kind}"
  samples = tone(500, samples=4000)[:, 0]
  how = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
  soundfile.write(path, samples, RATE, **how)
  got = audio_files.read_clip(path, RATE).astype(float)
  assert len(got) == pytest.approx(4000, abs=100)
  middle = got[1000:3000], samples[1000:3000]
  assert np.corrcoef(*middle)[0, 1] > (0.999 if kind == "flac" else 0.8)


def test_what_is_not_decoded_as_zero_to_one_is_clipped():
  got = audio_files.to_int16(np.array([1.0, 1.2, -1.2, math.nextafter(1, 0)]))
  assert got.tolist() == [32767, 32767, -32768, 32767]


def break_file(path):
  path.write_bytes(b"no audio")


def test_noise_is_all_recordings_of_a_folder_at_one_rate(tmp_path):
  pytest.importorskip("soundfile")
  write_wav(tmp_path / "b.wav", tone(300, 160))
  write_wav(tmp_path / "a.wav", tone(200, 400, 2 * RATE), 2 * RATE)
  (tmp_path / "README.md").write_text("no audio")
  noise = audio_files.read_noise(tmp_path, RATE)
  assert noise.dtype == np.int16
  assert noise.shape == (200 + 160,)  # In the order of their names.
  np.testing.assert_array_equal(noise[200:], tone(300, 160)[:, 0])


def test_noise_that_cannot_be_had_says_why(tmp_path, monkeypatch):
  pytest.importorskip("soundfile")
  with pytest.raises(data.DataError, match="there is no folder .*/none"):
    audio_files.read_noise(tmp_path / "none", RATE)
  with pytest.raises(data.DataError, match="holds no audio file"):
    audio_files.read_noise(tmp_path, RATE)
  write_wav(tmp_path / "a.wav", tone(200))
  monkeypatch.setattr(audio_files, "NOISE_SECONDS", 0.01)
  with pytest.raises(data.DataError, match="choose fewer files"):
    audio_files.read_noise(tmp_path, RATE)


def test_a_broken_file_is_an_error_that_names_it(folder):
  by_csv(folder)
  break_file(folder / "up/c_1.wav")
  with pytest.raises(data.DataError, match=r"up/c_1.wav cannot be read"):
    prepare(folder)
  assert not (folder.parent / "sets").exists()


def test_a_broken_file_is_left_out_on_request(folder, caplog):
  by_csv(folder)
  break_file(folder / "up/c_1.wav")
  write_wav(folder / "up/c_2.wav", tone(1, samples=0))  # Holds nothing.
  with caplog.at_level(logging.WARNING, logger="absl"):
    said = prepare(folder, skip_unreadable=True)
  assert "10 train, 4 val, 4 test clips" in said
  named = [
    record.getMessage()
    for record in caplog.records
    if "left out" in record.getMessage()
  ]
  assert len(named) == 2
  assert any("up/c_1.wav" in line for line in named)
  assert any("up/c_2.wav" in line for line in named)


def no_layout(folder):
  return {}


def unknown_speaker(folder):
  return {"speaker": r"/(\w)_", "test_speakers": ["f"]}


def nobody_left(folder):
  return {"speaker": r"/(\w)_", "test_speakers": list("abcde")}


def bad_pattern(folder):
  by_csv(folder)
  return {"speaker": r"/(\w"}


def no_group(folder):
  by_csv(folder)
  return {"speaker": r"/\w_"}


def misfit(folder):
  by_csv(folder)
  return {"speaker": r"/([abcd])_"}


def missing_file(folder):
  by_csv(folder)
  (folder / "up/e_1.wav").unlink()
  return {}


def twice(folder):
  by_csv(folder)
  with open(folder / "val.csv", "a") as file:
    file.write("up/a_1.wav,up\n")
  return {}


def way_out(folder):
  by_csv(folder)
  write_wav(folder.parent / "secret_1.wav", tone(100))
  with open(folder / "val.csv", "a") as file:
    file.write("../secret_1.wav,up\n")
  return {}


def other_columns(folder):
  by_csv(folder, header="uttid,word\n")
  return {}


def bad_name(folder):
  by_csv(folder)
  return {"name": "../words"}


def taken_name(folder):
  by_csv(folder)
  (folder.parent / "sets/words/1.0.0").mkdir(parents=True)
  return {}


@pytest.mark.parametrize(
  ("spoil", "said"),
  [
    (no_layout, "--speaker"),
    (unknown_speaker, "no speaker 'f'"),
    (nobody_left, "none is left to train on"),
    (bad_pattern, "speaker pattern"),
    (no_group, "needed is one"),
    (misfit, "does not fit (up|down)/e_"),
    (missing_file, "there is no file .*up/e_1.wav"),
    (twice, "is in train.csv, too"),
    (way_out, "there is no file"),
    (other_columns, "the columns are uttid, word"),
    (bad_name, "must be letters"),
    (taken_name, "holds another data set"),
  ],
)
def test_a_folder_that_cannot_be_prepared_says_why(folder, spoil, said):
  settings = spoil(folder)
  with pytest.raises(data.DataError, match=said):
    prepare(folder, **settings)


def test_a_missing_library_names_the_command(folder, monkeypatch):
  by_csv(folder)
  monkeypatch.setitem(extras.MODULES, "audio", ("no_such_module",))
  with pytest.raises(extras.MissingExtra, match=r"ws_jax\[audio\]"):
    prepare(folder)


class Audio:
  sample_rate = RATE


class ClassLabel:
  names = ("zero", "one")


class Text:
  pass


def builder(**features):
  """Returns what TFDS would, which needs TensorFlow for it."""
  clips = [tone(300, samples=100 + 10 * i)[:, 0].astype(int) for i in range(4)]
  examples = [
    {
      "audio": clip,
      "label": i % 2,
      "audio/filename": f"{i % 2}_{'ann' if i < 3 else 'bob'}_{i}.wav".encode(),
    }
    for i, clip in enumerate(clips)
  ]
  usual = {"audio": Audio(), "label": ClassLabel(), "audio/filename": Text()}
  info = types.SimpleNamespace(
    name="spoken_digit",
    full_name="spoken_digit/1.0.9",
    splits={"train": None},
    features=usual | features,
  )
  return types.SimpleNamespace(info=info, as_data_source=lambda split: examples)


def test_a_set_of_tfds_is_decoded_with_its_speakers(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds, "builder_from_directory", lambda _: builder())
  said = audio_prepare.prepare_set(tmp_path)
  assert "4 train clips of 0.02 s at 8000 Hz, 2 classes, 2 speakers" in said
  clips = audio.read(tmp_path)
  assert clips.speakers == ("ann", "bob")
  assert clips.speaker.tolist() == [0, 0, 0, 1]
  assert clips.label.tolist() == [0, 1, 0, 1]
  assert clips.classes == ("zero", "one")
  assert clips.length.tolist() == [100, 110, 120, 130]
  np.testing.assert_array_equal(
    clips.audio[1, :110], tone(300, samples=110)[:, 0]
  )
  assert "is there already" in audio_prepare.prepare_set(tmp_path)


def test_a_set_of_tfds_without_one_clip_each_is_refused(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  two = lambda _: builder(other=Audio())
  monkeypatch.setattr(tfds, "builder_from_directory", two)
  with pytest.raises(data.DataError, match="not a set of audio clips"):
    audio_prepare.prepare_set(pathlib.Path(tmp_path))
