"""Steps on clips for the benchmarks: data, configuration, PyTorch's twin."""

import dataclasses
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import config, tasks
from ws_jax.bench import ARMS
from ws_jax.models import speech
from ws_jax.train import step as steps

MODELS = tuple(speech.MODELS)
_SECOND = 16_000  # samples of a clip
_WORDS = 12  # classes of Speech Commands, by which the papers count parameters
_FAMILIES = ("tc_resnet", "ds_cnn", "res")


@dataclasses.dataclass(frozen=True)
class Ready:
  """A task whose inputs were made before; it only takes them from an array.

  Attributes:
    task: Task that made them, and whose loss it is.
  """

  task: Any
  METRIC: ClassVar[Any] = tasks.KeywordSpotting.METRIC

  def batch(self, arrays: Any, indices: jax.Array, key: Any) -> Any:
    """Returns the `inputs` and `labels` at these positions."""
    del key
    return {name: jnp.take(x, indices, axis=0) for name, x in arrays.items()}

  def sums(self, *args: Any, **kwargs: Any) -> Any:
    """Returns the sums of the task that made the inputs."""
    return self.task.sums(*args, **kwargs)


def settings(model: str) -> dict[str, Any]:
  """Returns the keys of a step without augmentation, on the paper's features.

  DS-CNN has ten bands in windows of 40 ms, every 20 ms; the others have the 40
  bands that are the default.
  """
  few = {"task.bands": 10, "task.window_ms": 40.0, "task.hop_ms": 20.0}
  return {
    "task.name": "keyword_spotting",
    "task.shift_ms": 0.0,
    "task.time_masks": 0,
    "task.band_masks": 0,
    **(few if model.startswith("ds_cnn") else {}),
    "data.input_key": "audio",
    "data.label_key": "label",
  }


def noise(batch_size: int) -> types.SimpleNamespace:
  """Returns the data of one batch of clips of noise, with random labels."""
  rng = np.random.default_rng(0)
  shape = (batch_size, _SECOND)
  arrays = {
    "audio": rng.integers(-9000, 9000, shape, np.int16),
    "label": rng.integers(0, _WORDS, batch_size, np.int32),
    "length": np.full(batch_size, _SECOND, np.int32),
  }
  return types.SimpleNamespace(
    name="noise", train=arrays, test=arrays, num_classes=_WORDS
  )


def with_features(
  program: steps.Program, arrays: Any
) -> tuple[steps.Program, Any]:
  """Returns a program that begins with features, and the features.

  Other libraries are given features, so a step that is compared with theirs
  must not make them.

  Args:
    program: Program that begins with clips.
    arrays: Arrays of the clips.
  """
  task = program.task
  every = jnp.arange(len(arrays["label"]))
  features = jax.jit(lambda arrays: task.batch(arrays, every, None))(arrays)
  return dataclasses.replace(program, task=Ready(task)), features


def network(model: str, arm: str, dtype: str) -> dict[str, Any]:
  """Returns the network of an arm as plain values, for `torch_speech`."""
  default = config.apply(config.default(), {"model.name": model}).model
  shape = {"pool": (1, 1), "dilated": False} | speech.MODELS[model]
  shape.pop("defaults", None)
  return {
    **shape,
    "family": next(name for name in _FAMILIES if model.startswith(name)),
    "groups": default.num_groups,
    "outputs": _WORDS,
    "norm": ARMS[arm]["model.norm"],
    "ws": ARMS[arm]["model.ws"],
    "dtype": dtype,
  }
