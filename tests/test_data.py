"""The embedded set, prepared sets, the order of batches, and the errors."""

import hashlib
import io
import json
import pathlib
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ws_jax import data
from ws_jax.data import arrays as data_arrays
from ws_jax.data import cache, find, labels, prepared, request, sources

ROOT = pathlib.Path(__file__).parents[1]


def load(name, folder=None):
  return data.load(data.Request(name, dir=folder and str(folder)))


def read_info(name, folder=None):
  return data.read_info(data.Request(name, dir=folder and str(folder)))


# The embedded set.


def test_embedded_set_is_balanced_and_whole():
  dataset = load("fashion_mnist_10k")
  assert dataset.num_classes == 10
  for split, size in ((dataset.train, 10_000), (dataset.test, 2_000)):
    assert split["image"].shape == (size, 28, 28, 1)
    assert split["image"].dtype == np.uint8
    assert split["label"].shape == (size,)
    assert split["label"].dtype == np.int32
    assert np.bincount(split["label"]).tolist() == [size // 10] * 10
  digest = hashlib.sha256(data.EMBEDDED_PATH.read_bytes()).hexdigest()
  assert digest == sources.EMBEDDED_SHA256


def test_embedded_images_are_real():
  dataset = load("fashion_mnist_10k")
  images, labels = dataset.train["image"], dataset.train["label"]
  flat = images.reshape(len(images), -1)
  assert len(np.unique(flat, axis=0)) > 9_990, "copies, or empty images"
  # A nearest class mean tells clothes apart far better than chance: the images
  # go with their labels, in training and in test.
  means = np.stack([flat[labels == c].mean(0) for c in range(10)])
  test = dataset.test["image"].reshape(2_000, -1).astype(np.float64)
  distance = (means**2).sum(1) - 2 * test @ means.T
  accuracy = (distance.argmin(1) == dataset.test["label"]).mean()
  assert accuracy > 0.6
  # No test image is a training image.
  both = np.concatenate([flat, dataset.test["image"].reshape(2_000, -1)])
  assert len(np.unique(both, axis=0)) > 11_985


def test_statistics_are_those_of_the_training_images():
  dataset = load("fashion_mnist_10k")
  scaled = dataset.train["image"].astype(np.float64) / 255
  np.testing.assert_allclose(dataset.mean, [scaled.mean()], rtol=1e-12)
  np.testing.assert_allclose(dataset.std, [scaled.std()], rtol=1e-9)


def test_statistics_are_by_channel_and_never_zero():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5000, 3, 4, 3), dtype=np.uint8)
  images[..., 1] = 255  # Sums that overflow 8 and 16 bits.
  images[..., 2] //= 5
  mean, std = data_arrays.channel_statistics(images)
  scaled = images.astype(np.float64).reshape(-1, 3) / 255
  np.testing.assert_allclose(mean, scaled.mean(0), rtol=1e-12)
  np.testing.assert_allclose(std[::2], scaled.std(0)[::2], rtol=1e-9)
  assert std[1] == 1.0


def test_a_damaged_embedded_set_is_an_error(tmp_path, monkeypatch):
  content = bytearray(data.EMBEDDED_PATH.read_bytes())
  content[1000] ^= 1
  damaged = tmp_path / "damaged.npz"
  damaged.write_bytes(content)
  monkeypatch.setattr(sources, "EMBEDDED_PATH", damaged)
  for call in (read_info, load):
    with pytest.raises(data.DataError, match="damaged"):
      call("fashion_mnist_10k")
  monkeypatch.setattr(sources, "EMBEDDED_PATH", tmp_path / "nothing.npz")
  with pytest.raises(data.DataError, match="missing"):
    read_info("fashion_mnist_10k")


def test_licence_is_beside_the_embedded_set():
  text = (data.EMBEDDED_PATH.parent / "LICENSE-fashion-mnist.txt").read_text()
  assert "MIT License" in text and "Zalando SE" in text


# Which examples make a batch.

