"""Folded weights as safetensors: for timm where it has the network.

The arrays then have the names and axes of timm's state dict, and the names of
this package if not. What the file says of its network is in its metadata, under
`ws_jax`: also the configuration, by which the network is made again here.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import train
from ws_jax.base import extras
from ws_jax.core.kernels import by_path
from ws_jax.train import calling
from ws_jax.weights import formats, layout, timm
from ws_jax.weights.export import network, timm_network

PyTree = Any

SUFFIX = ".safetensors"
EXTRA = ""  # that the format needs


def write(path: pathlib.Path, folded: network.Folded) -> None:
  """Writes the weights of a network.

  Args:
    path: Path of the file.
    folded: The network; `preprocessed`, because weights cannot normalize.
  """
  about = folded.about
  model = about["run"]["config"]["model"]
  name = timm_network.name_of(model)
  if name:
    arrays = _to_timm(folded.run.program.model, folded.variables)
  else:
    arrays = {k: np.asarray(x) for k, x in by_path(folded.variables).items()}
  formats.write(path, arrays, json.dumps({**about, "timm": name}))


def read(
  path: pathlib.Path, run: "train.Trained | None" = None
) -> network.Network:
  """Reads the weights of a network into the model of this package.

  Args:
    path: Path of the file.
    run: Run that has the model; None to make it of what the file says.

  Raises:
    ValueError: the file is damaged, does not say what its model is, does not
      hold its arrays, or names code of the user's own, which no file may
      choose.
  """
  about = network.loads(formats.read_note(path), path)
  if run is None:
    run = _make(about, path)
  model, arrays = run.program.model, formats.read(path)
  try:
    variables = _variables(run, arrays, about)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  params = variables.pop("params")

  @jax.jit
  def call(inputs):
    return calling.apply(model, params, variables, inputs, train=False)[0]

  return network.Network(
    about=about,
    call=lambda inputs: np.asarray(call(jnp.asarray(inputs))),
    runtime=f"flax on jax {jax.__version__}",
  )


def _make(about: dict[str, Any], path: pathlib.Path) -> "train.Trained":
  """Returns the run of a file, without its weights."""
  extras.need("train", by="the model of exported weights")
  from ws_jax.train.trained import restore

  saved = about["run"]
  for section, name in network.own_code(saved["config"]).items():
    raise ValueError(
      f"{path}: its {section} {name!r} is code of its own, which a file cannot"
      " bring: use the run's workdir"
    )
  return restore(saved["config"], saved["data"], {"params": {}}, about["step"])


def _to_timm(model: Any, variables: PyTree) -> dict[str, np.ndarray]:
  """Returns folded variables as a state dict of timm's plain network."""
  arrays, factor = timm.to_timm(variables), timm_network.factor_of(model)
  kept = {k: x for k, x in arrays.items() if not k.endswith(".gain")}
  return {k: x * factor if x.ndim == 4 else x for k, x in kept.items()}


def _variables(
  run: "train.Trained", arrays: layout.Arrays, about: dict[str, Any]
) -> dict[str, Any]:
  """Returns the arrays of a file as variables of the model of a run.

  Raises:
    ValueError: they are not those of the model, or it takes other inputs than
      the file says; the message names some.
  """
  model, (_, inputs) = run.program.model, network.shapes(run)
  shape, dtype = [None, *inputs.shape[1:]], str(inputs.dtype)
  takes = {"shape": shape, "dtype": dtype, "preprocessed": True}
  if about["input"] != takes:
    raise ValueError(
      f"says that it takes {about['input']}, but its model takes {takes}"
    )
  init = lambda x: calling.init(model, jax.random.key(0), x)
  params, state = jax.eval_shape(init, inputs)
  like = {"params": params, **state}
  if about.get("timm"):
    factor = timm_network.factor_of(model)
    arrays = {k: x / factor if x.ndim == 4 else x for k, x in arrays.items()}
    found = timm.from_timm(arrays, like, skip=("*/gain",))
    # The kernels hold the gains; the model wants to find some.
    for path, leaf in by_path(like).items():
      if path.endswith("/gain"):
        layout.put(found.variables, path, np.ones(leaf.shape, leaf.dtype))
  else:
    found = layout.take(arrays, like, layout.OWN)
  if unused := found.report.unused:
    raise ValueError(f"the model has no {layout.listing(unused)}")
  return dict(found.variables)
