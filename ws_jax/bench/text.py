"""Steps on text for the benchmarks: data, configuration, and PyTorch's twin."""

import types
from typing import Any

import jax
import ml_collections
import numpy as np

from ws_jax import config, tasks
from ws_jax.bench import ARMS

# The models, and the number of tokens of their rows.
LENGTHS = {
  "transformer_lm": 256,
  "transformer_classifier": 24,
  "text_cnn": 24,
}
# So small that the network does not learn the random tokens by heart.
LEARNING_RATE = 1e-4
_BYTES = 257  # All bytes, and the special token.
_WORDS, _CLASSES = 5000, 150  # As in CLINC150.


def configuration(
  model: str, arm: str, batch_size: int, **overrides: Any
) -> ml_collections.ConfigDict:
  """Returns a resolved configuration without dropout, by AdamW.

  Args:
    model: Name in `LENGTHS`.
    arm: Name of an arm in `ARMS`.
    batch_size: Number of rows in a step.
    **overrides: Other keys, with `__` for the dot.
  """
  is_lm = model == "transformer_lm"
  settings = {
    "model.name": model,
    "model.dropout": 0.0,
    "task.name": "language_model" if is_lm else "text_classification",
    "task.length": LENGTHS[model],
    "data.batch_size": batch_size,
    "optim.name": "adamw",
    "optim.nesterov": False,
    "optim.learning_rate": LEARNING_RATE,
    "optim.schedule": "constant",
    "train.steps": 1_000_000,
  }
  settings |= ARMS[arm]
  settings |= {
    key.replace("__", "."): value for key, value in overrides.items()
  }
  return config.resolve(
    config.apply(config.default(), settings),
    num_examples=batch_size,
    num_devices=jax.device_count(),
  )


def noise(model: str, batch_size: int) -> types.SimpleNamespace:
  """Returns one batch of random tokens, `train`, with its `task`."""
  rng = np.random.default_rng(0)
  shape = (batch_size, LENGTHS[model])
  if model == "transformer_lm":
    rows = rng.integers(0, 256, (shape[0], shape[1] + 1)).astype(np.uint16)
    count = np.full(batch_size, shape[1], np.int32)
    task = tasks.LanguageModel(tokenizer="", num_outputs=_BYTES)
    arrays = {"tokens": rows, "bytes": count}
    return types.SimpleNamespace(train=arrays, num_classes=None, task=task)
  tokens = rng.integers(0, _WORDS - 1, shape)
  ends = rng.integers(4, shape[1], (batch_size, 1))
  tokens[np.arange(shape[1]) >= ends] = _WORDS - 1
  labels = rng.integers(0, _CLASSES, batch_size).astype(np.int32)
  task = tasks.TextClassification(tokenizer="", num_inputs=_WORDS)
  arrays = {"tokens": tokens.astype(np.uint16), "label": labels}
  return types.SimpleNamespace(train=arrays, num_classes=_CLASSES, task=task)


def network(model: str, arm: str, dtype: str) -> dict[str, Any]:
  """Returns the network of an arm as plain values, for `torch_text`."""
  c = configuration(model, arm, 1, model__dtype=dtype).model
  settings = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in c.items()
    if name not in ("name", "ws_where")
  }
  is_lm = model == "transformer_lm"
  return settings | {
    "model": model,
    "inputs": _BYTES if is_lm else _WORDS,
    "outputs": _BYTES if is_lm else _CLASSES,
    "length": LENGTHS[model],
  }
