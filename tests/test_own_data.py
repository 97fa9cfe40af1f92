"""Users' own data: a file of arrays, a folder of images, a Python object.

Every file here is a real one, and every broken file is broken on disk.
"""

import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import numpy as np
import PIL.Image
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from ws_jax import data
from ws_jax.data import cache, images, npz, request, splits

ROOT = pathlib.Path(__file__).parents[1]


def _refused(name, **keys):
  """Returns the one line that both `read_info` and `load` refuse with."""
  lines = set()
  for function in (data.read_info, data.load):
    with pytest.raises(data.DataError) as caught:
      function(data.Request(name, **keys))
    lines.add(str(caught.value))
  (line,) = lines
  assert "\n" not in line
  return line


def _digits(size, seed=0, shape=(6, 5, 3)):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
  return images, np.arange(size) % 4


def _arrays(**changed):
  (train_x, train_y), (test_x, test_y) = _digits(12), _digits(8, seed=1)
  content = {
    "train_x": train_x,
    "train_y": train_y,
    "test_x": test_x,
    "test_y": test_y,
  }
  content |= changed
  return {key: array for key, array in content.items() if array is not None}


@pytest.fixture
def warnings(monkeypatch):
  """Collects what is logged as a warning."""
  lines = []
  monkeypatch.setattr(
    logging, "warning", lambda text, *values: lines.append(text % values)
  )
  return lines


# Splits and slices, whatever the source.

_bounds = st.one_of(
  st.just(""),
  st.integers(-40, 40).map(str),
)
_percents = st.one_of(
  st.just(""),
  st.integers(-100, 100).map("{}%".format),
  st.sampled_from(["12.5%", "-33.3%", "0.5%", "66.67%"]),
)


@settings(max_examples=300, deadline=None)
@given(
  st.one_of(st.tuples(_bounds, _bounds), st.tuples(_percents, _percents)),
  st.integers(1, 40),
)
def test_slices_are_those_of_tfds(bounds, size):
  import tensorflow_datasets as tfds

  text = f"train[{bounds[0]}:{bounds[1]}]"
  if text == "train[:]":  # TFDS refuses it.
    return
  infos = {"train": types.SimpleNamespace(num_examples=size)}
  try:
    (theirs,) = tfds.core.ReadInstruction.from_spec(text).to_absolute(infos)
    expected = range(size)[theirs.from_ : theirs.to]
  except ValueError:  # Beyond the split.
    expected = range(0)
  wanted = data.Request("x", train_split=text)
  sizes = {"train": size, "test": 1}
  try:
    found, _ = splits.ranges(wanted, ("train", "test"), sizes)
  except data.DataError:
    found = range(0)
  assert found == expected


def test_a_slice_of_the_training_set_is_held_out(tmp_path):
  path = tmp_path / "mine.npz"
  np.savez(path, **_arrays())
  held_out = data.Request(
    path, train_split="train[:75%]", eval_split="train[75%:]"
  )
  info, dataset = data.read_info(held_out), data.load(held_out)
  assert (info.train_size, info.eval_size) == (9, 3)
  assert dataset.info == info
  x, y = _digits(12)
  np.testing.assert_array_equal(dataset.train["x"], x[:9])
  np.testing.assert_array_equal(dataset.test["x"], x[9:])
  np.testing.assert_array_equal(dataset.test["y"], y[9:])
  # What is held out must not reach training through the statistics either.
  scaled = x[:9].astype(np.float64).reshape(-1, 3) / 255
  np.testing.assert_allclose(dataset.mean, scaled.mean(0), rtol=1e-12)
  np.testing.assert_allclose(dataset.std, scaled.std(0), rtol=1e-9)


@pytest.mark.parametrize(
  ("train", "test", "message"),
  [
    ("train[:80%]", "train[75%:]", "share 1 examples"),
    ("train", "train", "share 12 examples"),
    ("train", "train[6:]", "share 6 examples"),
    ("train[:13]", None, "'13' is beyond the 12 examples"),
    ("train[-200%:]", None, "'-200%' is beyond the 12 examples"),
    ("train[6:6]", None, "is empty: it runs from 6 to 6 of the 12"),
    ("train[:1%]", None, "is empty"),
    ("train[3:50%]", None, "mixes examples and percent"),
    ("train[a:]", None, "'a' must be a number of examples or a percentage"),
    ("train[:1.5]", None, "'1.5' must be"),
    ("train[3]", None, "must be the name of a split or a slice of one"),
    ("train+test", None, "must be the name of a split or a slice of one"),
    ("tarin", None, "no split 'tarin': did you mean 'train'? Known: test, tr"),
    (None, "valid", "no split 'valid'"),
  ],
)
def test_a_split_that_cannot_be_is_one_line(tmp_path, train, test, message):
  path = tmp_path / "mine.npz"
  np.savez(path, **_arrays())
  line = _refused(str(path), train_split=train, eval_split=test)
  assert message in line


