"""A trained run in Python: its parameters, predictions and evaluation."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ws_jax import config as config_lib
from ws_jax import data as data_lib
from ws_jax import weights
from ws_jax.base import disk
from ws_jax.data import place
from ws_jax.train import build, calling, predictions, sharding
from ws_jax.train import step as steps

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A run as it was trained, for use in Python.

  Attributes:
    config: Configuration of the run, resolved.
    program: Model, task and all else that was compiled.
    step: Number of optimizer steps done.
    params: Raw parameters, in host memory: the moving average if the run kept
      one.
    model_state: The model's other collections, as running statistics.
    data: Names, shapes and classes of the data that it was trained on.
    mean: Mean of each channel of these data; empty where they are no images.
    std: Standard deviation of each channel.
  """

  config: ml_collections.ConfigDict
  program: steps.Program
  step: int
  params: PyTree
  model_state: PyTree
  data: data_lib.Info
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes; empty if the data had none."""
    return self.data.classes

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of one input."""
    return tuple(self.data.input_shape)

  @functools.cached_property
  def variables(self) -> PyTree:
    """Collections to apply the plain Linen model with: WS is folded in."""
    effective = steps.effective_params(self.program, self.params)
    return {"params": effective, **self.model_state}

  def predict(self, inputs: np.ndarray) -> np.ndarray:
    """Returns the outputs of the model, as logits.

    Args:
      inputs: Inputs `[N, ...]` as in the data, uint8 for images.

    Returns:
      Array `[N, outputs]`.

    Raises:
      ValueError: inputs of another shape.
    """
    if inputs.shape[1:] != self.input_shape:
      raise ValueError(
        f"inputs are {list(inputs.shape)}, but must be"
        f" [N, {', '.join(map(str, self.input_shape))}]"
      )
    variables = dict(self.variables)
    params = variables.pop("params")
    arrays = {self.data.input_key: inputs}
    # Nothing reads labels here, but a task takes them along.
    arrays[self.data.label_key] = np.zeros(len(inputs), np.int32)
    return np.asarray(_outputs(self.program, params, variables, arrays))

  def evaluate(
    self, overrides: Iterable[tuple[str, str]] = ()
  ) -> dict[str, float]:
    """Returns loss and metrics on a split of the data.

    Args:
      overrides: Keys of the configuration to change and their values as text,
        as `[("data.eval_split", "train")]`.

    Raises:
      ConfigError: the data are not there, or do not fit.
    """
    return self.answer(overrides)[0]

  def answer(
    self, overrides: Iterable[tuple[str, str]] = ()
  ) -> tuple[dict[str, float], predictions.Predictions | None]:
    """Returns what `evaluate` does, and what the run answered.

    Args:
      overrides: Keys of the configuration, as for `evaluate`.

    Returns:
      Loss and metrics; and the answer to each example, None for a task that
      does not classify.

    Raises:
      ConfigError: the data are not there, or do not fit.
    """
    config = self.config.copy_and_resolve_references().unlock()
    changed = config_lib.apply_texts(config, overrides)
    if self.data.tokenizer:
      # The tokens of the run, whatever text a tokenizer would be made from.
      changed.task.tokenizer = self.data.tokenizer
    setup = build.start(changed, trains=False)
    everywhere = sharding.whole(self.program.mesh)
    params, model_state = place.put((self.params, self.model_state), everywhere)
    batches = setup.source.batches(changed.data.eval_batch_size)
    # By its own task: with the mean and deviation of what it was trained on.
    found: list[jax.Array] = []
    metrics = steps.evaluate_params(
      self.program, params, model_state, batches, found
    )
    if not found:
      return metrics, None
    return metrics, predictions.gather(found, setup.dataset.info)