sizes = st.integers(1, 40)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), sizes, sizes, st.integers(1, 4))
def test_each_epoch_is_a_permutation(seed, batch_size, num_examples, epochs):
  # As many steps as it takes for batches and epochs to end together.
  steps = epochs * num_examples
  indices = data.batch_indices(seed, 0, steps, batch_size, num_examples)
  assert indices.shape == (steps, batch_size)
  assert indices.dtype == np.int32
  by_epoch = np.sort(indices.reshape(epochs * batch_size, num_examples))
  np.testing.assert_array_equal(
    by_epoch, np.tile(np.arange(num_examples), (len(by_epoch), 1))
  )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), sizes, st.integers(0, 30), sizes, sizes)
def test_any_start_gives_the_suffix(seed, steps, start, batch_size, examples):
  whole = data.batch_indices(seed, 0, start + steps, batch_size, examples)
  part = data.batch_indices(seed, start, steps, batch_size, examples)
  np.testing.assert_array_equal(part, whole[start:])


def test_order_is_the_documented_one():
  """A change here makes every run differ from those of before: say so."""
  expected = np.concatenate(
    [np.random.default_rng([7, epoch]).permutation(5) for epoch in range(4)]
  )
  indices = data.batch_indices(7, 0, 5, 4, 5)
  np.testing.assert_array_equal(indices.ravel(), expected)


def test_epochs_and_seeds_differ():
  one = data.batch_indices(0, 0, 2, 100, 100)
  other = data.batch_indices(1, 0, 1, 100, 100)
  assert not np.array_equal(one[0], one[1])
  assert not np.array_equal(one[0], other[0])


def test_a_late_step_does_not_replay_the_earlier_ones():
  # 10^15 steps could not be replayed, and their positions exceed 32 bits.
  indices = data.batch_indices(0, 10**15, 2, 3, 10)
  assert 0 <= indices.min() <= indices.max() < 10


def test_no_steps_give_no_batches():
  assert data.batch_indices(0, 5, 0, 4, 10).shape == (0, 4)


def test_what_is_returned_can_be_written_to():
  first = data.batch_indices(3, 0, 1, 6, 6)
  expected = first.copy()
  first[:] = 0  # Must not reach the permutation that is kept.
  np.testing.assert_array_equal(data.batch_indices(3, 0, 1, 6, 6), expected)


@pytest.mark.parametrize(
  ("arguments", "what"),
  [
    ((-1, 0, 1, 1, 1), "seed is -1"),
    ((0, -1, 1, 1, 1), "first_step is -1"),
    ((0, 0, -1, 1, 1), "num_steps is -1"),
    ((0, 0, 1, 0, 1), "batch_size is 0"),
    ((0, 0, 1, 1, 0), "num_examples is 0"),
  ],
)
def test_batch_indices_out_of_range(arguments, what):
  with pytest.raises(ValueError, match=what):
    data.batch_indices(*arguments)


@settings(max_examples=50, deadline=None)
@given(sizes, sizes)
def test_eval_sees_every_example_once(num_examples, batch_size):
  indices, mask = data.eval_indices(num_examples, batch_size)
  assert indices.dtype == np.int32 and mask.dtype == np.float32
  assert indices.shape == mask.shape == (len(indices), batch_size)
  assert set(np.unique(mask)) <= {0.0, 1.0}
  seen = indices[mask == 1]
  np.testing.assert_array_equal(seen, np.arange(num_examples))
  assert (len(indices) - 1) * batch_size < num_examples
  assert 0 <= indices.min() <= indices.max() < num_examples


def test_eval_indices_out_of_range():
  with pytest.raises(ValueError, match="batch_size is 0"):
    data.eval_indices(5, 0)


# Sets that TFDS prepared.


def _png(image: np.ndarray) -> io.BytesIO:
  import PIL.Image

  buffer = io.BytesIO()
  PIL.Image.fromarray(image).save(buffer, format="PNG")
  buffer.seek(0)
  return buffer