def test_slices_are_one_mechanism_for_every_source(tmp_path):
  keys = {"train_split": "train[2:]", "eval_split": "train[:2]"}
  np.savez(tmp_path / "mine.npz", **_arrays())
  _write_folder(tmp_path / "pets")
  values = types.SimpleNamespace(train=_digits(12))
  for name in (tmp_path / "mine.npz", tmp_path / "pets", values):
    dataset = data.load(data.Request(name, **keys))
    whole = data.load(
      data.Request(
        name, train_split="train[:-1]", **{"eval_split": "train[-1:]"}
      )
    )
    key = dataset.info.input_key
    np.testing.assert_array_equal(dataset.test[key], whole.train[key][:2])
    np.testing.assert_array_equal(dataset.train[key][:-1], whole.train[key][2:])


def test_a_slice_without_some_classes_is_said(tmp_path, warnings):
  x, y = _digits(12)
  np.savez(tmp_path / "sorted.npz", train_x=x, train_y=np.sort(y))
  keys = {"train_split": "train[:75%]", "eval_split": "train[75%:]"}
  data.load(data.Request(tmp_path / "sorted.npz", **keys))
  (line,) = warnings
  assert "train_split='train[:75%]' has no example of class 3" in line
  assert "shuffle" in line


def test_requests_are_hashable_and_compare_by_identity_of_an_object():
  arrays = {"train": _digits(4), "test": _digits(4)}
  same = data.Request(arrays), data.Request(arrays)
  assert same[0] == same[1] and hash(same[0]) == hash(same[1])
  assert data.Request(dict(arrays)) != same[0]
  assert data.Request("a") == data.Request("a", dir=None)
  assert data.Request("a") != data.Request("a", eval_split="train[90%:]")
  assert data.Request(pathlib.Path("a.npz")) == data.Request("a.npz")


# A file of arrays.


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_a_file_are_loaded_as_they_are(tmp_path, save):
  path = tmp_path / "mine.npz"
  weight = np.linspace(0, 1, 12)
  save(path, **_arrays(train_w=weight, test_w=weight[:8]))
  info = data.read_info(data.Request(str(path)))
  assert info == data.Info(
    str(path), "x", "y", 12, 8, (6, 5, 3), "uint8", 4, ()
  )
  dataset = data.load(data.Request(str(path)))
  assert dataset.name == str(path) and dataset.num_classes == 4
  assert dataset.num_train == 12
  for split, (x, y) in (
    (dataset.train, _digits(12)),
    (dataset.test, _digits(8, seed=1)),
  ):
    assert set(split) == {"x", "y", "w"}
    np.testing.assert_array_equal(split["x"], x)
    np.testing.assert_array_equal(split["y"], y)
    assert split["y"].dtype == np.int32
  np.testing.assert_array_equal(dataset.test["w"], weight[:8])


def test_info_reads_headers_and_labels_alone(tmp_path, monkeypatch):
  path = tmp_path / "mine.npz"
  np.savez(path, **_arrays())
  read, names = npz._read, []
  monkeypatch.setattr(
    npz, "_read", lambda path, name: (names.append(name), read(path, name))[1]
  )
  data.read_info(data.Request(path))
  assert names == ["train_y", "test_y"]


def test_grey_images_get_an_axis_of_channels_and_it_is_said_once(
  tmp_path, warnings
):
  path = tmp_path / "grey.npz"
  (train_x, _), (test_x, _) = (
    _digits(12, shape=(6, 5)),
    _digits(8, shape=(6, 5)),
  )
  np.savez(path, **_arrays(train_x=train_x, test_x=test_x))
  for _ in range(2):
    assert data.read_info(data.Request(path)).input_shape == (6, 5, 1)
    dataset = data.load(data.Request(path))
  np.testing.assert_array_equal(dataset.train["x"], train_x[..., None])
  assert len(dataset.mean) == len(dataset.std) == 1
  assert warnings == [f"{path}: 'x' gets an axis of one channel"]


