"""A trained run as one plain function, and what a file says of it.

`fold` makes a function of a run: Weight Standardization is in its weights, and
nothing of it is left to compute. The modules `stablehlo`, `onnx`, `savedmodel`
and `plain` write it to a file, each in its format, and read it as a `Network`.

Beside the function a file holds `about`, a JSON object: the classes, shape and
dtype of inputs and outputs, the normalization, the convention, the versions,
and under `run` the part of the configuration that makes the model again.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

import ws_jax
from ws_jax import tasks, train
from ws_jax.base import disk, extras
from ws_jax.models import FAMILIES
from ws_jax.train import calling

PyTree = Any

# Sections of a configuration that make the model and the task again. That of
# the data is left out: it names places of the machine of the training.
_SECTIONS = ("model", "task", "optim", "train")


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
  """A run as a plain function, to be written to a file.

  Attributes:
    run: The run.
    about: What a file says of it.
    variables: Collections of the plain model, of NumPy arrays.
    preprocessed: Whether inputs are what the model takes, and not as in the
      data.
    shape: Shape of one input.
    dtype: Dtype of the inputs.
  """

  run: "train.Trained"
  about: dict[str, Any]
  variables: PyTree
  preprocessed: bool
  shape: tuple[int, ...]
  dtype: str

  def __call__(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
    """Returns the outputs `[B, ...]` for inputs `[B, ...]`; can be traced."""
    if not self.preprocessed:
      inputs = preprocess(self.run.program.task, self.run.data, inputs)
    state = {k: x for k, x in variables.items() if k != "params"}
    outputs, _ = calling.apply(
      self.run.program.model, variables["params"], state, inputs, train=False
    )
    return outputs

  @property
  def closed(self) -> Callable[[jax.Array], jax.Array]:
    """The function of the inputs alone: weights are constants of it."""
    return functools.partial(self, self.variables)

  def samples(self, number: int, seed: int = 0) -> np.ndarray:
    """Returns inputs as in the data, `[number, ...]`, drawn at random."""
    rng, info = np.random.default_rng(seed), self.run.data
    shape, dtype = (number, *self.run.input_shape), np.dtype(info.input_dtype)
    if dtype.kind == "f":
      return rng.normal(size=shape).astype(dtype)
    if len(shape) == 2 and dtype == np.int16:  # audio, the last tenth silent
      clips = np.clip(rng.normal(size=shape) * 3000, -32768, 32767)
      clips[:, -max(1, shape[1] // 10) :] = 0
      return clips.astype(dtype)
    task = self.run.program.task
    tokens = getattr(task, "num_inputs", None)
    if info.tokenizer and tokens is None:
      tokens = getattr(task, "num_outputs", None)
    return rng.integers(0, tokens or 256, shape).astype(dtype)

  def taken(self, inputs: np.ndarray) -> np.ndarray:
    """Returns inputs as in the data in the form that the function takes."""
    if self.preprocessed:
      task, info = self.run.program.task, self.run.data
      inputs = np.asarray(preprocess(task, info, jnp.asarray(inputs)))
    return inputs.astype(self.dtype, copy=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network of a file or a run that can be called.

  Attributes:
    about: What the file says of it.
    call: Function from inputs `[N, ...]` to outputs `[N, ...]`, both NumPy.
    runtime: Name and version of what computes.
  """

  about: dict[str, Any]
  call: Callable[[np.ndarray], np.ndarray]
  runtime: str


def fold(run: "train.Trained", *, preprocessed: bool | None = None) -> Folded:
  """Returns a run as a plain function, with WS folded into its weights.

  Args:
    run: Run, as `ws_jax.train.load_run` returns it.
    preprocessed: Whether inputs are what the model takes, as normalized
      pictures, and not as in the data. None for inputs as in the data. Tokens
      are always those of the model.

  Example:
    >>> from ws_jax import train
    >>> folded = fold(train.load_run("workdirs/first"))  # doctest: +SKIP
    >>> folded.closed(images)  # doctest: +SKIP
  """
  raw, taken = shapes(run)
  if jnp.issubdtype(taken.dtype, jnp.integer):
    preprocessed = True
  given = taken if preprocessed else raw
  folded = Folded(
    run=run,
    about={},
    variables=jax.tree.map(np.asarray, run.variables),
    preprocessed=bool(preprocessed),
    shape=given.shape[1:],
    dtype=str(given.dtype),
  )
  outputs = jax.eval_shape(folded, folded.variables, given)
  return dataclasses.replace(folded, about=_about(folded, outputs))


def shapes(run: "train.Trained") -> tuple[Any, Any]:
  """Returns two inputs of a run as in the data, and as the model takes them."""
  raw = jax.ShapeDtypeStruct((2, *run.input_shape), run.data.input_dtype)
  task, info = run.program.task, run.data
  return raw, jax.eval_shape(lambda x: preprocess(task, info, x), raw)


