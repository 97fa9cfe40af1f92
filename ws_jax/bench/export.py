"""`export`: the folded network in each format, written, read and called.

The networks have the settings that they were published with, and weights that
were not trained.
"""

import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from ws_jax import config
from ws_jax.base import extras
from ws_jax.bench import (
  ARMS,
  DEFAULT_MODEL,
  Options,
  Row,
  Table,
  arms_of,
  speech,
  text,
  timing,
)
from ws_jax.data.text import tokenizers
from ws_jax.train import backend, calling, trained
from ws_jax.weights.export import network, verb

PyTree = Any

_RATE = 16_000  # samples of a clip of one second


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size, a row for each format.

  A format whose extra is not installed, or that the network cannot be written
  in, has a row that says so.
  """
  name = options.model or DEFAULT_MODEL
  model = _model(name, options.size)
  return [_table(name, model, size, options) for size in options.batch_sizes]


def _model(name: str, size: int) -> trained.Trained:
  """Returns a run that has not been trained."""
  data, task = _data(name, size)
  data |= {"name": "noise", "train_size": 100, "eval_size": 10}
  given = config.apply(config.default(), {"model.name": name, **task})
  if name in text.LENGTHS:
    given = config.apply(given, ARMS[arms_of(name)[-1]])
  resolved = config.resolve(given, num_examples=100, num_devices=1).to_dict()
  empty = trained.restore(resolved, data, {"params": {}}, step=0)
  inputs = jax.ShapeDtypeStruct((2, *data["input_shape"]), data["input_dtype"])

  def init(inputs: jax.Array) -> tuple[PyTree, PyTree]:
    taken = network.preprocess(empty.program.task, empty.data, inputs)
    return calling.init(empty.program.model, jax.random.key(0), taken)

  quickly = backend.options_to_compile_quickly()
  zeros = jax.numpy.zeros(inputs.shape, inputs.dtype)
  params, state = jax.jit(init, compiler_options=quickly)(zeros)
  return trained.restore(resolved, data, {"params": params, **state}, step=0)


def _data(name: str, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what a run says of its data, and the settings of its task."""
  labels = {"label_key": "label", "num_classes": 10, "tokenizer": ""}
  labels |= {
    "classes": [f"class {i}" for i in range(10)],
    "mean": [],
    "std": [],
  }
  if name == "transformer_lm":
    tokens = {"input_key": "tokens", "label_key": "bytes", "classes": []}
    data = labels | tokens | {"num_classes": None, "tokenizer": "bytes"}
    shape, dtype, task = [text.LENGTHS[name] + 1], "uint16", "language_model"
  elif name in text.LENGTHS:
    words = tokenizers.save(tokenizers.Words(("stop", "go", "please")))
    data = labels | {"input_key": "tokens", "tokenizer": words}
    shape, dtype, task = [text.LENGTHS[name]], "uint16", "text_classification"
  elif name in speech.MODELS:
    data = labels | {"input_key": "audio"}
    shape, dtype, task = [_RATE], "int16", "keyword_spotting"
  else:
    colours = {"mean": [0.5] * 3, "std": [0.25] * 3}
    data = labels | {"input_key": "image"} | colours
    shape, dtype, task = [size, size, 3], "uint8", "classification"
  data |= {"input_shape": shape, "input_dtype": dtype}
  return data, {} if task == "classification" else {"task.name": task}


def _table(
  name: str, model: trained.Trained, size: int, options: Options
) -> Table:
  rows: list[Row] = []
  calls: dict[str, Callable[[], float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    for format, module in verb.FORMATS.items():
      if extras.lacking(module.EXTRA or "train"):
        rows.append({"format": format, "runtime": "is not installed"})
        continue
      path = pathlib.Path(folder, f"x{module.SUFFIX}")
      try:
        row, calls[format] = _format(model, path, format, size)
      except ValueError as error:  # as when the file computes something else
        row = {"format": format, "runtime": str(error)}
      rows.append(row)
    # A SavedModel is read as it is called: the files stay until then.
    seconds = timing.interleave(calls, options.rounds or 20)
  for row in rows:
    if times := seconds.get(row["format"]):
      row["ms a call"] = 1e3 * statistics.median(times)
      row["seconds"] = times
  shape = "x".join(map(str, model.input_shape))
  return Table(f"export: {name}, inputs {shape}, calls of {size}", rows)


def _format(
  model: trained.Trained, path: pathlib.Path, format: str, size: int
) -> tuple[Row, Callable[[], float]]:
  """Returns the row of a format, and what calls the network of its file."""
  # Weights say nothing of the inputs, and ONNX has no features of clips.
  clips = model.data.input_dtype == "int16"
  ready = format == "safetensors" or (format == "onnx" and clips)
  inputs = "float" if format == "onnx" and clips else None
  done = verb.export(model, path, format=format, inputs=inputs)
  began = time.perf_counter()
  found = verb.read(path)
  read = time.perf_counter() - began
  folded = network.fold(model, preprocessed=ready)
  batch = folded.taken(folded.samples(size))
  call = timing.timed(functools.partial(found.call, batch))
  row = {
    "format": format,
    "runtime": found.runtime,
    "MB": done.size / 1e6,
    "s to write": done.seconds,
    "s to read": read,
    "s of the first call": call(),
    "off by": done.compared[0].difference / done.compared[0].largest,
  }
  return row, call
