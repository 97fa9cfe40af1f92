"""`python -m ws_jax.weights export`: files that compute what the run does."""

import collections
import functools
import importlib.util
import json
import re
import wave
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

from ws_jax import config
from ws_jax.base import extras
from ws_jax.data.text import tokenizers
from ws_jax.train import calling
from ws_jax.train.trained import restore
from ws_jax.weights import __main__ as command
from ws_jax.weights import formats, predict, read_info
from ws_jax.weights.export import network, plain, stablehlo, timm_network, verb

WORDS = tokenizers.Words(("stop", "go", "please"))
RATE = 4000
# Of each kind of data what differs, and the settings of its task.
DATA: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  "images": (
    {"input_shape": [12, 12, 1], "mean": [0.3], "std": [0.2]},
    {},
  ),
  "colours": (
    {"input_shape": [64, 64, 3], "mean": [0.3] * 3, "std": [0.2] * 3},
    {},
  ),
  "clips": (
    {"input_shape": [RATE], "input_dtype": "int16", "input_key": "audio"},
    {
      "task.name": "keyword_spotting",
      "task.sample_rate": RATE,
      "task.bands": 12,
      "task.window_ms": 32.0,
    },
  ),
  "texts": (
    {
      "input_shape": [6],
      "input_dtype": "uint16",
      "input_key": "tokens",
      "tokenizer": tokenizers.save(WORDS),
    },
    {"task.name": "text_classification"},
  ),
  "language": (
    {
      "input_shape": [9],
      "input_dtype": "uint16",
      "input_key": "tokens",
      "label_key": "bytes",
      "tokenizer": "bytes",
      "num_classes": None,
      "classes": [],
    },
    {"task.name": "language_model"},
  ),
}
# Where no norm of the inputs follows, as with drawn statistics, kernels of
# variance 1 / fan-in keep the numbers in bounds.
SCALED = {"ws_convention": "nfnet"}
# A small network of each family, and its data.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
  "pooled": ("images", {"name": "resnet8", "width": 0.5, "stem": "imagenet"}),
  "resnet": ("images", {"name": "resnet8", "width": 0.5}),
  "norm_free": (
    "images",
    {"name": "nf_resnet8", "width": 0.5, "ws_convention": "timm_scaled"},
  ),
  # Its pool pads, and takes numbers below 0.
  "norm_free_pooled": (
    "images",
    {
      "name": "nf_resnet8",
      "width": 0.5,
      "stem": "imagenet",
      "ws_convention": "timm_scaled",
    },
  ),
  "efficientnet": (
    "colours",
    {"name": "efficientnet_b0", "width": 0.25, "norm": "batch", **SCALED},
  ),
  "speech_1d": ("clips", {"name": "tc_resnet8"}),
  "speech_2d": ("clips", {"name": "ds_cnn_s", "width": 0.25}),
  "text_cnn": (
    "texts",
    {"name": "text_cnn", "dim": 8, "filters": 8, "norm": "none"},
  ),
  "classifier": (
    "texts",
    {
      "name": "transformer_classifier",
      "layers": 1,
      "dim": 16,
      "ws_convention": "nfnet",
      "ws_where": ("*/kernel",),
    },
  ),
  "language": (
    "language",
    {
      "name": "transformer_lm",
      "layers": 1,
      "dim": 16,
      "ws_convention": "nfnet",
      "ws_where": ("block1/*/kernel",),
    },
  ),
}


def need(*packages):
  for package in packages:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed")


def draw(path, leaf, rng):
  """Returns numbers with which a network neither dies nor explodes."""
  values, name = rng.normal(size=leaf.shape), path[-1].key
  if name == "var":
    return np.exp(0.2 * values).astype(leaf.dtype)
  if name in ("scale", "gain", "skip_gain"):
    return (1 + 0.1 * values).astype(leaf.dtype)
  scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0.1
  return (scale * values).astype(leaf.dtype)


