"""Steps on text for the benchmarks: data, configuration, and PyTorch's twin."""

import types
from typing import Any

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


def settings(model: str) -> dict[str, Any]:
  """Returns the keys of a step without dropout, by AdamW."""
  is_lm = model == "transformer_lm"
  return {
    "model.dropout": 0.0,
    "task.name": "language_model" if is_lm else "text_classification",
    "task.length": LENGTHS[model],
    "data.input_key": "tokens",
    "data.label_key": "bytes" if is_lm else "label",
    "optim.name": "adamw",
    "optim.nesterov": False,
    "optim.learning_rate": LEARNING_RATE,
  }


def noise(model: str, batch_size: int) -> tuple[Any, types.SimpleNamespace]:
  """Returns a task, and the data of one batch of random tokens."""
  rng = np.random.default_rng(0)
  shape = (batch_size, LENGTHS[model])
  task: Any
  if model == "transformer_lm":
    rows = rng.integers(0, 256, (shape[0], shape[1] + 1)).astype(np.uint16)
    # As float, since whole numbers would be taken for classes.
    count = np.full(batch_size, shape[1], np.float32)
    task = tasks.LanguageModel(tokenizer="", num_outputs=_BYTES)
    arrays, num_classes = {"tokens": rows, "bytes": count}, None
  else:
    tokens = rng.integers(0, _WORDS - 1, shape)
    ends = rng.integers(4, shape[1], (batch_size, 1))
    tokens[np.arange(shape[1]) >= ends] = _WORDS - 1
    labels = rng.integers(0, _CLASSES, batch_size).astype(np.int32)
    task = tasks.TextClassification(tokenizer="", num_inputs=_WORDS)
    arrays, num_classes = (
      {"tokens": tokens.astype(np.uint16), "label": labels},
      _CLASSES,
    )
  data = types.SimpleNamespace(
    name="noise", train=arrays, test=arrays, num_classes=num_classes
  )
  return task, data


def network(model: str, arm: str, dtype: str) -> dict[str, Any]:
  """Returns the network of an arm as plain values, for `torch_text`."""
  keys = {"model.name": model, "model.dtype": dtype, **settings(model)}
  c = config.apply(config.default(), keys | ARMS[arm]).model
  own = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in c.items()
    if name not in ("name", "ws_where")
  }
  is_lm = model == "transformer_lm"
  return own | {
    "model": model,
    "ws": c.ws_convention if c.ws else None,
    "inputs": _BYTES if is_lm else _WORDS,
    "outputs": _BYTES if is_lm else _CLASSES,
    "length": LENGTHS[model],
  }