def test_floats_of_any_shape_are_inputs_without_statistics(tmp_path):
  path = tmp_path / "waves.npz"
  train, test = np.zeros((12, 40), ">f4"), np.ones((8, 40), ">f4")
  train[3, 5] = np.nan  # Allowed here: a task may mask it.
  np.savez(path, **_arrays(train_x=train, test_x=test))
  dataset = data.load(data.Request(path))
  assert dataset.info.input_shape == (40,)
  assert dataset.info.input_dtype == "float32"
  assert dataset.train["x"].dtype == np.float32  # Of the order of this machine.
  np.testing.assert_array_equal(dataset.test["x"], test)
  assert (dataset.mean, dataset.std) == ((), ())


@pytest.mark.parametrize("shape", [(), (3,)])
def test_float_labels_are_no_classes(tmp_path, shape):
  path = tmp_path / "targets.npz"
  targets = {
    f"{split}_y": np.ones((size, *shape), np.float32)
    for split, size in (("train", 12), ("test", 8))
  }
  np.savez(path, **_arrays(**targets))
  dataset = data.load(data.Request(path))
  assert dataset.num_classes is None
  assert dataset.train["y"].dtype == np.float32
  targets["test_y"][5] = np.nan
  np.savez(path, **_arrays(**targets))
  with pytest.raises(
    data.DataError,
    match=r"label nan of example .*5.* of 'test' must be a number",
  ):
    data.load(data.Request(path))


def test_splits_and_keys_have_any_names(tmp_path):
  path = tmp_path / "three.npz"
  content = {}
  for seed, split in enumerate(("train", "valid", "old_test")):
    x, y = _digits(8, seed)
    content |= {f"{split}_input_ids": x, f"{split}_coarse": y // 2}
    content |= {f"{split}_fine": y}
  np.savez(path, **content)
  keys = {"input_key": "input_ids", "label_key": "coarse"}
  dataset = data.load(
    data.Request(path, train_split="old_test", eval_split="valid", **keys)
  )
  np.testing.assert_array_equal(
    dataset.train["input_ids"], content["old_test_input_ids"]
  )
  np.testing.assert_array_equal(dataset.test["coarse"], _digits(8)[1] // 2)
  assert dataset.num_classes == 2 and "fine" in dataset.train
  assert "the splits" in _refused(path, **keys)  # None is called test.
  line = _refused(path, eval_split="valid")
  assert "say by input_key and label_key" in line
  assert "['coarse', 'fine', 'input_ids'] in 'train'" in line
  line = _refused(path, eval_split="valid", input_key="input_id")
  assert "no input_key='input_id': did you mean 'input_ids'?" in line


def test_arrays_without_a_split_are_told_the_names(tmp_path):
  x, y = _digits(8)
  np.savez(tmp_path / "mine.npz", x=x, y=y)
  line = _refused(tmp_path / "mine.npz")
  assert "has the arrays x, y; needed are train_x, train_y, test_x" in line


def test_the_only_two_keys_there_are_need_no_names(tmp_path):
  path = tmp_path / "mine.npz"
  x, y = _digits(8)
  np.savez(path, train_pixels=x, train_kind=y, test_pixels=x, test_kind=y)
  info = data.read_info(data.Request(path))
  assert (info.input_key, info.label_key) == ("pixels", "kind")
  info = data.read_info(data.Request(path, label_key="kind"))
  assert info.input_key == "pixels"
  np.savez(path, train_a=y, train_b=y, test_a=y, test_b=y)
  assert "which are the inputs" in _refused(path)


def test_classes_have_names(tmp_path):
  path = tmp_path / "mine.npz"
  names = [
    "ant",
    "bee",
    "cat",
    "dog",
    "eel",
  ]  # Of the last there is no example.
  np.savez(path, **_arrays(classes=np.array(names)))
  info = data.read_info(data.Request(path))
  assert info.classes == tuple(names) and info.num_classes == 5
  np.savez(path, **_arrays(classes=np.array(names[:3])))
  assert "label 3 of example 3 of 'train' must be in [0, 3)" in _refused(path)
  np.savez(path, **_arrays(classes=np.array(["a", "b", "b", "c"])))
  assert "two classes are called 'b'" in _refused(path)
  np.savez(path, **_arrays(classes=np.arange(4)))
  assert "'classes' must be text" in _refused(path)


def test_labels_that_are_no_class_numbers_are_refused(tmp_path, warnings):
  path = tmp_path / "mine.npz"
  negative = np.array([0, 1, 2, 3, 0, -1, 2, 3])
  np.savez(path, **_arrays(test_y=negative))
  assert "label -1 of example 5 of 'test' must be 0 or more" in _refused(path)
  np.savez(path, **_arrays(test_y=negative + 1_000_000))
  assert "label 1000003 makes 1000004 classes of 20" in _refused(path)
  np.savez(path, **_arrays(train_y=_digits(12)[1] + 1, test_y=negative + 2))
  assert data.read_info(data.Request(path)).num_classes == 6
  assert warnings == [f"{path}: no example is of class 0, the first class"]


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"train_y": np.zeros(11, int)}, "'train' has 12 of 'x' and 11 of 'y'"),
    ({"test_y": None}, "['x'] in 'test'"),
    (
      {"test_x": np.zeros((8, 6, 5, 1), np.uint8)},
      "uint8 [6, 5, 3] in 'train'",
    ),
    ({"test_x": np.zeros((8, 6, 5, 3))}, "float64 [6, 5, 3] in 'test'"),
    ({"test_y": np.zeros(8)}, "integer [] in 'train' and float [] in 'test'"),
    ({"train_x": np.array(["a"] * 12)}, "'x' of 'train' is of dtype <U1"),
    ({"train_x": np.float32(3)}, "is one number, not one an example"),
    (
      {"test_x": np.zeros((0, 6, 5, 3), np.uint8), "test_y": np.zeros(0, int)},
      "'test' holds no example",
    ),
    (
      dict.fromkeys(("test_x", "test_y")),
      "has the splits train; needed are train, and test",
    ),
  ],
)
def test_arrays_that_do_not_go_together_are_refused(tmp_path, changed, message):
  path = tmp_path / "mine.npz"
  np.savez(path, **_arrays(**changed))
  assert message in _refused(path)


