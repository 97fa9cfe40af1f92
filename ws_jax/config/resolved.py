"""Checks a configuration, and derives the numbers that others depend on."""

import ml_collections

from ws_jax.config.overrides import MOVED
from ws_jax.config.table import ConfigError, flatten, get, keys, nearest, put

_BASE_BATCH = 256


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what can be refused without data: types, ranges, relations.

  Raises:
    ConfigError: an unknown key, a value of a wrong type or out of range, or
      numbers that do not fit each other.
  """
  declared, flat = keys(config), flatten(config)
  for path, value in flat.items():
    if path in MOVED:
      raise ConfigError(f"config key {path!r} is {MOVED[path]!r} now")
    if path not in declared:
      raise ConfigError(f"unknown config key {path!r}{nearest(path, declared)}")
    try:
      declared[path].check(path, value)
    except ValueError as error:
      raise ConfigError(str(error)) from None
  missing = [path for path in declared if path not in flat]
  if missing:
    raise ConfigError(f"config key {missing[0]!r} is missing")
  if (flat["optim.learning_rate"], flat["optim.base_learning_rate"]) == (
    None,
    None,
  ):
    raise ConfigError(
      "neither optim.learning_rate nor optim.base_learning_rate is set"
    )
  if (flat["train.steps"], flat["train.epochs"]) == (None, None):
    raise ConfigError("neither train.steps nor train.epochs is set")


def resolve(
  config: ml_collections.ConfigDict, *, num_examples: int, num_devices: int
) -> ml_collections.ConfigDict:
  """Derives every number that others depend on, and checks that they fit.

  Args:
    config: Configuration after all overrides; it is not changed.
    num_examples: Size of the training set, which ties epochs to steps.
    num_devices: Number of devices that share each micro-batch.

  Returns:
    A locked copy with `optim.learning_rate`, `optim.micro_batch_size`,
    `model.norm_batch_size` and every `*_steps` filled in, and `train.epochs`
    true to `train.steps`.

  Raises:
    ConfigError: as `check`, or a batch that does not divide.
  """
  check(config)
  config = config.copy_and_resolve_references()
  batch = config.data.batch_size
  if config.optim.learning_rate is None:
    rate = config.optim.base_learning_rate * batch / _BASE_BATCH
    put(config, "optim.learning_rate", rate)
  _batches(config, num_devices)
  steps_per_epoch = num_examples / batch
  for path in (
    "train.steps",
    "optim.warmup_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
  ):
    steps, epochs = get(config, path), get(config, _epochs_key(path))
    if steps is not None:
      if path == "train.steps":
        put(config, "train.epochs", steps / steps_per_epoch)
      continue
    if epochs is not None:
      steps = round(epochs * steps_per_epoch)
    if "_every_" in path:
      steps = max(1, steps or config.train.steps)
    put(config, path, steps or 0)
  for path in ("steps", "eval_every_steps", "checkpoint_every_steps"):
    if config.train[path] < 1:
      raise ConfigError(
        f"train.{path}={config.train[path]} must be greater than 0"
      )
  if config.optim.warmup_steps > config.train.steps:
    raise ConfigError(
      f"optim.warmup_steps={config.optim.warmup_steps} is longer than the"
      f" whole run, train.steps={config.train.steps}"
    )
  return config.lock()


def _epochs_key(path: str) -> str:
  return path.replace("steps", "epochs")


def _batches(config: ml_collections.ConfigDict, num_devices: int) -> None:
  """Fills the micro-batch and the normalization batch in, and fits them."""
  batch, model = config.data.batch_size, config.model
  micro = config.optim.micro_batch_size or batch
  put(config, "optim.micro_batch_size", micro)
  if batch % micro:
    raise ConfigError(
      f"data.batch_size={batch} is not divisible by"
      f" optim.micro_batch_size={micro}"
    )
  if micro % num_devices:
    raise ConfigError(
      f"optim.micro_batch_size={micro} is not divisible by the"
      f" {num_devices} devices that share it"
    )
  if "norm_batch_size" not in model:
    return
  norm_batch = model.norm_batch_size or micro
  if config.mesh.batch_norm == "device":
    norm_batch = micro // num_devices
  put(config, "model.norm_batch_size", norm_batch)
  if micro % model.norm_batch_size:
    raise ConfigError(
      f"optim.micro_batch_size={micro} is not divisible by"
      f" model.norm_batch_size={model.norm_batch_size}"
    )
