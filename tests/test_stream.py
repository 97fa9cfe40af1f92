"""Streamed images: what is read, in which order, and what is said of errors.

Every file here is a real one, and every broken file is broken on disk.
"""

import dataclasses
import io
import json
import pathlib
import shutil
import tarfile

import flax.linen as nn
import jax
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from ws_jax import config, data
from ws_jax.data import stream
from ws_jax.data.stream import crops, loader, prepare, rand_augment, shards
from ws_jax.data.stream.records import Packed
from ws_jax.data.stream.source import StreamSource
from ws_jax.train import build, loop

pytest.importorskip("grain", reason="pip install -e '.[stream]'")

SMALL = stream.Options(image_size=16, eval_resize=20, workers=2)


def write_images(folder, classes=3, each=6):
  """Writes JPEG files of several sizes, whose content tells them apart."""
  rng = np.random.default_rng(0)
  for split in ("train", "test"):
    for label in range(classes):
      path = folder / split / f"class{label}"
      path.mkdir(parents=True)
      for i in range(each):
        size = [(40, 30), (30, 44), (64, 48)][i % 3]
        colours = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(colours).resize(size)
        image.save(path / f"{label}{i}.jpg", quality=95)
  return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return write_images(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture
def own_images(images, tmp_path):
  """A copy that a test may break."""
  return pathlib.Path(shutil.copytree(images, tmp_path / "set"))


def request(path, **changed):
  wanted = {"stream": SMALL} | changed
  return data.Request(str(path), **wanted)


def skipping(**changed):
  return dataclasses.replace(SMALL, on_error="skip", **changed)


def source(path, batch_size=8, micro=None, devices=1, seed=0, **changed):
  mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
  dataset = data.load(request(path, **changed))
  return StreamSource(dataset, seed, batch_size, micro or batch_size, mesh)


def steps_of(path, steps, **changed):
  """Returns the images and labels of steps, as bytes."""
  with_workers = source(path, **changed)
  found = []
  for step in steps:
    arrays, _ = with_workers.block(step, 1)
    found.append({key: np.asarray(x).tobytes() for key, x in arrays.items()})
  with_workers.close()
  return found


# Pixels.


@given(
  st.integers(0, 2**31),
  st.integers(1, 600),
  st.integers(1, 600),
  st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_a_random_window_lies_within_the_image(seed, width, height, least):
  rng = np.random.default_rng(seed)
  left, top, right, bottom = crops.random_window(rng, width, height, least)
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height


def test_random_windows_have_the_areas_and_ratios_of_the_paper():
  rng = np.random.default_rng(0)
  found = np.array(
    [crops.random_window(rng, 1000, 1000, 0.25) for _ in range(2000)]
  )
  sides = found[:, 2:] - found[:, :2]
  areas, ratios = sides.prod(1) / 1e6, sides[:, 0] / sides[:, 1]
  assert 0.249 < areas.min() < 0.27 and areas.max() > 0.95
  assert 0.745 < ratios.min() < 0.77 and 1.3 < ratios.max() < 1.34
  # As likely wide as high.
  assert abs(np.log(ratios).mean()) < 0.02


def encode(shape=(48, 64, 3), mode=None, form="JPEG", seed=0):
  rng = np.random.default_rng(seed)
  image = PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
  image = image.convert(mode) if mode else image
  stored = io.BytesIO()
  image.save(stored, form, **({"quality": 95} if form == "JPEG" else {}))
  return stored.getvalue()


def test_training_pixels_are_those_of_pillow():
  encoded, seed = encode(), 5
  window = crops.random_window(np.random.default_rng(seed), 64, 48, 0.08)
  image = PIL.Image.open(io.BytesIO(encoded)).crop(window)
  expected = np.asarray(image.resize((16, 16), PIL.Image.Resampling.BILINEAR))
  found = crops.train_pixels(encoded, np.random.default_rng(seed), SMALL)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("subsampling", "progressive", "mode"),
  [
    *((n, False, "RGB") for n in (0, 1, 2)),
    *((2, True, "RGB"), (0, False, "L"), (2, False, "CMYK")),
  ],
)
@pytest.mark.parametrize("restarts", [0, 1])
def test_rows_below_the_crop_change_nothing(
  subsampling, progressive, mode, restarts
):
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
  image = PIL.Image.fromarray(colours).resize((75, 150)).convert(mode)
  stored = io.BytesIO()
  image.save(
    stored,
    "JPEG",
    subsampling=subsampling,
    progressive=progressive,
    restart_marker_rows=restarts,
  )
  encoded = stored.getvalue()
  whole = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
  saw_less = False
  for seed in range(20):
    window = crops.random_window(np.random.default_rng(seed), 75, 150, 0.08)
    frame = crops._frame(encoded)
    if frame is not None:
      assert frame[1:3] == (75, 150)
      less = crops._rows_through(encoded, frame, window[3])
      saw_less |= PIL.Image.open(io.BytesIO(less)).height < 150
    expected = whole.crop(window).resize(
      (16, 16), PIL.Image.Resampling.BILINEAR
    )
    found = crops.train_pixels(encoded, np.random.default_rng(seed), SMALL)
    np.testing.assert_array_equal(found, np.asarray(expected))
  assert saw_less != progressive


@pytest.mark.parametrize("shape", [(48, 64, 3), (65, 40, 3), (20, 20, 3)])
def test_evaluation_takes_the_middle_of_the_resized_image(shape):
  encoded = encode(shape)
  height, width = shape[:2]
  scale = 20 / min(height, width)
  size = int(scale * width + 1e-9), int(scale * height + 1e-9)
  image = PIL.Image.open(io.BytesIO(encoded))
  whole = np.asarray(image.resize(size, PIL.Image.Resampling.BILINEAR))
  top, left = round((size[1] - 16) / 2), round((size[0] - 16) / 2)
  expected = whole[top : top + 16, left : left + 16]
  np.testing.assert_array_equal(crops.eval_pixels(encoded, SMALL), expected)


@pytest.mark.parametrize(
  ("mode", "form"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG")]
)
def test_grey_and_other_images_become_rgb(mode, form):
  encoded = encode(mode=mode, form=form)
  assert crops.eval_pixels(encoded, SMALL).shape == (16, 16, 3)


@pytest.mark.slow
def test_pixels_are_those_of_torchvision():
  pytest.importorskip("torchvision")
  from torchvision import transforms

  encoded = encode((375, 500, 3))
  image = PIL.Image.open(io.BytesIO(encoded))
  options = stream.Options()
  whole = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224)]
  )
  np.testing.assert_array_equal(
    crops.eval_pixels(encoded, options), np.asarray(whole(image))
  )
  rng = np.random.default_rng(0)
  left, top, right, bottom = crops.random_window(rng, 500, 375, 0.08)
  theirs = transforms.functional.resized_crop(
    image, top, left, bottom - top, right - left, (224, 224), antialias=True
  )
  found = crops.train_pixels(encoded, np.random.default_rng(0), options)
  np.testing.assert_array_equal(found, np.asarray(theirs))


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
def test_strength_0_leaves_an_image_as_it_is(name):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
  pixels[0, :2] = [[0] * 3, [255] * 3]  # Their contrast is full already.
  image = PIL.Image.fromarray(pixels)
  operation = rand_augment.OPERATIONS[name]
  same = np.asarray(operation(image, 0.0, 1))
  if name != "equalize":
    np.testing.assert_array_equal(same, pixels)
  other = np.asarray(operation(image, 1.0, -1))
  assert other.shape == pixels.shape
  assert (other != pixels).any() == (name not in ("identity", "auto_contrast"))