def test_further_arrays_that_do_not_fit_are_left_out_and_named(
  tmp_path, warnings
):
  path = tmp_path / "mine.npz"
  more = {"train_file": np.array(["a"] * 12), "test_file": np.array(["b"] * 8)}
  np.savez(path, **_arrays(train_w=np.ones(5), test_w=np.ones(5), **more))
  assert set(data.load(data.Request(path)).train) == {"x", "y"}
  (line,) = warnings
  assert "left out" in line and "['file', 'w']" in line


class _Bomb:
  """Says that it was unpickled."""

  def __reduce__(self):
    return (os.system, ("touch unpickled",))


def test_a_pickle_is_never_loaded(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "mine.npz"
  bombs = np.array([_Bomb()] * 12, object)
  for key in ("train_x", "train_y", "classes"):
    np.savez(path, **_arrays(**{key: bombs}))
    _refused(path)
  np.savez(path, **_arrays(train_w=bombs, test_w=bombs))
  assert set(data.load(data.Request(path)).train) == {"x", "y"}
  assert not (tmp_path / "unpickled").exists()


def _replace_member(path, name, content):
  """Rewrites one stored array of an .npz file as raw bytes."""
  with zipfile.ZipFile(path) as archive:
    members = {entry: archive.read(entry) for entry in archive.namelist()}
  members[name] = content
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for entry, stored in members.items():
      archive.writestr(entry, stored)


def _header(text, version=b"\x02\x00"):
  length = len(text).to_bytes(4, "little")
  return b"\x93NUMPY" + version + length + text.encode()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "'train_x.npy' does not begin like"),
    (b"not an array", "'train_x.npy' does not begin like"),
    # A header that claims gigabytes, and one that has megabytes of blanks.
    (
      b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
      "'train_x.npy' does not begin like",
    ),
    (_header("{" + " " * 5_000_000), "'train_x.npy' does not begin like"),
    (_header("(" * 5000), "'train_x.npy' does not begin like"),
    (_header("__import__('os').abort()"), "'train_x.npy' does not begin like"),
    (
      _header("{'descr': '|u1', 'fortran_order': False, 'shape': (12, 9)}\n"),
      "'train_x.npy' has",
    ),
    (
      _header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 9)}\n"),
      "'train_x.npy' has",
    ),
    (
      _header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 10**18)}\n"
      ),
      "'train_x.npy' does not begin like",
    ),
  ],
)
def test_hostile_headers_are_refused(tmp_path, content, message):
  path = tmp_path / "mine.npz"
  np.savez(path, **_arrays())
  _replace_member(path, "train_x.npy", content)
  assert message in _refused(path)