def _write_set(
  folder, name, shape, splits, *, keys=("image", "label"), classes=None
):
  """Prepares a small set by a TFDS builder, in array_record, without TF."""
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  arrays = {
    split: (
      rng.integers(0, 256, (size, 6, 5, 3), dtype=np.uint8),
      rng.integers(0, 4, size),
    )
    for split, size in splits.items()
  }

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(folder)

    def _info(self):
      features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(
          num_classes=None if classes else 4, names=classes
        ),
        "number": tfds.features.Scalar(np.int64),
      }
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(features), supervised_keys=keys
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in arrays}

    def _generate_examples(self, split):
      for key, (image, label) in enumerate(zip(*arrays[split], strict=True)):
        example = {"image": _png(image), "label": int(label), "number": key}
        yield key, example

  Builder.name = name
  builder = Builder(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return pathlib.Path(builder.data_path), arrays


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
  """Prepares a set of 12 + 5 images of 6x5x3 and what went into it."""
  folder = tmp_path_factory.mktemp("tfds")
  path, arrays = _write_set(
    folder, "small", (6, 5, 3), {"train": 12, "test": 5}
  )
  return folder, path, arrays


def _match(dataset, arrays):
  """Checks images and labels, in whatever order TFDS shuffled them."""
  for ours, split in ((dataset.train, "train"), (dataset.test, "test")):
    images, labels = arrays[split]
    assert ours["image"].dtype == np.uint8 and ours["label"].dtype == np.int32
    stored = {
      image.tobytes(): label
      for image, label in zip(ours["image"], ours["label"], strict=True)
    }
    given = {
      image.tobytes(): label
      for image, label in zip(images, labels, strict=True)
    }
    assert stored == given


def test_prepared_set_is_read_and_kept(small_set):
  folder, path, arrays = small_set
  (path / cache.CACHE_NAME).unlink(missing_ok=True)
  read_info("small", folder)
  dataset = load("small", folder)
  assert dataset.name == "small" and dataset.num_classes == 4
  assert dataset.train["image"].shape == (12, 6, 5, 3)
  _match(dataset, arrays)
  scaled = arrays["train"][0].astype(np.float64).reshape(-1, 3) / 255
  np.testing.assert_allclose(dataset.mean, scaled.mean(0), rtol=1e-12)
  np.testing.assert_allclose(dataset.std, scaled.std(0), rtol=1e-9)
  again = load("small:1.0.0", folder)
  np.testing.assert_array_equal(again.train["image"], dataset.train["image"])
  np.testing.assert_array_equal(again.test["label"], dataset.test["label"])
  assert (again.mean, again.std) == (dataset.mean, dataset.std)


def test_second_start_decodes_nothing(small_set, monkeypatch):
  folder, path, arrays = small_set
  load("small", folder)
  monkeypatch.setattr(prepared, "_decode", None)
  _match(load("small", folder), arrays)
  # What is kept is no pickle, and no half-written file stays behind.
  with np.load(path / cache.CACHE_NAME, allow_pickle=False) as archive:
    assert "train_image" in archive
  assert not list(path.glob("*.tmp"))


def test_info_of_a_prepared_set_has_the_names_of_its_classes(tmp_path):
  classes = ("ant", "bee", "cat", "dog")
  splits = {"train": 12, "test": 5}
  _write_set(tmp_path, "named", (6, 5, 3), splits, classes=list(classes))
  info = data.read_info(data.Request("named", dir=str(tmp_path)))
  shape = (6, 5, 3)
  assert info == data.Info(
    "named", "image", "label", 12, 5, shape, "uint8", 4, classes
  )


def test_a_prepared_set_has_other_splits_and_keys(small_set, monkeypatch):
  folder, path, arrays = small_set
  (path / cache.CACHE_NAME).unlink(missing_ok=True)
  held_out = data.Request(
    "small",
    dir=str(folder),
    train_split="train[:75%]",
    eval_split="train[75%:]",
  )
  numbered = data.Request("small", dir=str(folder), label_key="number")
  assert data.read_info(held_out).classes == ()  # TFDS knows no names.
  assert data.read_info(numbered).num_classes is None
  dataset = data.load(held_out)
  assert len(dataset.train["image"]) == dataset.num_train == 9
  both = {
    key: np.concatenate([dataset.train[key], dataset.test[key]])
    for key in ("image", "label")
  }
  whole = load("small", folder)
  for key, array in both.items():
    np.testing.assert_array_equal(array, whole.train[key])
  other = data.load(numbered)
  assert sorted(other.train["number"]) == list(range(12))
  # One decoding of each: what other runs ask for is kept beside it.
  monkeypatch.setattr(prepared, "_decode", None)
  _match(load("small", folder), arrays)
  again = data.load(numbered)
  np.testing.assert_array_equal(again.train["number"], other.train["number"])


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"eval_split": "tset"}, "no split 'tset': did you mean 'test'?"),
    ({"label_key": "lable"}, "no label_key='lable': did you mean 'label'?"),
    ({"input_key": "label"}, None),
    ({"label_key": "image"}, "not image classification: its inputs and labels"),
  ],
)
def test_keys_of_a_prepared_set_are_checked(small_set, keys, message):
  folder, _, _ = small_set
  wanted = data.Request("small", dir=str(folder), **keys)
  if message is None:  # Numbers are inputs for whoever asks for them.
    assert data.read_info(wanted).input_shape == ()
    return
  for function in (data.read_info, data.load):
    with pytest.raises(data.DataError) as caught:
      function(wanted)
    assert message in str(caught.value)