def test_rand_augment_is_decided_by_its_generator():
  image = PIL.Image.open(io.BytesIO(encode()))
  draw = lambda seed: np.asarray(
    rand_augment.apply(image, np.random.default_rng(seed), 2, 9.0)
  ).tobytes()
  drawn = [draw(seed) for seed in range(8)]
  assert drawn == [draw(seed) for seed in range(8)]
  assert len(set(drawn)) > 4


# Order.


def test_the_number_of_workers_changes_nothing(images):
  one, three = (
    steps_of(images, range(4), stream=dataclasses.replace(SMALL, workers=n))
    for n in (1, 3)
  )
  assert one == three
  assert len({step["image"] for step in one}) == 4


@pytest.mark.slow
def test_worker_processes_change_nothing(images):
  threads = steps_of(images, range(5))
  processes = dataclasses.replace(SMALL, workers=None, processes=2)
  assert steps_of(images, range(5), stream=processes) == threads
  assert steps_of(images, [3, 4], stream=processes) == threads[3:]


def test_any_step_is_found_without_those_before_it(images):
  assert steps_of(images, [3, 4]) == steps_of(images, range(5))[3:]
  # Back again, as after a divergence.
  assert steps_of(images, [1, 0]) == steps_of(images, range(2))[::-1]


def test_steps_take_the_examples_that_memory_takes(images):
  dataset = data.load(request(images))
  order = data.batch_indices(7, 2, 2, 8, 18)
  records = dataset.stream.records["train"]
  labels = np.array([records.read(i)[1] for i in range(18)])
  with_workers = source(images, seed=7, micro=4)
  arrays, indices = with_workers.block(2, 2)
  with_workers.close()
  assert indices.tolist() == np.arange(16).reshape(2, 2, 4).tolist()
  np.testing.assert_array_equal(arrays["label"], labels[order].ravel())