def preprocess(task: Any, info: Any, inputs: jax.Array) -> jax.Array:
  """Returns what the model takes for inputs as in the data `[B, ...]`.

  Args:
    task: Task of the run.
    info: Names of the inputs and the labels, as `ws_jax.data.Info` has them.
    inputs: Inputs as in the data.
  """
  if callable(own := getattr(task, "preprocess", None)):
    return own(inputs)
  # A task of the user's own may have nothing but `batch`.
  indices = jnp.arange(inputs.shape[0])
  arrays = {info.input_key: inputs, info.label_key: jnp.zeros_like(indices)}
  return task.batch(arrays, indices, None)["inputs"]


def loads(text: str, path: pathlib.Path) -> dict[str, Any]:
  """Returns what a file says of its network.

  Args:
    text: The JSON object as text.
    path: Path of the file, for the message.

  Raises:
    ValueError: the text is not what `fold` has made.
  """
  try:
    about = disk.parse_json(text)
    shape = about["input"]["shape"]
    wanted = all(isinstance(n, int) for n in shape[1:])
    needed = {"classes", "output", "run", "features", "step"}
    if not wanted or not needed <= about.keys():
      raise ValueError("an entry is missing")
    saved, data = about["run"]["config"], about["run"]["data"]
    names = [saved[section]["name"] for section in ("model", "task")]
    texts = [*names, *about["classes"], about["input"]["dtype"]]
    if not all(isinstance(text, str) for text in texts):
      raise ValueError("an entry is no text")
    if np.dtype(about["input"]["dtype"]).kind not in "iuf":
      raise ValueError("its inputs are no numbers")
    if not isinstance(about["input"]["preprocessed"], bool):
      raise ValueError("preprocessed is neither true nor false")
    if (features := about["features"]) is not None:
      if not 0 < features["sample_rate"] < 2**31:
        raise ValueError("its sample rate is none")
    about["run"] = _whole(saved, data)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path}: does not say what it takes and returns, as a file of"
      f" `python -m ws_jax.weights export` does: {error}"
    ) from None
  return about


def own_code(config: Any) -> dict[str, str]:
  """Returns model and task, by section, if they are code of the user's own."""
  known = {"model": {name for f in FAMILIES for name in f.MODELS}}
  known["task"] = set(tasks.TASKS)
  named = {section: config[section]["name"] for section in known}
  return {part: x for part, x in named.items() if x not in known[part]}


def _whole(saved: Any, data: Any) -> dict[str, Any]:
  """Returns what is said of a run with all its entries, or refuses it."""
  from ws_jax import config  # the imports take a while
  from ws_jax.train import trained

  dataset = trained.described(data)
  info = dataclasses.asdict(dataset.info)
  # Which settings code of the user's own has, it alone could tell.
  own = own_code(saved)
  ours = {key: x for key, x in saved.items() if key not in own}
  return {
    "config": config.from_saved(ours).to_dict() | {k: saved[k] for k in own},
    "data": info | {"mean": dataset.mean, "std": dataset.std},
  }


def _about(folded: Folded, outputs: Any) -> dict[str, Any]:
  """Returns what a file says of a network."""
  run = folded.run
  config, convention = run.config.to_dict(), run.program.convention
  data: dict[str, Any] = dataclasses.asdict(run.data)
  data |= {"mean": run.mean, "std": run.std}
  # No places of the machine of the training, and no names of speakers.
  data["name"] = pathlib.PurePath(data["name"]).name
  data |= {"group_key": "", "groups": ()}
  saved = {section: config[section] for section in _SECTIONS}
  saved["model"] |= {"ws": False}
  if "noise" in saved["task"]:
    saved["task"] |= {"noise": "none"}
  features = getattr(run.program.task, "features", None)
  about = {
    "model": config["model"]["name"],
    "task": config["task"]["name"],
    "data": data["name"],
    "step": run.step,
    "classes": run.classes,
    "input": {
      "shape": [None, *folded.shape],
      "dtype": folded.dtype,
      "preprocessed": folded.preprocessed,
    },
    "output": {
      "shape": [None, *outputs.shape[1:]],
      "dtype": str(outputs.dtype),
    },
    "normalization": {"mean": run.mean, "std": run.std},
    "features": features and dataclasses.asdict(features),
    "folded": convention is not None,
    "convention": convention and dataclasses.asdict(convention),
    "versions": {
      "ws_jax": ws_jax.__version__,
      "jax": jax.__version__,
      "flax": flax.__version__,
    },
    "run": {"config": saved, "data": data},
  }
  # As it is read again: lists for tuples.
  return json.loads(json.dumps(about, default=str))


def task_of(about: dict[str, Any]) -> tuple[Any, Any]:
  """Returns the task of a network, and the names and shapes of its data.

  Args:
    about: What the file says of it.

  Raises:
    ValueError: the task is the user's own code, which no file may choose.
  """
  extras.need("train", by="the inputs of an exported network")
  from ws_jax.train.trained import described

  dataset = described(about["run"]["data"])
  settings = dict(about["run"]["config"]["task"])
  name = settings.pop("name")
  if "task" in own_code(about["run"]["config"]):
    raise ValueError(
      f"its task {name!r} is code of its own: predict from the run's workdir"
    )
  return tasks.create(name, dataset, **settings), dataset.info
