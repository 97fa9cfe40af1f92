"""A trained run in Python: its parameters, predictions and evaluation."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ws_jax import config as config_lib
from ws_jax import data, weights
from ws_jax.base import disk
from ws_jax.train import build, calling
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
    classes: Names of the classes; empty if the data had none.
    input_shape: Shape of one input.
  """

  config: ml_collections.ConfigDict
  program: steps.Program
  step: int
  params: PyTree
  model_state: PyTree
  classes: tuple[str, ...]
  input_shape: tuple[int, ...]

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
    return np.asarray(_outputs(self.program, params, variables, inputs))

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
    config = self.config.copy_and_resolve_references().unlock()
    setup = build.start(config_lib.apply_texts(config, overrides))
    return _evaluate(setup, self)


def load_run(path: str | pathlib.Path) -> Trained:
  """Reads a run for use in Python; its data are not needed.

  Args:
    path: Workdir of the run, of which the newest step is read, or the folder
      of one step in its `checkpoints`.

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
  status = disk.read_json(workdir / "status.json") or {}
  if saved is None:
    raise ValueError(f"{workdir} holds no run: there is no config.json")
  if "data" not in status:
    raise ValueError(
      f"{workdir}/status.json does not describe the data: start the run again"
      " (it goes on from its checkpoint), or train it with this version"
    )
  step = weights.newest_step(folder)
  if step is None:
    raise ValueError(f"{workdir} holds no checkpoint")
  config = config_lib.from_saved(saved)
  dataset = _described(status["data"])
  variables = weights.read_raw_variables(folder)
  return Trained(
    config=config.lock(),
    program=build.build_program(config, dataset),
    step=step,
    params=variables.pop("params"),
    model_state=variables,
    classes=dataset.info.classes,
    input_shape=dataset.info.input_shape,
  )


def _described(saved: Mapping[str, Any]) -> data.Dataset:
  """Returns a data set without examples, from what `status.json` says of it."""
  saved = {
    name: tuple(x) if isinstance(x, list) else x for name, x in saved.items()
  }
  mean, std = saved.pop("mean"), saved.pop("std")
  info = data.Info(**saved)
  return data.Dataset(info=info, train={}, test={}, mean=mean, std=std)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(program, params, model_state, inputs):
  key = program.task.input_key
  batch = program.task.batch(
    {key: inputs, **_blanks(program, len(inputs))},
    jnp.arange(len(inputs)),
    None,
  )
  outputs, _ = calling.apply(
    program.model, params, model_state, batch["inputs"], train=False
  )
  return outputs


def _blanks(program: steps.Program, size: int) -> dict[str, jax.Array]:
  """Returns labels for inputs that have none; nothing reads them."""
  label = getattr(program.task, "label_key", None)
  return {label: jnp.zeros((size,), jnp.int32)} if label else {}


def _evaluate(setup: build.Setup, run: Trained) -> dict[str, float]:
  everywhere = NamedSharding(setup.program.mesh, PartitionSpec())
  params, model_state = jax.device_put(
    (run.params, run.model_state), everywhere
  )
  batches = setup.source.batches(setup.config.data.eval_batch_size)
  return steps.evaluate_params(setup.program, params, model_state, batches)
