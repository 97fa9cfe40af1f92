"""Networks as ONNX, converted by jax2onnx and run by onnxruntime.

What a file says of its network is in its metadata, under `ws_jax`.
"""

import importlib
import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from ws_jax import native
from ws_jax.base import disk, extras
from ws_jax.weights.export import network

SUFFIX = ".onnx"
EXTRA = "onnx"  # that the format needs
_NOTE = "ws_jax"


def write(path: pathlib.Path, folded: network.Folded) -> None:
  """Writes a network.

  Args:
    path: Path of the file.
    folded: The network.

  Raises:
    ValueError: the converter cannot write it.
    MissingExtra: the converter is not installed.
  """
  if folded.about["features"] and not folded.preprocessed:
    raise ValueError(
      "jax2onnx writes no Fourier transform that onnxruntime reads: leave the"
      " features to the caller, with --input=float"
    )
  extras.need(EXTRA, by=f"a file of {SUFFIX}")
  # They tell of every shape that they leave open, and of examples of theirs.
  for name in ("jax2onnx", "onnx_ir"):
    logging.getLogger(name).setLevel(logging.ERROR)
  jax2onnx: Any = importlib.import_module("jax2onnx")
  inputs = jax.ShapeDtypeStruct(("batch", *folded.shape), folded.dtype)
  try:
    # The converter adds biases of fewer axes than what they are added to.
    with native.portable(), jax.numpy_rank_promotion("allow"):
      model = jax2onnx.to_onnx(
        lambda inputs: folded.closed(inputs),
        [inputs],
        model_name=folded.about["model"],
        input_names=["inputs"],
        output_names=["outputs"],
      )
  except Exception as error:  # the converter has many of its own
    raise ValueError(
      f"jax2onnx cannot write {folded.about['model']}: {error}"
    ) from error
  entry = model.metadata_props.add()
  entry.key, entry.value = _NOTE, json.dumps(folded.about)
  with disk.whole(path) as file:
    file.write(model.SerializeToString())


def read(path: pathlib.Path) -> network.Network:
  """Reads a network.

  Raises:
    ValueError: the file is damaged, or does not say what it takes.
    MissingExtra: onnxruntime is not installed.
  """
  extras.need(EXTRA, by=f"a file of {SUFFIX}")
  runtime: Any = importlib.import_module("onnxruntime")
  try:
    session = runtime.InferenceSession(
      str(path), providers=["CPUExecutionProvider"]
    )
  except Exception as error:  # of the library's own, not all of one class
    raise ValueError(f"{path}: onnxruntime cannot read it: {error}") from None
  notes = session.get_modelmeta().custom_metadata_map
  name = session.get_inputs()[0].name

  def call(inputs: np.ndarray) -> np.ndarray:
    (outputs,) = session.run(None, {name: inputs})
    return outputs

  return network.Network(
    about=network.loads(notes.get(_NOTE, ""), path),
    call=call,
    runtime=f"onnxruntime {runtime.__version__}",
  )
