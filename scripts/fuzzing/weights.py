"""Weights: npz and safetensors files, and checkpoints of orbax."""

import contextlib
import functools
import io
import json
import pathlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import soundfile
from hypothesis import strategies as st

from fuzzing.inputs import (
  NAMES,
  Made,
  archives,
  as_json,
  changed,
  damaged,
  tensors,
)
from ws_jax import config, weights
from ws_jax.train import calling, trained
from ws_jax.weights import __main__ as command
from ws_jax.weights import convert, formats, steps
from ws_jax.weights.export import network, verb

_OURS = {
  "stem/kernel": np.full((3, 3, 2, 4), 0.5, np.float32),
  "stem/bias": np.zeros(4, np.float32),
  "head/kernel": np.ones((4, 2), np.float16),
}
# Of a ResNet-18 of timm, so that `import` comes as far as its arrays.
_PUBLISHED = {
  "conv1.weight": np.ones((64, 3, 7, 7), np.float16),
  "fc.weight": np.ones((2, 512), np.float32),
  "fc.bias": np.ones(2, np.float32),
}
_SKIP = ("params/stage*", "params/stem_norm/*", "batch_stats/*")
# The verbs, with the arguments behind the files.
VERBS = {
  "describe": [],
  "fold": ["--convention=bit"],
  "fold ": ["--preset=bit"],
  "import": ["--model=resnet18", *(f"--skip={x}" for x in _SKIP)],
  "publish": ["--layout=timm"],
}


# The parser takes longer than most files.
_parser = functools.cache(command._parser)


def run(verb: str, path: pathlib.Path, lines: int = 1) -> None:
  """Runs a verb of `python -m ws_jax.weights`; raises if it does not end well.

  Args:
    verb: Name of one of `VERBS`.
    path: Path of the weights.
    lines: Most lines that it may say where it cannot read them.
  """
  out = path.with_name("out.npz")
  out.unlink(missing_ok=True)
  files = [path] if verb == "describe" else [path, out]
  code, error = _main(verb.strip(), *files, *VERBS[verb])
  told = error.count("\n")
  assert (code == 0 and told < lines) or (code == 2 and 0 < told <= lines), (
    error
  )
  assert out.exists() == (code == 0 and verb != "describe")


def _main(*words: str | pathlib.Path) -> tuple[int, str]:
  """Runs `python -m ws_jax.weights`; returns its exit code and its errors."""
  said, error = io.StringIO(), io.StringIO()
  with (
    contextlib.redirect_stdout(said),
    contextlib.redirect_stderr(error),
    mock.patch.object(command, "_parser", _parser),
  ):
    code = command.main([*map(str, words)])
  return code, error.getvalue()


def files(folder: pathlib.Path) -> Made:
  """Makes files of weights: npz and safetensors, damaged or made up."""
  made: list[st.SearchStrategy[Any]] = []
  for suffix in (".npz", ".safetensors"):
    for arrays in (_OURS, _OURS, _PUBLISHED):
      path = folder / f"whole{suffix}"
      weights.write_params(path, arrays)
      made.append(st.tuples(st.just(suffix), damaged(path.read_bytes())))
  made.append(st.tuples(st.just(".npz"), archives(NAMES)))
  made.append(st.tuples(st.just(".safetensors"), tensors()))
  shapes = functools.cache(convert._shapes)  # those of a model take a second

  def case(value):
    verb, (suffix, data) = value
    path = folder / f"x{suffix}"
    path.write_bytes(data)
    with mock.patch.object(convert, "_shapes", shapes):
      run(verb, path)

  return st.tuples(st.sampled_from([*VERBS]), st.one_of(made)), case