def test_a_file_that_is_cut_or_damaged_is_named(tmp_path):
  path = tmp_path / "mine.npz"
  pixels, _ = _digits(12, shape=(40, 40, 3))  # Longer than any header.
  np.savez(path, **_arrays(train_x=pixels, test_x=pixels[:8]))
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  assert f"{path} is not a readable .npz file" in _refused(path)
  path.write_bytes(b"")
  assert f"{path} is not a readable .npz file" in _refused(path)
  damaged = bytearray(whole)
  damaged[30_000] ^= 1  # A pixel: the zip file holds a checksum.
  path.write_bytes(damaged)
  with pytest.raises(data.DataError, match="'train_x' cannot be read: Bad CRC"):
    data.load(data.Request(path))


def test_a_file_larger_than_memory_is_refused_before_it_is_read(
  tmp_path, monkeypatch
):
  path = tmp_path / "mine.npz"
  np.savez(path, **_arrays())
  monkeypatch.setattr(request.os, "sysconf", lambda name: 10)
  monkeypatch.setattr(npz, "_read", None)
  assert "more than half of the 0.0 GiB" in _refused(path)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("mien.npz", "there is no file {}/mien.npz: did you mean 'mine.npz'?"),
    ("./pest", "there is no folder {}/pest: did you mean 'pets'?"),
    ("data/pets", "there is no folder {}/data/pets, and no prepared set"),
    ("/no/such/pets", "there is no folder /no/such/pets"),
    ("~/no_such_pets", "there is no folder"),
    ("table.csv", "table.csv is neither an .npz file nor a folder of images"),
    (
      "pets",
      "unknown data set 'pets': .*the folder of that name here is './pe",
    ),
    ("pets.npz/", "there is no file {}/pets.npz"),
    ("..", ".. has the splits"),
  ],
)
def test_a_path_that_is_not_there_is_told_so(
  tmp_path, monkeypatch, name, message
):
  here = tmp_path / "here"  # so that `..` has nothing of other tests
  here.mkdir()
  monkeypatch.chdir(here)
  np.savez("mine.npz", **_arrays())
  (here / "pets").mkdir()
  (here / "table.csv").write_text("1,2\n")
  line = _refused(name, dir=str(here))
  first, _, last = message.format(here).partition(".*")
  assert first in line and last in line


# A folder of images.


def _write_folder(path, parts=(("train", 12), ("test", 8)), shape=(6, 5, 3)):
  """Writes PNG files of random pixels; returns them by split and name."""
  content = {}
  for seed, (split, size) in enumerate(parts):
    for number, (pixels, label) in enumerate(
      zip(*_digits(size, seed, shape), strict=True)
    ):
      name = f"class_{'dcba'[label]}/{number:03}.png"
      target = path / split / name
      target.parent.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(np.squeeze(pixels)).save(target)
      content[split, name] = pixels
  return content


def test_a_folder_of_images_is_loaded_with_its_labels(tmp_path, capfd):
  content = _write_folder(tmp_path)
  (tmp_path / "train" / ".hidden").mkdir()
  (tmp_path / "train" / "class_a" / "notes.txt").write_text("not an image")
  info = data.read_info(data.Request(str(tmp_path)))
  assert info == data.Info(
    str(tmp_path),
    "image",
    "label",
    12,
    8,
    (6, 5, 3),
    "uint8",
    4,
    ("class_a", "class_b", "class_c", "class_d"),
  )
  assert not capfd.readouterr().err, "decoded something"
  dataset = data.load(data.Request(str(tmp_path)))
  assert "decoded 12 images" in capfd.readouterr().err
  for split, arrays in (("train", dataset.train), ("test", dataset.test)):
    stored = {
      pixels.tobytes(): name.partition("/")[0]
      for (of, name), pixels in content.items()
      if of == split
    }
    assert len(arrays["image"]) == len(stored)
    for pixels, label in zip(arrays["image"], arrays["label"], strict=True):
      assert stored[pixels.tobytes()] == info.classes[label]
  assert len(dataset.mean) == 3


