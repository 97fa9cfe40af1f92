"""The configuration of a run: its keys, overrides, and derived numbers.

A config file calls `default()`, changes what differs, and hands the rest of
`--config=configs/x.py:norm=batch,ws=false` to `variant`. Where a quantity has
two keys the more explicit one wins when it is given: `*_steps` over
`*_epochs`, `learning_rate` over `base_learning_rate` (per 256 examples), and
`channels_per_group` over `num_groups`.
"""

import ast
import difflib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from ws_jax.base import names

_BASE_BATCH = 256


class ConfigError(ValueError):
  """A configuration that cannot be run; the message is one line."""


def default() -> ml_collections.ConfigDict:
  """Every key with its default: ResNet-20 with GN+WS on the embedded data."""
  integer = lambda: config_dict.placeholder(int)
  number = lambda: config_dict.placeholder(float)
  text = lambda: config_dict.placeholder(str)
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "data": {
        "name": "fashion_mnist_10k",
        "dir": text(),  # None: where TFDS keeps its data
        "batch_size": 128,  # the optimizer batch
        "eval_batch_size": 500,
        "crop_padding": 2,
        "flip": True,
      },
      "model": {
        "name": "resnet20",
        "version": 1,  # 1: post-activation, 2: pre-activation
        "width": 1.0,
        "stem": text(),  # cifar, half or imagenet; None: the model's own
        "norm": "group",
        "num_groups": 8,
        "channels_per_group": integer(),  # wins over num_groups
        "norm_batch_size": integer(),  # None: the whole micro-batch
        "norm_momentum": 0.9,
        "zero_init_last": False,
        "ws": True,
        "ws_convention": "bit",
        "dtype": "float32",  # of the compute; parameters stay float32
        "remat": False,
      },
      "optim": {
        "name": "sgd",
        "learning_rate": number(),
        "base_learning_rate": 0.1,
        "rest_factor": 1.0,  # of the rate: for all but convolution kernels
        "weight_decay": 5e-4,
        "decay": "kernels",  # or all
        "momentum": 0.9,  # for adamw: b1
        "nesterov": True,
        "schedule": "cosine",
        "warmup_steps": integer(),
        "warmup_epochs": 0.0,
        "boundaries": (1 / 3, 2 / 3),  # of schedule=step, parts of the run
        "boundary_factor": 0.1,
        "label_smoothing": 0.0,
        "centralize": False,  # Gradient Centralization
        "clip_norm": number(),
        "adaptive_clip": number(),
        "ema_decay": number(),
        "micro_batch_size": integer(),  # None: no accumulation
      },
      "train": {
        "epochs": 5.0,
        "steps": integer(),
        "eval_every_steps": integer(),
        "eval_every_epochs": 1.0,
        "checkpoint_every_steps": integer(),
        "checkpoint_every_epochs": 1.0,
        "keep_checkpoints": 1,  # 0: none are written
        "log_every_steps": 50,
        "divergence_factor": 20.0,  # times the first loss
      },
    }
  )


def load(path: str) -> ml_collections.ConfigDict:
  """Loads `path.py` or `path.py:variant` as the command line would.

  Args:
    path: a config file, absolute, relative to the working directory or to the
      project, with an optional variant behind a colon.

  Returns:
    What its `get_config` returns.

  Raises:
    ConfigError: there is no such file; the message names the nearest.
  """
  name, _, arg = path.partition(":")
  file = find(name)
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg) if arg else module.get_config()


def find(name: str) -> pathlib.Path:
  """The config file of that name, from here or from the project's folder.

  Raises:
    ConfigError: there is none; the message names the nearest.
  """
  package = pathlib.Path(__file__).resolve().parent
  # The checkout; and the package, where a wheel brings its own copy.
  roots = (package.parent, package)
  for place in (pathlib.Path(name), *(root / name for root in roots)):
    if place.is_file():
      return place
  files = [file for root in roots for file in root.glob("configs/*.py")]
  known = {f"configs/{file.name}" for file in files}
  raise ConfigError(f"no config file {name!r}: {names.suggest(name, known)}")


def variant(
  config: ml_collections.ConfigDict, arg: str | None
) -> ml_collections.ConfigDict:
  """Applies `"norm=batch,ws=false"`: what follows the colon of `--config`.

  A key is dotted, or just its last part where that is unambiguous, or the
  section whose `name` is meant: `model=resnet8`.

  Args:
    config: the configuration; it is changed in place and returned.
    arg: comma-separated `key=value`; empty or None changes nothing.

  Raises:
    ConfigError: not of that form, an unknown key, or a value of a wrong type.

  Example:
    >>> variant(default(), "norm=batch,ws=false").model.norm
    'batch'
  """
  overrides = {}
  for item in filter(None, (arg or "").split(",")):
    key, equals, value = item.partition("=")
    if not equals:
      raise ConfigError(f"config variant {item!r}: expected key=value")
    overrides[_full_key(config, key.strip())] = _parse(value.strip())
  return apply(config, overrides)