def make(kind="images", ws=True, **model):
  """Returns a run with drawn weights, as `load_run` returns a trained one."""
  data, task = DATA[kind]
  data = {
    "name": "/somewhere/of/mine",
    "input_key": "image",
    "label_key": "label",
    "train_size": 100,
    "eval_size": 10,
    "input_dtype": "uint8",
    "num_classes": 3,
    "classes": ["top", "middle", "bottom"],
    "tokenizer": "",
    "mean": [],
    "std": [],
  } | data
  settings = {f"model.{name}": value for name, value in model.items()}
  settings |= {"model.ws": ws, "optim.learning_rate": 0.1, "train.steps": 7}
  c = config.apply(config.default(), settings | task)
  c = config.resolve(c, num_examples=100, num_devices=1).to_dict()
  run = restore(c, data, {"params": {}}, 7)
  init = lambda x: calling.init(run.program.model, jax.random.key(0), x)
  params, state = jax.eval_shape(init, network.shapes(run)[1])
  rng = np.random.default_rng(0)
  variables = jax.tree.map_with_path(
    lambda path, leaf: draw(path, leaf, rng), {"params": params, **state}
  )
  return restore(c, data, variables, 7)


@functools.cache
def family(name, ws=True):
  kind, model = FAMILIES[name]
  model = dict(model)
  if not ws:
    model.pop("ws_where", None)
  return make(kind, ws, **model)


def count(run) -> collections.Counter:
  """Returns how often a program has each operation of StableHLO."""
  program = stablehlo.export(network.fold(run), ("cpu",))
  return collections.Counter(
    re.findall(r"stablehlo\.\w+", program.mlir_module())
  )


@pytest.mark.parametrize("name", ["resnet", "norm_free", "text_cnn"])
def test_a_folded_program_computes_no_standardization(name):
  """So a deployed network costs what one without WS does."""
  assert count(family(name)) == count(family(name, ws=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_folded_program_computes_standardization(name):
  assert count(family(name)) == count(family(name, ws=False))


def test_a_program_is_called_by_jax_alone(tmp_path):
  need("flatbuffers")
  run, path = family("resnet"), tmp_path / "x.stablehlo"
  done = verb.export(run, path, format="stablehlo")
  assert done.compared[0].difference < 1e-5 * done.compared[0].largest
  program = jax.export.deserialize(bytearray(path.read_bytes()))
  assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}
  for number in (2, 5):
    images = np.random.default_rng(number).integers(
      0, 256, (number, 12, 12, 1), np.uint8
    )
    np.testing.assert_allclose(
      program.call(images), run.predict(images), rtol=1e-4, atol=1e-5
    )
  about = json.loads((tmp_path / "x.stablehlo.json").read_text())
  assert about["classes"] == ["top", "middle", "bottom"]
  assert about["input"] == {
    "shape": [None, 12, 12, 1],
    "dtype": "uint8",
    "preprocessed": False,
  }
  assert about["normalization"] == {"mean": [0.3], "std": [0.2]}
  assert about["folded"] and about["convention"]["eps"] == 1e-10
  assert "somewhere" not in json.dumps(about)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "x.stablehlo",
    "x.stablehlo.json",
  ]


