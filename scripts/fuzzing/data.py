"""Data: arrays, images, audio, sets to stream, texts."""

import base64
import json
import pathlib
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing import inputs
from fuzzing.inputs import JSON, NAMES, TEXTS, Made, changed, damaged, one_line
from ws_jax.data import audio_files, audio_folder, datasets
from ws_jax.data import images as images_lib
from ws_jax.data.request import DataError, Request
from ws_jax.data.stream import crops, opened, prepare
from ws_jax.data.stream import records as records_lib
from ws_jax.data.stream.options import Options
from ws_jax.data.text import labelled, tokenizers
from ws_jax.data.text import options as text_options
from ws_jax.train import predictions
from ws_jax.weights import predict

_SIZES = Options(image_size=8, eval_resize=9)


def arrays(folder: pathlib.Path) -> Made:
  """Makes files of arrays: sets of a user, and what runs keep of answers."""
  data, kept = folder / "data.npz", folder / predictions.FILE_NAME
  made: Any = inputs.some_arrays()
  np.savez(data, **made, classes=np.array(list("abcd")))
  zero = np.zeros(3, np.int32)
  answers = predictions.Predictions(zero, zero, zero, ("a", "b"), ("c",), "d")
  answers.write(folder)
  names = st.sampled_from([*made, "classes", "train_", "test"]) | NAMES
  own = ("label", "answer", "group", "classes", "groups", "group_key")
  contents = {
    data: damaged(data.read_bytes()) | inputs.archives(names),
    kept: damaged(kept.read_bytes()) | inputs.archives(st.sampled_from(own)),
  }

  def case(value):
    path, content = value
    path.write_bytes(content)
    with one_line(ValueError):
      if path == data:
        datasets.load(Request(str(path)))
        return
      found = predictions.read(folder)
      assert found and found.confusion.sum() == len(found.label)
      assert isinstance(found.by_group, dict)

  return st.one_of(
    [st.tuples(st.just(p), x) for p, x in contents.items()]
  ), case


def images(folder: pathlib.Path) -> Made:
  """Makes image files: of a folder, of a stream, and given to `predict`."""
  path = folder / "x.png"

  def case(data):
    path.write_bytes(data)
    with one_line(DataError):
      images_lib.read_shape(path)
      images_lib._pixels(path, images_lib.read_shape(path), path)
    with one_line(DataError):
      crops.train_pixels(data, np.random.default_rng(0), _SIZES)
    with one_line(DataError):
      crops.eval_pixels(data, _SIZES)
    with one_line(ValueError, OSError):
      predict.read_image(path, (9, 7, 3))

  return st.one_of([damaged(whole) for whole in inputs.pictures()]), case


def audio(folder: pathlib.Path) -> Made:
  """Makes audio files: WAV, FLAC and Ogg."""
  import soundfile

  wave = np.sin(np.arange(400) / 5).astype(np.float32)
  made = []
  for suffix, kind in (
    *(("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "MS_ADPCM")),
    *(("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS")),
  ):
    whole = folder / f"whole.{suffix}"
    soundfile.write(whole, wave, 8000, subtype=kind)
    made.append(st.tuples(st.just(suffix), damaged(whole.read_bytes())))

  def case(value):
    suffix, data = value
    path = folder / f"x.{suffix}"
    path.write_bytes(data)
    with one_line(DataError):
      audio_files.read_header(path)
    with one_line(DataError):
      audio_files.read_input(path, 16000, 1000)
    with one_line(DataError):
      audio_files.decode([path])

  return st.one_of(made), case


def records(folder: pathlib.Path) -> Made:
  """Makes sets to stream, array_record and tar: a file of one is damaged."""
  for split in ("train", "test"):
    for name in "ab":
      place = folder / "images" / split / name
      place.mkdir(parents=True)
      for i, content in enumerate(inputs.pictures()[:2]):
        (place / f"{i}.jpg").write_bytes(content)
  whole: dict[pathlib.Path, bytes] = {}
  for kind in ("array_record", "tar"):
    root = prepare.prepare_folder(
      folder / "images", f"set_{kind}", data_dir=folder / "sets", kind=kind
    )
    whole |= {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
  made = []
  for path, content in sorted(whole.items()):
    made.append(st.tuples(st.just(path), damaged(content)))
    if path.suffix == ".json":
      value = changed(json.loads(content)).map(inputs.as_json)
      made.append(st.tuples(st.just(path), value))

  def case(value):
    (path, content), on_error = value
    path.write_bytes(content)
    try:
      _read_all(path.parent, on_error)
    finally:
      path.write_bytes(whole[path])
      for kept in path.parent.glob("*.ws_jax_index.npz"):
        kept.unlink()
    with one_line(DataError):
      records_lib.parse_example(content, ("image", "label"))

  return st.tuples(st.one_of(made), st.sampled_from(["raise", "skip"])), case


def _read_all(folder: pathlib.Path, on_error: str) -> None:
  """Opens a set, and decodes some images of it."""
  options = Options(image_size=8, eval_resize=9, on_error=on_error)
  with one_line(DataError):
    found = opened.open_stream(Request(folder, stream=options))
    for images in found.records.values():
      for i in range(min(len(images), 8)):
        images.name(i)
        with one_line(DataError):
          encoded, _ = images.read(i)
          crops.eval_pixels(encoded, options)


def texts(folder: pathlib.Path) -> Made:
  """Makes texts with labels, lists of clips, and tokenizers."""
  pairs = [["a text", "x"], ["another", "y"], ["a third", "x"]]
  objects = [{"text": text, "label": label} for text, label in pairs]
  table = "text,label\n" + "".join(f'"{t}",{x}\n' for t, x in pairs)
  listed = "file,label\na/1.wav,a\nb/2.wav,b\n"
  for name in ("a/1.wav", "b/2.wav"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
  saved = tokenizers.save(tokenizers.Words(("yes", "no")))
  lines = b"\n".join(map(inputs.as_json, objects))
  changed_lines = changed(objects).map(inputs.as_lines)
  split = {"train": pairs, "test": pairs}
  cells = st.lists(st.lists(TEXTS, max_size=4), max_size=4)
  rough = cells.map(lambda x: "\n".join(map(",".join, x)))
  rough = rough.map(lambda x: x.encode("utf-8", "replace"))
  contents = {
    "x.json": changed(split).map(inputs.as_json),
    "x.jsonl": changed_lines | damaged(lines),
    "x.csv": damaged(table.encode()) | rough,
    "train.csv": damaged(listed.encode()) | rough,
    "tokenizer": damaged(saved.encode()) | JSON.map(_packed),
  }
  made = [st.tuples(st.just(k), x | inputs.DEEP) for k, x in contents.items()]

  def case(value):
    name, content = value
    path = folder / name
    path.write_bytes(content)
    with one_line(ValueError):
      if name == "tokenizer":
        found = tokenizers.load(content.decode("utf-8", "replace"))
        found.decode(found.encode(b"yes or no"))
      elif name == "train.csv":
        with one_line(DataError):
          audio_folder.list_folder(folder)
      else:
        labelled.open_source(_request(path))

  return st.one_of(made), case


def _request(path: pathlib.Path) -> Request:
  """Returns which texts are wanted of a file."""
  options = text_options.Options(tokenizer="words", length=None)
  split = {"train_split": "train", "eval_split": "train", "may_overlap": True}
  return Request(str(path), options=options, **split)


def _packed(value: Any) -> bytes:
  """Returns a value as a tokenizer is saved."""
  kind = b"words:" if isinstance(value, (list, dict)) else b"pieces:"
  return kind + base64.b64encode(zlib.compress(inputs.as_json(value)))
