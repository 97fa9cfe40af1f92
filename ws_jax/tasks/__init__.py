"""Tasks: how a batch is made, what is summed over it, and what is reported.

The training loop knows nothing of images or labels. A task is a frozen
dataclass (a static argument of `jax.jit`) with two methods and a constant:

- `batch(arrays, indices, key)` returns the examples at `indices` [B] of the
  data, as a dict with `inputs` (the model is called with them) and whatever
  `sums` needs; augmented if `key` is not None. It runs inside the jitted step.
- `sums(outputs, batch, mask, training)` returns a dict of float32 scalars, each
  a sum over the examples (or tokens) that `mask` [B] keeps, with their number
  as `count`. `loss` is what training minimises, divided by `count`; the others
  are the metrics, divided by `count` as well, or by a count of their own: that
  of `bits_per_byte` is `bits_per_byte_count`, where there is one.
- `METRIC` says which metric decides, and in which direction.

A task of classification may have `answers(outputs, batch)`, which returns the
label, the answer and the group of each example, int32 [3, B] with -1 for what
is not known: a run keeps those of its last evaluation (predictions.npz).

Metrics beside `METRIC` are named in a tuple `metrics`. A task that needs
another number of outputs than there are classes says so by `num_outputs`, and
one whose inputs are tokens may say by `num_inputs` how many there are. A task
may also have `preprocess(inputs)`, which makes of inputs as in the data
`[B, ...]` what `batch` calls `inputs`, without augmentation: an exported
network then holds that alone, and no choice of examples by their indices.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from ws_jax.base import names
from ws_jax.base.keys import Key, table
from ws_jax.tasks.image import ImageClassification
from ws_jax.tasks.language_model import LanguageModel
from ws_jax.tasks.metric import Metric
from ws_jax.tasks.speech import KeywordSpotting
from ws_jax.tasks.text_classification import TextClassification

__all__ = [
  "TASKS",
  "ImageClassification",
  "KeywordSpotting",
  "LanguageModel",
  "Metric",
  "TextClassification",
  "create",
  "keys",
  "options",
]

TASKS = {
  "image_classification": ImageClassification,
  "keyword_spotting": KeywordSpotting,
  "language_model": LanguageModel,
  "text_classification": TextClassification,
}


def keys(name: str) -> dict[str, Key]:
  """Returns the keys that a task adds to `config.task`.

  Args:
    name: Name of `TASKS`, or `package.module:callable` of the user's own.

  Raises:
    ValueError: unknown name; the message has the nearest one.

  Example:
    >>> sorted(keys("image_classification"))[:3]
    ['crop_padding', 'cutmix', 'flip']
  """
  if name.startswith(f"{names.GIVEN}:"):
    return {}
  if ":" in name:
    names.load_object(name, "task")
    return {"kwargs": table(f"arguments of {name}")}
  return names.lookup(TASKS, name, "task").KEYS


def options(name: str, settings: Mapping[str, Any]) -> Any:
  """Returns what a task asks of its data, for `ws_jax.data.Request`.

  Args:
    name: Name of `TASKS`, or `package.module:callable`.
    settings: The task's part of the configuration.

  Returns:
    A hashable value that the sources know; None if the task asks nothing.
  """
  ask = getattr(TASKS.get(name), "options", None)
  return ask(settings) if ask else None


def create(name: str, dataset: Any, **settings: Any) -> Any:
  """Makes a task.

  Args:
    name: Name of `TASKS`, or `package.module:callable`. A callable of the
      user's own is called with `kwargs`, and with `dataset=` if it takes that.
    dataset: The data, as `ws_jax.data.load` returns them.
    **settings: The `keys` of the task.

  Raises:
    ValueError: an unknown name, or settings or data that the task refuses.
  """
  if ":" not in name:
    return names.lookup(TASKS, name, "task").create(dataset, **settings)
  function = names.load_object(name, "task")
  arguments = dict(settings.get("kwargs") or {})
  if _takes(function, "dataset"):
    arguments["dataset"] = dataset
  try:
    return check(function(**arguments), name)
  except TypeError as error:
    raise ValueError(f"{name}: {error}") from error


def check(task: Any, name: str) -> Any:
  """Returns a task of the user's own, after a look at its parts.

  Raises:
    ValueError: a method or `METRIC` is missing, or the task cannot be hashed,
      as a static argument of `jax.jit` must be.
  """
  for part in ("batch", "sums"):
    if not callable(getattr(task, part, None)):
      raise ValueError(f"task {name} has no method {part}; see ws_jax.tasks")
  if not isinstance(getattr(task, "METRIC", None), Metric):
    raise ValueError(
      f"task {name} has no METRIC; give it ws_jax.tasks.Metric(NAME, 'max')"
    )
  try:
    hash(task)
  except TypeError:
    raise ValueError(
      f"task {name} cannot be hashed; make it a frozen dataclass whose fields"
      " are numbers, texts and tuples"
    ) from None
  return task


def metric_names(task: Any) -> tuple[str, ...]:
  """Returns the names of what `sums` has beside `loss` and `count`."""
  return tuple(getattr(task, "metrics", (task.METRIC.name,)))


def _takes(function: Any, argument: str) -> bool:
  parameters: Mapping[str, Any] = inspect.signature(function).parameters
  return argument in parameters