def test_each_device_holds_a_part_of_every_micro_batch(images):
  """Otherwise a micro-batch would be sent from device to device."""
  alone = source(images, seed=7, micro=4)
  spread = source(images, seed=7, micro=4, devices=2)
  (one, order), (other, positions) = (x.block(2, 1) for x in (alone, spread))
  for each in (alone, spread):
    each.close()
  held = [
    set(np.ravel(x.index[0].indices(8)[:1]))
    for x in other["label"].addressable_shards
  ]
  assert held == [{0}, {4}]
  # The two micro-batches of both devices, of two examples each.
  assert (positions[0] // 4).tolist() == [[0, 0, 1, 1]] * 2
  for key in one:
    np.testing.assert_array_equal(
      np.asarray(other[key])[positions], np.asarray(one[key])[order]
    )


def test_another_seed_or_epoch_crops_differently(images):
  one, other = steps_of(images, [0]), steps_of(images, [0], seed=1)
  assert one[0]["image"] != other[0]["image"]
  epochs = steps_of(images, range(2), batch_size=18)
  assert epochs[0]["image"] != epochs[1]["image"]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_a_batch_between_them(images, hosts):
  opened = data.load(request(images)).stream
  rows = np.split(np.arange(8), hosts)

  def take(rows):
    examples = loader.TrainExamples(
      opened.records["train"], range(18), SMALL, 0, 8, rows, 0
    )
    return [examples[i]["image"] for i in range(2 * len(rows))]

  whole = np.stack(take(np.arange(8))).reshape(2, 8, 16, 16, 3)
  parts = [np.stack(take(r)).reshape(2, len(r), 16, 16, 3) for r in rows]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(("size", "devices"), [(5, 1), (7, 4), (18, 2)])
def test_evaluation_sees_every_example_once(images, size, devices):
  records = data.load(request(images)).stream.records["test"]
  with_workers = source(images, devices=devices)
  seen, count = [], 0.0
  for arrays, indices, mask in with_workers.batches(size):
    assert len(arrays["label"]) == len(mask) == len(indices)
    assert len(mask) % devices == 0
    kept = np.asarray(mask) > 0
    seen += np.asarray(arrays["image"])[kept].tolist()
    count += float(mask.sum())
  expected = [crops.eval_pixels(records.read(i)[0], SMALL) for i in range(18)]
  assert count == 18
  np.testing.assert_array_equal(np.array(seen), np.stack(expected))


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_hosts_evaluate_every_example_once_in_as_many_batches(images, hosts):
  records = data.load(request(images)).stream.records["test"]
  found, lengths = [], set()
  for rows in np.array_split(np.arange(6), hosts):
    part = range(1, 17)  # A slice of the split.
    examples = loader.EvalExamples(records, part, SMALL, 6, rows)
    lengths.add(len(examples) / len(rows))
    every = [examples[i] for i in range(len(examples))]
    found += [int(one["index"]) for one in every if one["mask"]]
  assert sorted(found) == list(range(16))
  assert lengths == {3}


TINY = {
  "data.source": "stream",
  "data.image_size": 16,
  "data.eval_resize": 20,
  "data.batch_size": 8,
  "data.eval_batch_size": 8,
  "data.workers": 1,
  "task.crop_padding": 0,
  "task.cutmix": 1.0,
  "train.steps": 4,
  "train.checkpoint_every_steps": 2,
  "train.keep_checkpoints": 2,
}


class TwoLayers(nn.Module):
  """The smallest model with a convolution, which compiles in a second."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(4, (3, 3), strides=4)(x))
    return nn.Dense(3)(x.mean((1, 2)))


def test_a_resumed_run_is_the_uninterrupted_one(own_images, tmp_path):
  broken = next((own_images / "train").glob("*/*0.jpg"))
  broken.write_bytes(broken.read_bytes()[:200])
  changed = TINY | {"data.name": str(own_images), "data.on_error": "skip"}
  c = config.apply(config.default(), changed)
  model = TwoLayers()
  metrics = loop.train_and_evaluate(c, tmp_path / "run", model=model)
  status = json.loads((tmp_path / "run/status.json").read_text())
  assert list(status["input"]["files"]) == [str(broken)]
  assert "cannot be decoded" in status["input"]["files"][str(broken)]
  assert status["input"]["unreadable"] >= 1
  assert status["data"]["train_size"] == 18

  saved = tmp_path / "run" / "checkpoints"
  kept = sorted(path.name for path in saved.iterdir() if path.name.isdigit())
  assert kept == ["2", "4"]
  expected = loop_state(c, saved)
  shutil.rmtree(saved / "4")
  # The number of workers may change in between.
  c = config.apply(c, {"data.workers": 3})
  again = loop.train_and_evaluate(c, tmp_path / "run", model=model)
  assert again == metrics
  jax.tree.map(np.testing.assert_array_equal, loop_state(c, saved), expected)


def loop_state(c, folder):
  from ws_jax.train import checkpoint

  checkpoints = checkpoint.Checkpoints(folder, keep=1)
  state, step = checkpoints.newest(build.start(c, model=TwoLayers()).state())
  checkpoints.close()
  assert step == 4
  return jax.device_get(state)


# What is missing or broken.


def refused(path, **changed):
  with pytest.raises(data.DataError) as caught:
    data.load(request(path, **changed))
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_a_broken_image_is_named(own_images):
  for path in (own_images / "train").glob("*/*.jpg"):
    path.write_bytes(path.read_bytes()[:-300])
  with pytest.raises(data.DataError, match=r"class\d/\d\d.jpg cannot be deco"):
    steps_of(own_images, [0])
  everything = source(own_images, stream=skipping())
  with pytest.raises(data.DataError, match="100 images in a row"):
    everything.block(0, 1)
  everything.close()


def test_a_skipped_image_is_counted_and_the_next_one_taken(own_images):
  opened = data.load(request(own_images)).stream.records["train"]
  first = int(data.batch_indices(0, 0, 1, 8, 18)[0, 0])
  path = pathlib.Path(opened.name(first))
  path.write_bytes(b"no image")
  with_workers = source(own_images, stream=skipping())
  arrays, _ = with_workers.block(0, 1)
  with_workers.close()
  assert with_workers.counts["unreadable"] == 1
  assert list(with_workers.counts["files"]) == [str(path)]
  encoded, label = opened.read((first + 1) % 18)
  rng = np.random.default_rng([0, 0, 1])
  expected = crops.train_pixels(encoded, rng, SMALL)
  np.testing.assert_array_equal(arrays["image"][0], expected)
  assert arrays["label"][0] == label


def test_evaluation_gives_no_weight_to_what_cannot_be_read(own_images):
  with_workers = source(own_images, stream=skipping())
  gone, empty, *_ = sorted((own_images / "test").glob("*/*.jpg"))
  gone.unlink()
  empty.write_bytes(b"")
  masks = [np.asarray(mask) for *_, mask in with_workers.batches(6)]
  assert np.concatenate(masks).sum() == 16
  assert with_workers.counts["unreadable"] == 2
  assert with_workers.counts["files"][str(gone)].startswith("cannot be read")
  assert with_workers.counts["files"][str(empty)].startswith("cannot be dec")


def test_an_evaluation_of_nothing_is_an_error(own_images):
  """Regression: its loss was 0, and its accuracy."""
  every = sorted((own_images / "test").glob("*/*.jpg"))
  for path in every:
    path.write_bytes(b"")
  with_workers = source(own_images, stream=skipping())
  message = rf"none of {len(every)} images to evaluate on .*class\d/\d\d.jpg"
  with pytest.raises(data.DataError, match=message):
    list(with_workers.batches(6))


def test_an_empty_class_is_named_or_left_out(own_images):
  shutil.rmtree(own_images / "train" / "class1")
  (own_images / "train" / "class1").mkdir()
  line = refused(own_images)
  assert line == f"{own_images / 'train' / 'class1'} holds no image"
  dataset = data.load(request(own_images, stream=skipping()))
  assert dataset.stream.left_out == (line,)
  assert dataset.info.train_size == 12
  assert dataset.num_classes == 3  # Those of the other split keep their number.


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["a-00001-of-00002.tar"], ["a-00000-of-00002.tar"]),
    (["a-0.tar", "a-3.tar"], ["a-1.tar", "a-2.tar"]),
    (["b-01.tar", "b-02.tar"], []),
    (["x.tfrecord-00000-of-00002"], ["x.tfrecord-00001-of-00002"]),
    (["c.tar", "d.tar"], []),
  ],
)
def test_missing_shards_are_seen_by_their_numbers(names, expected):
  assert shards.missing(names) == expected


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
  """The images as tar files and as a set of TFDS, each in several files."""
  folder = tmp_path_factory.mktemp("packed")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, "_SHARD_BYTES", 6000)
    prepare.prepare_folder(images, "tars", data_dir=folder, kind="tar")
  prepare.prepare_folder(images, "records", data_dir=folder)
  return folder


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("My set", "must be lower-case letters"),
    ("tars", "is there already: choose another name"),
  ],
)
def test_a_name_that_cannot_be_taken_is_refused(images, packed, name, line):
  with pytest.raises(data.DataError, match=line):
    prepare.prepare_folder(images, name, data_dir=packed, kind="tar")
  names = {path.name for path in packed.iterdir()}
  assert names == {"tars", "records"}  # Nothing half done is left.


def content(dataset):
  """Returns the bytes and the class of every image, in no order."""
  names = dataset.info.classes
  return {
    split: sorted(
      (names[label], encoded)
      for encoded, label in (records.read(i) for i in range(len(records)))
    )
    for split, records in dataset.stream.records.items()
  }


def test_packed_images_are_those_of_the_folder(images, packed):
  expected = content(data.load(request(images)))
  assert len(list((packed / "tars/train").glob("*.tar"))) > 1
  for name in ("tars", "records"):
    assert content(data.load(request(packed / name))) == expected
  # A set of TFDS by its name as well, and tar files by their index.
  for name in ("tars", "records"):
    named = data.Request(name, dir=str(packed), stream=SMALL)
    assert content(data.load(named)) == expected
  assert content(data.load(request(packed / "tars"))) == expected
  assert (packed / "tars/train.ws_jax_index.npz").exists()


def test_tar_files_of_webdataset_have_labels_in_files(tmp_path):
  for split, count in (("train", 3), ("val", 2)):
    with tarfile.open(tmp_path / f"{split}-000000.tar", "w") as archive:
      for i in range(count):
        for suffix, stored in (("jpg", encode(seed=i)), ("cls", b"%d\n" % i)):
          member = tarfile.TarInfo(f"{i:04d}.{suffix}")
          member.size = len(stored)
          archive.addfile(member, io.BytesIO(stored))
  dataset = data.load(request(tmp_path))
  records = dataset.stream.records["train"]
  assert [records.read(i) for i in range(3)] == [
    (encode(seed=i), i) for i in range(3)
  ]
  assert records.name(2).endswith("train-000000.tar, 0002.jpg")
  assert dataset.info.num_classes == 3 and dataset.info.eval_size == 2


@pytest.mark.parametrize("name", ["tars", "records"])
def test_a_missing_or_cut_file_is_named_or_left_out(packed, tmp_path, name):
  folder = pathlib.Path(shutil.copytree(packed / name, tmp_path / name))
  files = sorted(folder.rglob("*train*-of-*"))
  whole = files[0].read_bytes()
  files[0].write_bytes(whole[: len(whole) // 2])
  assert str(files[0]) in (line := refused(folder))
  assert "cut off" in line or "read to its end" in line
  if name == "tars":  # The set of TFDS has one file, too little to lose.
    dataset = data.load(request(folder, stream=skipping()))
    assert str(files[0]) in dataset.stream.left_out[0]
    assert 0 < dataset.info.train_size < 18
  files[0].unlink()
  assert f"{files[0]}" in refused(folder)
  assert "missing" in refused(folder)


def test_a_set_that_lists_no_files_is_refused(packed, tmp_path):
  """Found by `scripts/fuzz.py`: there was no first file to name."""
  folder = pathlib.Path(shutil.copytree(packed / "records", tmp_path / "set"))
  (path,) = folder.rglob("dataset_info.json")
  info = json.loads(path.read_text())
  for split in info["splits"]:
    split["shardLengths"] = []
  path.write_text(json.dumps(info))
  assert "has no files in dataset_info.json" in refused(folder)


def test_very_many_classes_are_refused_before_they_have_names(packed, tmp_path):
  """Found by `scripts/fuzz.py`: it took gigabytes, and over ten seconds."""
  folder = pathlib.Path(shutil.copytree(packed / "records", tmp_path / "set"))
  (path,) = folder.rglob("features.json")
  found = json.loads(path.read_text())
  label = found["featuresDict"]["features"]["label"]["classLabel"]
  label["numClasses"] = "2000000000"
  path.write_text(json.dumps(found))
  for names in folder.rglob("*.labels.txt"):
    names.unlink()
  assert "2,000,000,000 classes are more than" in refused(folder)


def test_records_of_tfrecord_files_are_found_and_read(tmp_path):
  from tensorflow_datasets.proto import tf_example_pb2

  def record(i):
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["image"].bytes_list.value.append(encode(seed=i))
    features["label"].int64_list.value.append(i)
    return example.SerializeToString()

  pieces = [record(i) for i in range(3)]
  path = tmp_path / "train.tfrecord"
  path.write_bytes(
    b"".join(
      len(piece).to_bytes(8, "little") + bytes(4) + piece + bytes(4)
      for piece in pieces
    )
  )
  index = shards.tfrecord_index([path], tmp_path / "a.npz", shards.raise_error)
  records = Packed([path], index, ("image", "label"))
  assert [records.read(i) for i in range(3)] == [
    (encode(seed=i), i) for i in range(3)
  ]
  with open(path, "rb+") as file:
    file.truncate(path.stat().st_size - 20)
  with pytest.raises(data.DataError, match="cut off in the record at byte"):
    shards.tfrecord_index([path], tmp_path / "b.npz", shards.raise_error)
  with pytest.raises(data.DataError, match="is cut off"):
    records.read(2)


def test_what_is_no_set_of_images_is_refused(tmp_path, images):
  assert "there is no folder" in refused(tmp_path / "nowhere")
  (tmp_path / "train").mkdir()
  assert "needed are train, and test" in refused(tmp_path)
  asked = data.Request("imagenet2012", dir=str(tmp_path), stream=SMALL)
  with pytest.raises(data.DataError, match="prepare_data.py imagenet2012"):
    data.load(asked)
  assert "did you mean 'image'" in refused(images, input_key="imag")
  with pytest.raises(data.DataError, match="takes a name or a path"):
    data.load(data.Request({"train": {}}, stream=SMALL))


@pytest.mark.slow
def test_the_imagenet_builder_of_tfds_is_streamed(tmp_path):
  """The real builder, fed with tar files of two classes and few images."""
  tfds = pytest.importorskip("tensorflow_datasets")
  pytest.importorskip("tensorflow")
  manual = tmp_path / "manual"
  manual.mkdir()
  stored = {}

  def add(archive, name, payload):
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    archive.addfile(member, io.BytesIO(payload))

  with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
    for synset in ("n01440764", "n01443537"):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode="w") as archive:
        for i in range(3):
          name = f"{synset}_{i}.JPEG"
          stored[name] = encode((60 + i, 80, 3), seed=len(stored))
          add(archive, name, stored[name])
      add(outer, f"{synset}.tar", inner.getvalue())
  with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
    for i in range(1, 4):
      add(archive, f"ILSVRC2012_val_{i:08d}.JPEG", encode(seed=100 + i))
  builder = tfds.builder(
    "imagenet2012", data_dir=tmp_path, file_format="array_record"
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=manual),
    file_format="array_record",
  )
  wanted = data.Request(
    "imagenet2012", dir=str(tmp_path), eval_split="validation", stream=SMALL
  )
  dataset = data.load(wanted)
  assert dataset.num_classes == 1000 and dataset.info.eval_size == 3
  records = dataset.stream.records["train"]
  found = dict(records.read(i) for i in range(6))
  assert set(found) == set(stored.values())
  for name, payload in stored.items():
    assert dataset.info.classes[found[payload]] == name.partition("_")[0]


# Mixing, on the device.


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_mixed_images_and_labels_have_one_share(mixup, cutmix):
  from ws_jax.data import augment

  images = np.zeros((4, 16, 16, 3), np.float32)
  images += np.arange(1, 5, dtype=np.float32)[:, None, None, None]
  for seed in range(5):
    key = jax.random.key(seed)
    mixed, share = augment.mix(key, jax.numpy.asarray(images), mixup, cutmix)
    expected = share * images + (1 - share) * images[::-1]
    np.testing.assert_allclose(
      np.asarray(mixed).mean((1, 2, 3)), expected.mean((1, 2, 3)), rtol=1e-5
    )
    if cutmix:
      assert set(np.unique(mixed[0])) <= {1.0, 4.0}
    else:
      np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_a_mixed_batch_has_both_labels_and_evaluation_is_not_mixed():
  from ws_jax import tasks

  task = tasks.ImageClassification((0.0,), (1.0,), mixup=0.4, cutmix=1.0)
  rng = np.random.default_rng(0)
  arrays = {
    "image": rng.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8),
    "label": np.arange(6, dtype=np.int32),
  }
  indices = np.array([1, 4, 2], np.int32)
  batch = task.batch(arrays, indices, jax.random.key(0))
  assert batch["other_labels"].tolist() == [2, 4, 1]
  share = float(batch["share"][0])
  logits = jax.numpy.asarray(rng.normal(size=(3, 6)), jax.numpy.float32)
  sums = task.sums(logits, batch, jax.numpy.ones(3), training=True)
  log_p = np.asarray(jax.nn.log_softmax(logits))
  loss = -sum(
    share * log_p[i, own] + (1 - share) * log_p[i, other]
    for i, (own, other) in enumerate(zip([1, 4, 2], [2, 4, 1], strict=True))
  )
  np.testing.assert_allclose(float(sums["loss"]), loss, rtol=1e-5)
  assert set(task.batch(arrays, indices, None)) == {"inputs", "labels"}


# The recipes for ImageNet.


@pytest.mark.parametrize("name", ["ws_r50", "bn", "gn", "bit_s_r50", "nf_r50"])
def test_each_recipe_for_imagenet_is_complete(name):
  c = config.load(f"configs/imagenet.py:{name}")
  resolved = config.resolve(c, num_examples=1_281_167, num_devices=1)
  assert resolved.data.source == "stream"
  model = build.build_model(resolved, num_outputs=1000)
  assert model is not None
  build.build_optimizer(resolved)


def test_an_unknown_recipe_is_one_line():
  with pytest.raises(config.ConfigError, match="did you mean 'bit_s_r50'"):
    config.load("configs/imagenet.py:bit_r50")
  changed = config.load("configs/imagenet.py:gn,batch_size=512")
  assert changed.data.batch_size == 512 and not changed.model.ws
  assert config.load("configs/imagenet.py:norm=batch").model.norm == "batch"


@pytest.mark.slow
def test_the_benchmark_times_loaders_on_cut_photographs(tmp_path):
  from ws_jax.bench import Options
  from ws_jax.bench import stream as timed

  with pytest.raises(ValueError, match="no photograph in"):
    timed.run(Options(photographs=(str(tmp_path),)))
  colours = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
  photograph = PIL.Image.fromarray(colours).resize((1300, 1100))
  photograph.save(tmp_path / "photograph.jpg")
  options = Options(
    batch_sizes=(4,),
    rounds=1,
    workers=(1,),
    photographs=(str(tmp_path),),
    examples=20,
  )
  (table,) = timed.run(options)
  names = [row["contender"] for row in table.rows]
  assert names == ["ws_jax, threads", "ws_jax, processes"]
  assert all(row["examples/s"] > 0 for row in table.rows)