def test_grey_jpeg_files_are_read(tmp_path):
  for split in ("train", "val"):
    for label in ("no", "yes"):
      target = tmp_path / split / label / "1.JPEG"
      target.parent.mkdir(parents=True)
      PIL.Image.new("L", (5, 6), 10 if label == "no" else 250).save(target)
  dataset = data.load(data.Request(tmp_path))
  assert dataset.train["image"].shape == (2, 6, 5, 1)
  bright = dataset.test["image"].mean((1, 2, 3)) > 128
  np.testing.assert_array_equal(bright, dataset.test["label"])


def test_the_order_of_files_mixes_the_classes(tmp_path):
  _write_folder(tmp_path, (("train", 400),), (1, 1, 3))
  keys = {"train_split": "train[:90%]", "eval_split": "train[90%:]"}
  dataset = data.load(data.Request(tmp_path, **keys))
  # Sorted by class, the last tenth would be of one class alone.
  assert (np.bincount(dataset.test["label"], minlength=4) > 3).all()
  again = data.load(data.Request(tmp_path, **keys))
  np.testing.assert_array_equal(again.test["image"], dataset.test["image"])


def test_a_second_load_decodes_nothing(tmp_path, monkeypatch):
  _write_folder(tmp_path)
  first = data.load(data.Request(tmp_path))
  kept = sorted(path.name for path in tmp_path.iterdir())
  assert kept == [
    *("test", "test.ws_jax_decoded.npz"),
    *("train", "train.ws_jax_decoded.npz"),
  ]
  monkeypatch.setattr(images, "decode", None)
  again = data.load(data.Request(tmp_path))
  for key in ("image", "label"):
    np.testing.assert_array_equal(again.train[key], first.train[key])
    np.testing.assert_array_equal(again.test[key], first.test[key])


def test_a_changed_folder_is_decoded_again(tmp_path):
  _write_folder(tmp_path)
  data.load(data.Request(tmp_path))
  changed = tmp_path / "train" / "class_a" / "003.png"
  PIL.Image.new("RGB", (5, 6), (7, 7, 7)).save(changed)
  dataset = data.load(data.Request(tmp_path))
  assert (dataset.train["image"] == 7).all((1, 2, 3)).sum() == 1
  changed.unlink()
  assert data.load(data.Request(tmp_path)).num_train == 11


def test_kept_test_images_of_another_size_are_noticed(tmp_path):
  _write_folder(tmp_path)
  data.load(data.Request(tmp_path))
  # The training images are made anew; the test images and their cache stay.
  _write_folder(tmp_path, (("train", 12),), (7, 5, 3))
  with pytest.raises(data.DataError, match="images differ in size"):
    data.load(data.Request(tmp_path))


def test_a_folder_that_cannot_be_written_uses_the_users_cache(
  tmp_path, monkeypatch
):
  source, home = tmp_path / "source", tmp_path / "home"
  _write_folder(source)
  monkeypatch.setenv("XDG_CACHE_HOME", str(home))
  replace = os.replace

  def refuse(draft, target):
    if pathlib.Path(target).is_relative_to(source):
      raise PermissionError(13, "read-only file system")
    replace(draft, target)

  monkeypatch.setattr(cache.os, "replace", refuse)
  first = data.load(data.Request(source))
  assert sorted(path.name for path in source.iterdir()) == ["test", "train"]
  assert len(list((home / "ws_jax" / "data").iterdir())) == 2
  monkeypatch.setattr(images, "decode", None)
  again = data.load(data.Request(source))
  np.testing.assert_array_equal(again.train["image"], first.train["image"])


