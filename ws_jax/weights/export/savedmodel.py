"""Networks as TensorFlow SavedModels, converted by jax2tf.

    outputs = tf.saved_model.load("folder").f(images)

What a folder says of its network is in `assets.extra/ws_jax.json`.
"""

import importlib
import json
import pathlib
from typing import Any

import numpy as np

from ws_jax import native
from ws_jax.base import disk, extras
from ws_jax.weights.export import network

SUFFIX = ""  # a folder
EXTRA = "savedmodel"  # that the format needs
MARK = "saved_model.pb"  # The file by which a folder is known.
_NOTE = pathlib.PurePath("assets.extra", "ws_jax.json")


def write(path: pathlib.Path, folded: network.Folded) -> None:
  """Writes a network as a folder.

  The weights are variables of the SavedModel: as constants they could not be
  larger than 2 GB. It has the signature `serving_default`, too.

  Args:
    path: Path of the folder, which is not there yet.
    folded: The network.

  Raises:
    ValueError: the converter cannot write it.
    MissingExtra: TensorFlow is not installed.
  """
  extras.need(EXTRA, by="a SavedModel")
  tf: Any = importlib.import_module("tensorflow")
  jax2tf: Any = importlib.import_module("jax.experimental.jax2tf")
  shape = ", ".join(["batch", *map(str, folded.shape)])
  with native.portable():
    converted = jax2tf.convert(
      lambda variables, inputs: folded(variables, inputs),
      polymorphic_shapes=[None, f"({shape})"],
      native_serialization_platforms=("cpu", "cuda", "rocm", "tpu"),
      with_gradient=False,
    )
    module = tf.Module()
    module.weights = tf.nest.map_structure(tf.Variable, folded.variables)
    spec = tf.TensorSpec((None, *folded.shape), folded.dtype, name="inputs")
    module.f = tf.function(
      lambda inputs: converted(module.weights, inputs),
      input_signature=[spec],
      autograph=False,
    )
    try:
      signature = tf.function(
        lambda inputs: {"outputs": module.f(inputs)}, input_signature=[spec]
      )
      tf.saved_model.save(
        module, str(path), signatures={"serving_default": signature}
      )
    except Exception as error:  # of two libraries
      raise ValueError(
        f"jax2tf cannot write {folded.about['model']}: {error}"
      ) from error
  (path / _NOTE).parent.mkdir(exist_ok=True)
  disk.write_json(path / _NOTE, folded.about)


def read(path: pathlib.Path) -> network.Network:
  """Reads a network.

  Raises:
    ValueError: the folder is damaged, or does not say what it takes.
    MissingExtra: TensorFlow is not installed.
  """
  extras.need(EXTRA, by="a SavedModel")
  tf: Any = importlib.import_module("tensorflow")
  about = disk.read_json(path / _NOTE)
  try:
    module = tf.saved_model.load(str(path))
  except Exception as error:  # of the library's own, not all of one class
    raise ValueError(f"{path}: TensorFlow cannot read it: {error}") from None

  def call(inputs: np.ndarray) -> np.ndarray:
    return module.f(tf.constant(inputs)).numpy()

  return network.Network(
    about=network.loads(json.dumps(about), path / _NOTE),
    call=call,
    runtime=f"TensorFlow {tf.__version__}",
  )