def apply(
  config: ml_collections.ConfigDict, overrides: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Sets dotted keys, e.g. `{"optim.learning_rate": 0.4}`, in place.

  Args:
    config: the configuration; it is changed in place and returned.
    overrides: dotted key to value.

  Raises:
    ConfigError: an unknown key, with the nearest one, or a value whose type
      does not fit.

  Example:
    >>> apply(default(), {"optim.learning_rat": 0.4})
    Traceback (most recent call last):
    ws_jax.config.ConfigError: unknown config key 'optim.learning_rat': \
did you mean 'optim.learning_rate'?
  """
  known = flatten(config)
  for key, value in overrides.items():
    if key not in known:
      raise ConfigError(f"unknown config key {key!r}{nearest(key, known)}")
    section, _, leaf = key.rpartition(".")
    parent = config[section] if section else config
    try:
      parent[leaf] = value
    except TypeError as error:
      raise ConfigError(f"config key {key!r}: {error}") from error
  return config


def flatten(
  config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ""
) -> dict[str, Any]:
  """Dotted key to value, for every leaf."""
  flat = {}
  for key in config:
    value = config[key]
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = value
  return flat


def nearest(key: str, known: Mapping[str, Any]) -> str:
  """`": did you mean 'x'?"` for a misspelt key, or what there is."""
  by_leaf = {full.rpartition(".")[2]: full for full in known}
  near = difflib.get_close_matches(key, known, n=1) or [
    by_leaf[leaf]
    for leaf in difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1)
  ]
  if near:
    return f": did you mean {near[0]!r}?"
  return f". Known: {', '.join(known)}"


def resolve(
  config: ml_collections.ConfigDict, *, num_examples: int, num_devices: int
) -> ml_collections.ConfigDict:
  """Derives every number that others depend on, and checks that they fit.

  Args:
    config: the configuration after all overrides; it is not changed.
    num_examples: size of the training set, which ties epochs to steps.
    num_devices: devices that share each micro-batch.

  Returns:
    A locked copy with `optim.learning_rate`, `optim.micro_batch_size`,
    `model.norm_batch_size` and every `*_steps` filled in, and `train.epochs`
    true to `train.steps`.

  Raises:
    ConfigError: a number out of range, or a batch that does not divide.
  """
  config = config.copy_and_resolve_references()
  batch = config.data.batch_size
  _positive(config, "data.batch_size", "data.eval_batch_size")
  _positive(config, "train.log_every_steps", "train.divergence_factor")
  if config.optim.learning_rate is None:
    base = config.optim.base_learning_rate
    if base is None:
      raise ConfigError(
        "neither optim.learning_rate nor optim.base_learning_rate is set"
      )
    config.optim.learning_rate = base * batch / _BASE_BATCH
  _not_negative(config, "optim.learning_rate", "optim.weight_decay")
  _not_negative(config, "optim.rest_factor")
  _not_negative(config, "train.keep_checkpoints")
  _fraction(config, "optim.momentum", "optim.ema_decay", "model.norm_momentum")
  _fraction(config, "optim.label_smoothing")
  _batches(config, num_devices)
  steps_per_epoch = num_examples / batch
  for section, key in (
    (config.train, "steps"),
    (config.optim, "warmup_steps"),
    (config.train, "eval_every_steps"),
    (config.train, "checkpoint_every_steps"),
  ):
    if section[key] is None:
      epochs = section[key.replace("steps", "epochs")]
      if epochs is not None:
        section[key] = round(epochs * steps_per_epoch)
      if key.endswith("every_steps"):
        section[key] = max(1, section[key] or config.train.steps)
    elif key == "steps":
      section.epochs = section.steps / steps_per_epoch
  _positive(config, "train.steps")
  _positive(config, "train.eval_every_steps", "train.checkpoint_every_steps")
  _not_negative(config, "optim.warmup_steps")
  if config.optim.warmup_steps > config.train.steps:
    raise ConfigError(
      f"optim.warmup_steps={config.optim.warmup_steps} is longer than the"
      f" whole run, train.steps={config.train.steps}"
    )
  return config.lock()


def _batches(config: ml_collections.ConfigDict, num_devices: int) -> None:
  batch, optim, model = config.data.batch_size, config.optim, config.model
  if optim.micro_batch_size is None:
    optim.micro_batch_size = batch
  _positive(config, "optim.micro_batch_size")
  micro = optim.micro_batch_size
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
  if model.norm_batch_size is None:
    model.norm_batch_size = micro
  _positive(config, "model.norm_batch_size")
  if micro % model.norm_batch_size:
    raise ConfigError(
      f"optim.micro_batch_size={micro} is not divisible by"
      f" model.norm_batch_size={model.norm_batch_size}"
    )


def _check(config, keys, allowed, what) -> None:
  flat = flatten(config)
  for key in keys:
    if flat[key] is not None and not allowed(flat[key]):
      raise ConfigError(f"{key}={flat[key]} must be {what}")


def _positive(config, *keys) -> None:
  _check(config, keys, lambda x: x > 0, "greater than 0")


def _not_negative(config, *keys) -> None:
  _check(config, keys, lambda x: 0 <= x < float("inf"), "finite and 0 or more")


def _fraction(config, *keys) -> None:
  _check(config, keys, lambda x: 0 <= x < 1, "at least 0 and below 1")


def _full_key(config: ml_collections.ConfigDict, key: str) -> str:
  known = flatten(config)
  if f"{key}.name" in known:
    return f"{key}.name"
  if key in known:
    return key
  full = [name for name in known if name.rpartition(".")[2] == key]
  if len(full) == 1:
    return full[0]
  if full:
    raise ConfigError(f"config key {key!r} could be {' or '.join(full)}")
  raise ConfigError(f"unknown config key {key!r}{nearest(key, known)}")


def _parse(value: str) -> Any:
  words = {"true": True, "false": False, "none": None}
  if value.lower() in words:
    return words[value.lower()]
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return value