def orbax(folder: pathlib.Path) -> Made:
  """Makes checkpoints of which a file is damaged, sealed or not."""
  from orbax.checkpoint import v1 as ocp

  one = folder / "run" / "checkpoints" / "1"
  kernel = np.ones((3, 3, 2, 4), np.float32)
  tree: Any = {
    "params": {"conv": {"kernel": kernel}},
    "step": np.ones(2, np.int32),
  }
  ocp.save(str(one), tree)
  steps.seal(one, 1, {})
  whole = {p: p.read_bytes() for p in sorted(one.rglob("*")) if p.is_file()}
  made = [st.tuples(st.just(p), damaged(x)) for p, x in whole.items()]
  for path, content in whole.items():
    with contextlib.suppress(ValueError):
      value = changed(json.loads(content)).map(as_json)
      made.append(st.tuples(st.just(path), value))
  own = [one / name for name in ("checksums.json", "run.json")]

  def case(value):
    verb, (path, content), seal = value
    path.write_bytes(content)
    if path not in own and seal == "anew":
      steps.seal(one, 1, {})
    elif path not in own and seal == "not":
      for file in own:
        file.unlink()
    try:
      run(verb, folder / "run", lines=2)
    finally:
      for place, before in whole.items():
        place.write_bytes(before)

  verbs = st.sampled_from(["describe", "fold"])
  seals = st.sampled_from(["as it was", "anew", "not"])
  return st.tuples(verbs, st.one_of(made), seals), case


def exported(folder: pathlib.Path) -> Made:
  """Makes files of `weights export` that say something else of themselves."""
  words = {"images": folder / "x.png", "clips": folder / "x.wav", "texts": "go"}
  PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(words["images"])
  soundfile.write(words["clips"], np.zeros(800), 800)
  made = []
  for name, run in _runs().items():
    path = folder / f"{name}.safetensors"
    verb.export(run, path, format="safetensors")
    arrays, about = formats.read(path), json.loads(formats.read_note(path))
    assert _main("predict", path, words[name]) == (0, "")
    whole = path, arrays, words[name]
    for part in _PARTS:
      made.append(st.tuples(st.just(whole), _changed_in(about, part)))

  def case(value):
    (path, arrays, word), note = value
    formats.write(path, arrays, note.decode("utf-8", "replace"))
    code, error = _main("predict", path, word)
    assert code in (0, 2) and error.count("\n") == (code == 2), error

  return st.one_of(made), case


# What is read of what a file says; the rest is for people.
_PARTS = (
  *(("input",), ("features",), ("classes",), ("run",), ("run", "data")),
  *(("run", "config", "model"), ("run", "config", "task")),
)


def _changed_in(about: Any, keys: tuple[str, ...]) -> Any:
  """Makes texts of JSON in which one part is another."""
  if not keys:
    return changed(about).map(as_json)
  key, *rest = keys

  def put(text: bytes) -> bytes:
    return as_json(about | {key: json.loads(text)})

  return _changed_in(about[key], tuple(rest)).map(put)


def _runs() -> dict[str, Any]:
  """Returns small runs without training, of each kind of data."""
  data = {
    "name": "x",
    "input_key": "image",
    "label_key": "label",
    "train_size": 100,
    "eval_size": 10,
    "input_shape": [8, 8, 1],
    "input_dtype": "uint8",
    "num_classes": 2,
    "classes": ["a", "b"],
    "tokenizer": "",
    "mean": [0.5],
    "std": [0.25],
  }
  text = {"input_shape": [6], "input_dtype": "uint16", "tokenizer": "bytes"}
  text |= {"input_key": "tokens", "mean": [], "std": []}
  clip = {"input_shape": [800], "input_dtype": "int16", "mean": [], "std": []}
  wanted = {
    "images": (data, {"model.name": "resnet8", "model.norm": "batch"}),
    "texts": (
      data | text,
      {
        "model.name": "text_cnn",
        "model.dim": 4,
        "model.filters": 4,
        "model.norm": "none",
        "task.name": "text_classification",
      },
    ),
    "clips": (
      data | clip | {"input_key": "audio"},
      {
        "model.name": "tc_resnet8",
        "model.norm": "batch",
        "task.name": "keyword_spotting",
        "task.sample_rate": 800,
        "task.bands": 4,
        "task.window_ms": 40.0,
      },
    ),
  }
  runs = {}
  for name, (data, settings) in wanted.items():
    c = config.apply(config.default(), settings | {"optim.learning_rate": 0.1})
    c = config.resolve(c, num_examples=100, num_devices=1).to_dict()
    run = trained.restore(c, data, {"params": {}}, 1)
    taken = jax.tree.map(jnp.zeros_like, network.shapes(run)[1])
    params, state = calling.init(run.program.model, jax.random.key(0), taken)
    variables = jax.tree.map(np.asarray, {"params": params, **state})
    runs[name] = trained.restore(c, data, variables, 1)
  return runs