def load_run(path: str | pathlib.Path) -> Trained:
  """Reads a run for use in Python; its data are not needed.

  Args:
    path: Workdir of the run, of which the newest step that is whole is read, or
      the folder of one step in its `checkpoints`.

  Returns:
    The run; `params` for its parameters, `predict` for its outputs.

  Raises:
    ValueError: there is no run, no checkpoint, or a file is damaged; the
      message names it.

  Example:
    >>> run = load_run("workdirs/first")  # doctest: +SKIP
    >>> run.predict(images).argmax(-1)  # doctest: +SKIP
  """
  folder = pathlib.Path(path)
  workdir = folder if folder.parent.name != "checkpoints" else folder.parents[1]
  saved = disk.read_json(workdir / "config.json")
  status = disk.read_json(workdir / "status.json")
  if saved is None:
    raise ValueError(f"{workdir} holds no run: there is no config.json")
  if not isinstance(status, dict) or "data" not in status:
    raise ValueError(
      f"{workdir}/status.json does not describe the data: start the run again"
      " (it goes on from its checkpoint), or train it with this version"
    )
  if weights.newest_step(folder) is None:
    raise ValueError(f"{workdir} holds no checkpoint")
  variables, read = weights.read_checkpoint(folder)
  return restore(saved, status["data"], variables, int(read.name))


def restore(
  config: Mapping[str, Any],
  data: Mapping[str, Any],
  variables: PyTree,
  step: int,
) -> Trained:
  """Makes a run for use in Python of its parts.

  Args:
    config: Configuration of the run as nested dicts, as in `config.json`.
    data: What `status.json` says of the data.
    variables: Collections of the model, as `{"params": ...}`.
    step: Number of optimizer steps done.

  Raises:
    ValueError: the configuration is not one of this version.
  """
  restored = config_lib.on_any_devices(config_lib.from_saved(config))
  dataset = described(data)
  return Trained(
    config=restored.lock(),
    program=build.build_program(restored, dataset),
    step=step,
    params=variables["params"],
    model_state={k: x for k, x in variables.items() if k != "params"},
    data=dataset.info,
    mean=dataset.mean,
    std=dataset.std,
  )


def described(saved: Mapping[str, Any]) -> data_lib.Dataset:
  """Returns a data set without examples, from what `status.json` says of it.

  Raises:
    ValueError: it does not say what `record.about` makes it say.
  """
  fields = dataclasses.fields(data_lib.Info)
  needed = {f.name for f in fields if f.default is dataclasses.MISSING}
  known = {field.name for field in fields}
  wrong = not isinstance(saved, Mapping)
  wrong = wrong or not needed | {"mean", "std"} <= saved.keys()
  wrong = wrong or not saved.keys() <= known | {"mean", "std"}
  if wrong or not all(_KINDS[name](x) for name, x in saved.items()):
    raise ValueError("what is said of the data of the run is damaged")
  saved = {
    name: tuple(x) if isinstance(x, list) else x for name, x in saved.items()
  }
  mean, std = saved.pop("mean"), saved.pop("std")
  info = data_lib.Info(**saved)
  return data_lib.Dataset(info=info, train={}, test={}, mean=mean, std=std)


def _each(kind: Any) -> Callable[[Any], bool]:
  """Returns whether a value is a list of values of that kind."""
  return lambda x: (
    isinstance(x, (list, tuple)) and all(isinstance(one, kind) for one in x)
  )


def _is_shape(x: Any) -> bool:
  return _each(int)(x) and math.prod(x) < 2**31 and all(n > 0 for n in x)


def _is_dtype(x: Any) -> bool:
  return isinstance(x, str) and x in np.sctypeDict


def _is_count(x: Any) -> bool:
  return isinstance(x, int) and 0 <= x < 2**31


_is_text = lambda x: isinstance(x, str)
# What the entries of `data` in a `status.json` can be.
_KINDS: dict[str, Callable[[Any], bool]] = {
  **dict.fromkeys(("name", "input_key", "label_key"), _is_text),
  **dict.fromkeys(("tokenizer", "group_key"), _is_text),
  **dict.fromkeys(("train_size", "eval_size"), _is_count),
  "input_shape": _is_shape,
  "input_dtype": _is_dtype,
  "num_classes": lambda x: x is None or _is_count(x),
  **dict.fromkeys(("classes", "groups"), _each(str)),
  **dict.fromkeys(("mean", "std"), _each((int, float))),
}


@functools.partial(jax.jit, static_argnums=0)
def _outputs(program, params, model_state, arrays):
  size = len(jax.tree.leaves(arrays)[0])
  batch = program.task.batch(arrays, jnp.arange(size, dtype=jnp.int32), None)
  outputs, _ = calling.apply(
    program.model, params, model_state, batch["inputs"], train=False
  )
  return outputs