def test_an_image_that_cannot_be_used_is_named(tmp_path):
  _write_folder(tmp_path)
  odd = tmp_path / "test" / "class_b" / "002.png"
  whole = odd.read_bytes()

  def refused():
    with pytest.raises(data.DataError) as caught:
      data.load(data.Request(tmp_path))
    assert str(odd) in str(caught.value)
    assert not list(tmp_path.glob("test.*")), "kept a half"
    return str(caught.value)

  odd.write_bytes(whole[: len(whole) // 2])
  assert "cannot be decoded" in refused()
  odd.write_bytes(b"")
  assert "cannot be decoded" in refused()
  PIL.Image.new("RGB", (5, 6)).save(odd, format="GIF")
  assert "cannot be decoded" in refused()
  PIL.Image.new("RGB", (6, 6)).save(odd)
  assert "images differ in size" in refused() and "is 6x6 pixels" in refused()
  PIL.Image.new("L", (5, 6)).save(odd)
  assert "grey and colour images are mixed" in refused()
  for mode in ("RGBA", "P", "1", "I;16", "LA"):
    PIL.Image.new(mode, (5, 6)).save(odd)
    assert f"is an image of mode {mode}: convert it to RGB" in refused()
  odd.write_bytes(whole)
  assert data.load(data.Request(tmp_path)).num_train == 12


def test_a_truncated_jpeg_is_named(tmp_path):
  rng = np.random.default_rng(0)
  for split in ("train", "test"):
    for label in "ab":
      target = tmp_path / split / label / "1.jpg"
      target.parent.mkdir(parents=True)
      pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
      PIL.Image.fromarray(pixels).save(target)
  whole = target.read_bytes()
  target.write_bytes(whole[: len(whole) - 500])
  with pytest.raises(
    data.DataError, match="b/1.jpg cannot be decoded: .*trunc"
  ):
    data.load(data.Request(tmp_path))


def test_classes_must_be_the_same_in_both_splits(tmp_path):
  _write_folder(tmp_path)
  (tmp_path / "test" / "class_a").rename(tmp_path / "test" / "class_e")
  line = _refused(tmp_path)
  assert "only 'train' has class_a; only 'test' has class_e" in line
  empty = tmp_path / "test" / "class_a"
  (tmp_path / "test" / "class_e").rename(empty)
  for image in empty.iterdir():
    image.rename(image.with_suffix(".bmp"))
  assert f"{empty} holds no image: needed are files that end in .png" in (
    _refused(tmp_path)
  )


def test_a_folder_of_another_form_is_told_what_is_needed(tmp_path):
  (tmp_path / "cats").mkdir()
  (tmp_path / "dogs").mkdir()
  line = _refused(tmp_path)
  assert "has the splits cats, dogs; needed are train, and test" in line
  (tmp_path / "train").mkdir()
  (tmp_path / "test").mkdir()
  assert "holds no folder; needed is one for each class" in _refused(tmp_path)
  _write_folder(tmp_path)
  line = _refused(tmp_path, label_key="labels")
  assert "no label_key='labels'" in line and "Known: label" in line


def test_images_larger_than_memory_are_refused_before_decoding(
  tmp_path, monkeypatch
):
  _write_folder(tmp_path)
  monkeypatch.setattr(request.os, "sysconf", lambda name: 10)
  monkeypatch.setattr(images, "decode", None)
  assert "more than half" in _refused(tmp_path)


def test_a_terminal_sees_how_far_decoding_is(tmp_path, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setattr(sys, "stderr", Terminal())
  _write_folder(tmp_path)
  data.load(data.Request(tmp_path))
  said = sys.stderr.getvalue().split("\r")
  assert said[1].startswith("decoding 12 of 12 images of ")
  assert said[2].startswith("decoded 12 images of ")


# Python objects.


def _class(**attributes):
  return types.SimpleNamespace(**attributes)


@pytest.mark.parametrize("form", ["dicts", "pairs", "mapping", "validation"])
def test_an_object_with_train_and_test_is_data(form):
  (x, y), (test_x, test_y) = _digits(12), _digits(8, seed=1)
  value = {
    "dicts": _class(
      train={"image": x, "label": y}, test={"image": test_x, "label": test_y}
    ),
    "pairs": _class(train=(x, y), test=(test_x, test_y)),
    "mapping": {"train": (x, y.tolist()), "test": (test_x, test_y.tolist())},
    "validation": _class(train=(x, y), validation=(test_x, test_y)),
  }[form]
  keys = ("image", "label") if form == "dicts" else ("x", "y")
  info = data.read_info(data.Request(value))
  assert (info.input_key, info.label_key) == keys
  assert (info.train_size, info.eval_size, info.num_classes) == (12, 8, 4)
  dataset = data.load(data.Request(value))
  np.testing.assert_array_equal(dataset.train[keys[0]], x)
  np.testing.assert_array_equal(dataset.test[keys[1]], test_y)
  assert dataset.test[keys[1]].dtype == np.int32
  assert len(dataset.mean) == 3


def test_what_an_object_says_of_itself_is_taken():
  value = _class(
    name="mine",
    train=_digits(12),
    test=_digits(8),
    classes=["ant", "bee", "cat", "dog", "eel"],
    mean=np.array([0.1, 0.2, 0.3]),
    std=(0.5, 0.5, 0.5),
  )
  dataset = data.load(data.Request(value))
  assert dataset.name == "mine" and dataset.num_classes == 5
  assert dataset.info.classes[-1] == "eel"
  assert dataset.mean == (0.1, 0.2, 0.3) and dataset.std == (0.5, 0.5, 0.5)
  value.std = (0.5, 0.0, 0.5)
  assert "std above 0" in _refused(value)
  value.std, value.num_classes = None, 4
  assert "num_classes=4, and the names of 5 classes" in _refused(value)
  value.classes, value.num_classes = None, 3
  assert "label 3 of example 3 of 'train' must be in [0, 3)" in _refused(value)


def test_a_loaded_data_set_is_data_again():
  whole = data.load(data.Request("fashion_mnist_10k"))
  few = dataclasses.replace(
    whole,
    train={key: array[:60] for key, array in whole.train.items()},
    test={key: array[:40] for key, array in whole.test.items()},
  )
  again = data.load(data.Request(few, train_split="train[:50]"))
  assert again.info == dataclasses.replace(
    whole.info, train_size=50, eval_size=40
  )
  assert (again.mean, again.std) == (whole.mean, whole.std)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (3, "data set 3 is no name (such as fashion_mnist_10k"),
    ({"x": 1}, "no object with 'train' and 'test'"),
    (lambda: 3, "an object of type int has no 'train' and 'test'"),
    (_class(train=_digits(4)), "has the splits train; needed are train, and"),
    (
      _class(train=_digits(4), test=np.zeros(3)),
      "'test' is an object of type ndarray: needed is a dict of arrays",
    ),
    (
      _class(train={"x": np.zeros((4, 2)), "y": np.zeros(3)}, test=_digits(4)),
      "'train' has arrays of different lengths: 4 of 'x', 3 of 'y'",
    ),
    (
      _class(train=([[1.0], [1.0, 2.0]], [0, 1]), test=_digits(4)),
      "'train': 'x' is no array",
    ),
    (
      _class(train=(np.array([{}, {}]), [0, 1]), test=_digits(4)),
      "'x' of 'train' holds Python objects",
    ),
  ],
)
def test_an_object_that_is_no_data_is_refused(value, message):
  assert message in _refused(value)


@pytest.fixture
def project(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  yield tmp_path
  sys.modules.pop("ws_own", None)


def test_a_function_of_the_users_own_makes_the_data(project):
  (project / "ws_own.py").write_text("""
import numpy as np
calls = []

class Moons:
  def __init__(self):
    rng = np.random.default_rng(len(calls))
    calls.append(1)
    self.train = rng.normal(size=(20, 2)), rng.integers(0, 2, 20)
    self.test = rng.normal(size=(10, 2)), rng.integers(0, 2, 10)

moons = Moons()
calls.clear()

def broken():
  raise ZeroDivisionError("in the user's code")
""")
  named = data.Request("ws_own:Moons", train_split="train[:15]")
  info = data.read_info(named)
  assert info.name == "ws_own:Moons" and info.input_shape == (2,)
  assert (info.train_size, info.num_classes) == (15, 2)
  assert data.load(named).train["x"].shape == (15, 2)
  # Between the two it was made once: it may take long, or be random.
  assert sys.modules["ws_own"].calls == [1]
  assert data.read_info(data.Request("ws_own:moons")).train_size == 20
  assert "did you mean 'moons'?" in _refused("ws_own:moon")
  assert "No module named 'ws_onw': did you mean 'ws_own'?" in (
    _refused("ws_onw:moons")
  )
  with pytest.raises(ZeroDivisionError):
    data.load(data.Request("ws_own:broken"))


def test_only_what_is_needed_is_imported(tmp_path):
  np.savez(tmp_path / "mine.npz", **_arrays())
  code = f"""
import sys
from ws_jax import data
data.load(data.Request({str(tmp_path / "mine.npz")!r}))
data.load(data.Request("fashion_mnist_10k"))
heavy = ["PIL", "tensorflow", "tensorflow_datasets"]
print([name for name in heavy if name in sys.modules])
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.stdout == "[]\n", done.stderr