def test_stale_or_damaged_cache_is_decoded_again(small_set):
  folder, path, arrays = small_set
  kept = path / cache.CACHE_NAME
  kept.unlink(missing_ok=True)  # Other tests keep further arrays in it.
  load("small", folder)
  whole = kept.read_bytes()
  kept.write_bytes(whole[: len(whole) // 2])
  _match(load("small", folder), arrays)
  assert len(kept.read_bytes()) == len(whole), "the cache was not mended"
  # A set that was prepared again since: other files than the cache is of.
  with np.load(kept) as archive:
    content = dict(archive)
  content["train_image"] = np.zeros_like(content["train_image"])
  np.savez(kept, **content)
  assert not load("small", folder).train["image"].any()
  info = path / "dataset_info.json"
  info.write_text(info.read_text() + " ")
  _match(load("small", folder), arrays)


def test_folder_that_cannot_be_written_still_loads(small_set, monkeypatch):
  folder, path, arrays = small_set
  (path / cache.CACHE_NAME).unlink(missing_ok=True)

  def refuse(*args):
    raise PermissionError("read-only file system")

  monkeypatch.setattr(cache.os, "replace", refuse)
  _match(load("small", folder), arrays)
  assert not (path / cache.CACHE_NAME).exists()
  assert not list(path.glob("*.tmp"))


def test_tfrecord_is_read_too(small_set, tmp_path):
  """Users have it: `tfds.load` writes it unless told otherwise."""
  import tensorflow_datasets as tfds

  folder, path, arrays = small_set
  target = tmp_path / "small" / "1.0.0"
  target.mkdir(parents=True)
  (target / "features.json").write_bytes((path / "features.json").read_bytes())
  info = json.loads((path / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  for split in info["splits"]:
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  (target / "dataset_info.json").write_text(json.dumps(info))
  builder: Any = tfds.builder_from_directory(path)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  for split in ("train", "test"):
    records = builder.as_data_source(split, deserialize_method=raw)
    with open(target / f"small-{split}.tfrecord-00000-of-00001", "wb") as file:
      for record in records:
        file.write(struct.pack("<QI", len(record), 0) + record + bytes(4))
  _match(load("small", tmp_path), arrays)
  (target / cache.CACHE_NAME).unlink()
  shard = target / "small-train.tfrecord-00000-of-00001"
  shard.write_bytes(shard.read_bytes()[:-7])
  with pytest.raises(data.DataError, match="cut off"):
    load("small", tmp_path)


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
  _, arrays = _write_set(
    tmp_path, "held_out", (6, 5, 3), {"train": 4, "validation": 3}
  )
  dataset = load("held_out", tmp_path)
  _match(dataset, {"train": arrays["train"], "test": arrays["validation"]})


@pytest.mark.parametrize(
  ("shape", "splits", "keys", "message"),
  [
    ((None, None, 3), {"train": 2, "test": 2}, ("image", "label"), "one size"),
    ((6, 5, 3), {"train": 2}, ("image", "label"), "needed are train, and test"),
    ((6, 5, 3), {"train": 2, "test": 2}, None, "one label each"),
    (
      (6, 5, 3),
      {"train": 2, "test": 2},
      ("image", "number"),
      "not image classification",
    ),
  ],
)
def test_unsuitable_sets_are_refused_early(
  tmp_path, shape, splits, keys, message
):
  _write_set(tmp_path, "odd", shape, splits, keys=keys)
  with pytest.raises(data.DataError, match=message):
    read_info("odd", tmp_path)
  with pytest.raises(data.DataError, match=message):
    load("odd", tmp_path)


def test_set_larger_than_memory_is_refused(small_set, monkeypatch):
  folder, _, _ = small_set
  monkeypatch.setattr(request.os, "sysconf", lambda name: 10)
  with pytest.raises(data.DataError, match="more than half"):
    read_info("small", folder)


def test_unreadable_set_is_a_data_error(tmp_path):
  folder = tmp_path / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text("not json")
  with pytest.raises(data.DataError, match="cannot read"):
    read_info("mnist", tmp_path)


def _touch_set(folder):
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text("{}")


def test_find_takes_the_newest_version_and_the_only_config(tmp_path):
  for version in ("9.0.0", "10.0.0", "2.0.0"):
    _touch_set(tmp_path / "plain" / version)
  (tmp_path / "plain" / "incomplete.X_11.0.0").mkdir()
  plain = tmp_path / "plain"
  assert find.find(tmp_path, "plain") == plain / "10.0.0"
  assert find.find(tmp_path, "plain:9.0.0") == plain / "9.0.0"
  assert find.find(tmp_path, "plain:3.0.0") is None
  _touch_set(tmp_path / "many" / "small" / "1.0.0")
  small = tmp_path / "many" / "small" / "1.0.0"
  assert find.find(tmp_path, "many") == small
  _touch_set(tmp_path / "many" / "large" / "1.0.0")
  with pytest.raises(data.DataError, match="many/large, many/small"):
    find.find(tmp_path, "many")
  assert find.find(tmp_path, "many/small:1.0.0") == small
  for outside in ("../plain", "plain/../plain", "/plain", "", "."):
    assert find.find(tmp_path, outside) is None


# What is said when a set is not there.


def test_missing_set_names_the_command(tmp_path):
  with pytest.raises(data.DataError) as caught:
    read_info("cifar10", tmp_path)
  message = str(caught.value)
  assert f"scripts/prepare_data.py cifar10 --data_dir={tmp_path}" in message
  assert "\n" not in message
  with pytest.raises(data.DataError) as caught:
    load("fashion_mnist", tmp_path)
  message = str(caught.value)
  assert "scripts/prepare_data.py fashion_mnist --data_dir" in message
  assert "scripts/prepare_data.py fashion_mnist --from_debian" in message


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert data.default_data_dir() == tmp_path
  with pytest.raises(data.DataError, match=str(tmp_path)):
    read_info("cifar10")
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert data.default_data_dir() == tmp_path / "tensorflow_datasets"


def test_a_set_that_is_not_found_says_why_and_where(tmp_path):
  """They were all `unknown data set 'mine': did you mean 'mine'`."""

  def refused(name, folder=tmp_path):
    lines = set()
    for function in (read_info, load):
      with pytest.raises(data.DataError) as caught:
        function(name, folder)
      lines.add(str(caught.value))
    (line,) = lines
    assert "\n" not in line and "unknown" not in line
    return line

  mine = tmp_path / "mine"
  _touch_set(mine / "1.0.0")
  _touch_set(mine / "2.0.0")
  line = refused("mine:3.0.0")
  assert f"version 3.0.0 is not in {mine}, which has 1.0.0, 2.0.0" in line
  # Preparing was interrupted: TFDS writes to a folder of another name first.
  left = mine / "incomplete.AB12_3.0.0"
  left.mkdir()
  line = refused("mine:3.0.0")
  assert f"its preparation in {left} was interrupted" in line
  assert f"prepare_data.py mine:3.0.0 --data_dir={tmp_path}" in line
  other = tmp_path / "other" / "1.0.0"
  other.mkdir(parents=True)
  assert f"its preparation in {other} was interrupted" in refused("other")
  # A folder above or below the right one.
  for wrong in (mine, mine / "1.0.0", tmp_path.parent):
    line = refused("mine", wrong)
    assert f"it is not in {wrong}, but in {tmp_path}: give that" in line
  line = refused("cifar10", tmp_path / "nowhere")
  assert f"in {tmp_path / 'nowhere'} (there is no such folder): type" in line
  _touch_set(tmp_path / "many" / "small" / "1.0.0")
  line = refused("many/smal")
  assert f"config 'smal' is not in {tmp_path / 'many'}" in line
  assert "many/small" in line
  line = refused(str(mine / "1.0.0"), None)
  assert "was prepared by TFDS: give its name" in line


def test_unknown_name_gets_the_nearest(tmp_path):
  (tmp_path / "my_flowers").mkdir()
  for wrong, near in (
    ("fashion_mnits", "'fashion_mnist'"),
    ("imagenete", "'imagenette'"),
    ("my_flower", "'my_flowers'"),
  ):
    with pytest.raises(data.DataError, match="unknown data set") as caught:
      read_info(wrong, tmp_path)
    assert near in str(caught.value)
  not_names: list[Any] = [None, "", 3]
  for wrong in not_names:
    with pytest.raises(data.DataError, match="fashion_mnist_10k"):
      read_info(wrong, tmp_path)


def test_missing_set_ends_in_seconds_without_network_or_tensorflow(tmp_path):
  """TFDS by itself retries a download for 205 s before it says so."""
  code = f"""
import socket, sys
def refuse(*args, **kwargs):
  raise SystemExit("touched the network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from ws_jax import data
for name in ("cifar10", "cifar11"):
  try:
    data.load(data.Request(name, dir={str(tmp_path)!r}))
  except data.DataError as error:
    print(error)
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "prepare_data.py cifar10" in done.stdout
  assert "did you mean" in done.stdout


def test_reading_does_not_import_tensorflow(small_set):
  folder, path, _ = small_set
  (path / cache.CACHE_NAME).unlink(missing_ok=True)
  code = f"""
import sys
from ws_jax import data
assert "tensorflow_datasets" not in sys.modules, "slows `import ws_jax`"
data.load(data.Request("small", dir={str(folder)!r}))
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def test_classes_of_tfds_have_names_unless_there_are_very_many():
  tfds = pytest.importorskip("tensorflow_datasets")
  made_up = tfds.features.ClassLabel(num_classes=3)
  named = tfds.features.ClassLabel(names=["b", "a"])
  assert labels.names_of(made_up, "x") == ("0", "1", "2")
  assert labels.own_names_of(made_up, "x") == ()
  assert labels.names_of(named, "x") == labels.own_names_of(named, "x")
  assert labels.names_of(named, "x") == ("b", "a")
  many = tfds.features.ClassLabel(num_classes=2_000_000_000)
  for read in (labels.names_of, labels.own_names_of):
    with pytest.raises(data.DataError, match="x: 2,000,000,000 classes are"):
      read(many, "x")