def test_weights_alone_make_the_network_again(tmp_path, capsys):
  """The gains of a norm-free net are in its kernels."""
  run, path = family("norm_free"), tmp_path / "x.safetensors"
  verb.export(run, path, format="safetensors")
  assert read_info(path).folded
  kernel = formats.read(path)["params/stem/kernel"]
  raw, gain = (run.params["stem"][name] for name in ("kernel", "gain"))
  assert np.abs(kernel - raw).max() > 0.1
  np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(kernel.std((0, 1, 2)), np.abs(gain) / 3, rtol=1e-3)
  image = tmp_path / "x.png"
  Image.fromarray(folded_images(1)[0, ..., 0]).save(image)
  assert command.main(["predict", str(path), str(image)]) == 0
  said = capsys.readouterr().out
  logits = run.predict(folded_images(1))[0]
  best = ["top", "middle", "bottom"][logits.argmax()]
  assert said.startswith(f"{image}: {best} ")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda kernel: {}, "params/head/kernel is missing"),
    (
      lambda kernel: {"params/head/kernel": kernel[1:]},
      "[23, 3] for params/he",
    ),
    (lambda kernel: {"params/head/kernel": kernel / 0}, "holds NaN or infini"),
    (
      lambda kernel: {"params/head/kernel": kernel, "params/tail": kernel},
      "the model has no params/tail",
    ),
  ],
)
def test_weights_of_another_network_are_one_line(
  change, message, tmp_path, capsys
):
  """Regression: the first two were tracebacks of Flax, the last was silent."""
  run, path = family("text_cnn"), tmp_path / "x.safetensors"
  verb.export(run, path, format="safetensors")
  arrays = formats.read(path)
  kernel = arrays.pop("params/head/kernel")
  with np.errstate(divide="ignore", invalid="ignore"):
    arrays |= change(kernel)
  formats.write(path, arrays, formats.read_note(path))
  assert command.main(["predict", str(path), "go"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
  ("keys", "value", "message"),
  [
    (("input", "dtype"), "objekt", "'objekt' not understood"),
    (("input", "dtype"), "object", "its inputs are no numbers"),
    (("input", "preprocessed"), 2, "preprocessed is neither true nor false"),
    (("input", "shape"), [None, 5], "says that it takes {'shape': [None, 5]"),
    (("features",), {"rate": 1}, "'sample_rate'"),
    (("run", "config", "model", "dim"), [], "model.dim"),
    (("run", "data", "classes"), 5, "of the data of the run is damaged"),
  ],
)
def test_what_a_file_says_of_itself_is_checked(
  keys, value, message, tmp_path, capsys
):
  """Regression: each was a traceback, found by `scripts/fuzz.py`."""
  run, path = family("text_cnn"), tmp_path / "x.safetensors"
  verb.export(run, path, format="safetensors")
  about = json.loads(formats.read_note(path))
  part = functools.reduce(lambda part, key: part[key], keys[:-1], about)
  part[keys[-1]] = value
  formats.write(path, formats.read(path), json.dumps(about))
  assert command.main(["predict", str(path), "go"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def folded_images(number):
  return network.fold(family("resnet")).samples(number)


def test_normalized_inputs_are_left_to_the_caller(tmp_path):
  run, path = family("text_cnn"), tmp_path / "x.stablehlo"
  # Tokens have one form alone.
  with pytest.raises(ValueError, match="tokens have no float form"):
    verb.export(run, path, format="stablehlo", inputs="float")
  run = family("resnet")
  with pytest.raises(ValueError, match="weights alone, which cannot normalize"):
    verb.export(
      run, path.with_suffix(".safetensors"), format="safetensors", inputs="raw"
    )
  folded = network.fold(run, preprocessed=True)
  images = folded.samples(2)
  taken = (images / 255 - 0.3) / 0.2
  np.testing.assert_allclose(folded.taken(images), taken, atol=1e-5)
  assert folded.about["input"]["dtype"] == "float32"
  reader = predict_reader(folded)
  np.testing.assert_allclose(reader.taken(images), taken, atol=1e-5)


def predict_reader(folded):
  return predict.Reader(folded.about)


def test_clips_and_texts_are_read_as_in_the_data(tmp_path):
  clip = (8000 * np.sin(np.arange(RATE // 2))).astype(np.int16)
  with wave.open(str(tmp_path / "x.wav"), "wb") as file:
    file.setparams((1, 2, RATE, 0, "NONE", ""))
    file.writeframes(clip.tobytes())
  reader = predict_reader(network.fold(family("speech_1d")))
  read = reader.read(str(tmp_path / "x.wav"))
  np.testing.assert_array_equal(read[: len(clip)], clip)
  assert read.shape == (RATE,) and not read[len(clip) :].any()
  reader = predict_reader(network.fold(family("text_cnn")))
  row = reader.taken(reader.read("Please, STOP please"))
  # 3 is a word that is not known, 4 fills the row.
  assert row.tolist() == [2, 3, 0, 2, 4, 4] and row.dtype == np.int32
  with pytest.raises(ValueError, match="no classes: see .* generate"):
    predict_reader(network.fold(family("language")))


def test_what_differs_from_the_run_is_not_written(tmp_path, monkeypatch):
  need("flatbuffers")
  path, run = tmp_path / "x.stablehlo", family("text_cnn")
  path.write_text("before")
  read = stablehlo.read

  def broken(path):
    found = read(path)
    return network.Network(found.about, lambda x: found.call(x) + 1, "broken")

  monkeypatch.setattr(stablehlo, "read", broken)
  with pytest.raises(ValueError, match="not written: as broken reads it"):
    verb.export(run, path, format="stablehlo")
  assert [p.name for p in tmp_path.iterdir()] == ["x.stablehlo"]
  assert path.read_text() == "before"


def test_a_file_chooses_no_code(tmp_path):
  """Its task or model could be `os:system`."""
  about = network.fold(family("text_cnn")).about
  for section in ("model", "task"):
    about = json.loads(json.dumps(about))
    about["run"]["config"][section]["name"] = "os:system"
    formats.write(tmp_path / "x.safetensors", {}, json.dumps(about))
    with pytest.raises(ValueError, match="'os:system' is code of its own"):
      plain.read(tmp_path / "x.safetensors")
  with pytest.raises(ValueError, match="'os:system' is code of its own"):
    network.task_of(about)


def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, capsys):
  need("flatbuffers")
  run = family("text_cnn")
  monkeypatch.setitem(extras.MODULES, "onnx", ("hear_nothing",))
  for out, name, message in [
    ("x.onnx", "onnx", "pip install 'ws_jax.onnx.' .missing: hear_nothing"),
    ("x.bin", "stablehlo", "x.bin: a file of --format=stablehlo ends in"),
    ("no/x.stablehlo", "stablehlo", "no: no such folder"),
    ("", "savedmodel", "is there, and is no SavedModel"),
    ("x.stablehlo", "stabelhlo", "unknown format .*did you mean 'stablehlo'"),
  ]:
    with pytest.raises((ValueError, OSError), match=message):
      verb.export(run, tmp_path / out, format=name)
  (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
  formats.write(tmp_path / "raw.safetensors", {"w": np.ones(3)}, "")
  (tmp_path / "x.stablehlo").write_bytes(b"no program")
  (tmp_path / "y.stablehlo").write_bytes(b"no program")
  about = network.fold(run).about
  (tmp_path / "y.stablehlo.json").write_text(json.dumps(about))
  for name, message in [
    ("x.safetensors", "its header does not fit"),
    ("raw.safetensors", "raw.safetensors: does not say what it takes"),
    ("x.stablehlo", "x.stablehlo.json: no such file"),
    ("y.stablehlo", "y.stablehlo: no program of jax.export"),
    ("raw.npz", "raw.npz holds no run"),
  ]:
    assert command.main(["predict", str(tmp_path / name), "go"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
  ("model", "name"),
  [
    ({"name": "bit_r50x1"}, "resnetv2_50x1_bit"),
    ({"name": "bit_r50x1", "width": 0.5}, ""),
    ({"name": "resnet50_gn", "num_groups": 8}, ""),
    ({"name": "resnet18", "norm": "batch", "num_groups": 4}, "resnet18"),
    ({"name": "resnet18", "norm": "group"}, ""),
    ({"name": "nfnet_f1", "dropout": 0.0}, "dm_nfnet_f1"),
    ({"name": "mine:Net"}, ""),
  ],
)
def test_timm_is_asked_for_a_network_that_it_has(model, name):
  given = {"num_groups": 32} | model if "bit" in model["name"] else model
  assert timm_network.name_of(given) == name


@pytest.mark.slow
@pytest.mark.parametrize("format", verb.FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_in_each_format(name, format, tmp_path):
  if missing := extras.lacking(verb.FORMATS[format].EXTRA or "train"):
    pytest.skip(missing)
  out = tmp_path / f"x{verb.FORMATS[format].SUFFIX}"
  run = family(name)
  speech = format == "onnx" and name.startswith("speech")
  if speech:
    with pytest.raises(ValueError, match="no Fourier transform.*input=float"):
      verb.export(run, out, format=format)
  inputs = "float" if speech else None
  done = verb.export(run, out, format=format, inputs=inputs)
  assert done.compared
  found = verb.read(out)
  folded = network.fold(run, preprocessed=speech or format == "safetensors")
  inputs = folded.samples(2)
  outputs, wanted = found.call(folded.taken(inputs)), run.predict(inputs)
  assert np.abs(outputs - wanted).max() < 1e-4 * np.abs(wanted).max()
  assert found.about["classes"] == list(run.classes)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("bit_r50x1", {"version": 2}),
    ("resnet18", {"norm": "batch", **SCALED}),
    ("resnet50_gn", {}),
    ("efficientnet_b0", {"norm": "batch", **SCALED}),
    ("nf_resnet50", SCALED),
    ("nfnet_f0", {"skip_init": True, **SCALED}),
  ],
)
def test_timm_computes_the_same_with_plain_convolutions(
  name, settings, tmp_path
):
  need("torch", "timm")
  published = {} if "nf" in name else {"num_groups": 32}
  run = make("colours", name=name, **published | settings)
  path = tmp_path / "x.safetensors"
  done = verb.export(run, path, format="safetensors")
  assert [c.runtime.split()[0] for c in done.compared] == ["flax", "timm"]
  made = timm_network.load(path)
  assert not [m for m in made.modules() if "StdConv" in type(m).__name__]
