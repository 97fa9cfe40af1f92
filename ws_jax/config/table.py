"""All keys of a configuration: default, meaning and range of each.

`KEYS` are those of every run. Those of its model and its task come besides:
setting `model.name` or `task.name` exchanges the keys of the old one for those
of the new one.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from ws_jax import models, tasks
from ws_jax.base import keys as key

_LARGEST_SEED = 2**31 - 1

# These are leaves of the train state, not constants of the program. Runs that
# differ in nothing else share one compile, and can share one program.
TRACED = (
  "optim.learning_rate",
  "optim.base_learning_rate",
  "optim.weight_decay",
  "optim.momentum",
  "seed",
)

# Sections whose `name` decides which other keys they have, and what tells them.
OWNERS = {"model": models.keys, "task": tasks.keys}


class ConfigError(ValueError):
  """A configuration that cannot be run; the message is one line."""


def _rising(parts: tuple[float, ...]) -> bool:
  edges = (0.0, *parts, 1.0)
  return all(a < b for a, b in zip(edges[:-1], edges[1:], strict=True))


# The keys of every run; those of its model and its task come besides.
KEYS = {
  "seed": key.integer(
    0,
    "seed of initialization, order, augmentation and dropout",
    high=_LARGEST_SEED,
  ),
  "init_from": key.text(
    None, "workdir or file whose parameters the run starts from"
  ),
  "init_skip": key.texts(
    (), "shell patterns of parameters that init_from leaves fresh, as head/*"
  ),
  "init_zero": key.texts(
    (), "shell patterns of parameters that are 0 after init_from, as head/*"
  ),
  "data.name": key.text(
    "fashion_mnist_10k",
    "name of a data set, path of an .npz or an image folder, or"
    " package.module:callable",
  ),
  "data.dir": key.text(None, "folder of TFDS data; none: where TFDS keeps it"),
  "data.train_split": key.text(None, "split to train on, as train[:90%]"),
  "data.eval_split": key.text(None, "split to evaluate on, as validation"),
  "data.input_key": key.text(None, "name of the inputs in the data"),
  "data.label_key": key.text(None, "name of the labels in the data"),
  "data.batch_size": key.integer(128, "examples of an optimizer step", low=1),
  "data.eval_batch_size": key.integer(500, "examples at once", low=1),
  "data.source": key.Key(
    "memory",
    str,
    "memory, or stream: JPEG and PNG files are decoded as they are needed",
    lambda value: value in ("memory", "stream"),
    "memory or stream",
  ),
  "data.image_size": key.integer(
    224, "pixels of a side of a streamed image", low=1
  ),
  "data.eval_resize": key.integer(
    256, "pixels of its shorter side before the central crop", low=1
  ),
  "data.crop_area": key.number(
    0.08, "smallest part of it that a random crop keeps", above=0, high=1
  ),
  "data.rand_augment": key.integer(0, "operations of RandAugment on it"),
  "data.rand_augment_strength": key.number(9.0, "their strength", high=30),
  "data.workers": key.integer(
    None, "threads of a process that decode; none: one a core", low=1
  ),
  "data.processes": key.integer(
    0, "worker processes that decode; 0: threads of the training process"
  ),
  "data.on_error": key.Key(
    "raise",
    str,
    "raise, or skip and count a file that cannot be read",
    lambda value: value in ("raise", "skip"),
    "raise or skip",
  ),
  "task.name": key.text(
    "image_classification",
    f"one of {', '.join(tasks.TASKS)}, or package.module:callable",
  ),
  "model.name": key.text(
    "resnet20", "name of a model, or package.module:callable"
  ),
  "model.ws": key.switch(True, "standardize the kernels"),
  "model.ws_convention": key.text("bit", "definition of WS"),
  "model.ws_where": key.texts(
    (), "shell patterns of paths to standardize; (): those of the model"
  ),
  "model.ws_axes": key.text(
    "joint",
    "joint or per_head: filters of the out kernels of attention; or GLOB=AXIS:"
    " the axes that count filters, where they cannot be known",
  ),
  "model.ws_gains": key.switch(
    False, "learn a scale of each standardized filter"
  ),
  "optim.name": key.text(
    "sgd", "sgd, adamw, or package.module:callable as optax:lion"
  ),
  "optim.kwargs": key.table("arguments of an optimizer of your own"),
  "optim.learning_rate": key.number(None, "peak of the schedule"),
  "optim.base_learning_rate": key.number(
    0.1, "the same for each 256 examples of a batch", optional=True
  ),
  "optim.rest_factor": key.number(
    1.0, "factor on the rate of all but convolution kernels"
  ),
  "optim.weight_decay": key.number(5e-4, "weight decay"),
  "optim.decay": key.text("kernels", "kernels or all: which parameters decay"),
  "optim.momentum": key.number(0.9, "momentum; for adamw b1", below=1),
  "optim.b2": key.number(0.999, "b2 of adamw", above=0, below=1),
  "optim.nesterov": key.switch(True, "Nesterov's form of the momentum"),
  "optim.schedule": key.text("cosine", "constant, step, cosine or one_cycle"),
  "optim.warmup_steps": key.integer(None, "steps of linear warm-up"),
  "optim.warmup_epochs": key.number(0.0, "the same in epochs", optional=True),
  "optim.boundaries": key.numbers(
    (1 / 3, 2 / 3),
    "parts of the run after which schedule=step falls",
    _rising,
    "parts of the run: rising, between 0 and 1",
  ),
  "optim.boundary_factor": key.number(
    0.1, "factor on the rate at each boundary", above=0, high=1
  ),
  "optim.centralize": key.switch(False, "Gradient Centralization"),
  "optim.clip_norm": key.number(
    None, "largest global norm of the gradient", above=0
  ),
  "optim.adaptive_clip": key.number(
    None, "largest ratio of gradient to weight norm (AGC)", above=0
  ),
  "optim.ema_decay": key.number(
    None, "decay of a moving average of the parameters", below=1
  ),
  "optim.freeze": key.texts(
    (), "shell patterns of parameters that stay as they are, as stage1*"
  ),
  "optim.freeze_statistics": key.switch(
    True,
    "frozen norms use their running statistics, which stay; else those of the"
    " batch, and the running ones move",
  ),
  "optim.micro_batch_size": key.integer(
    None, "examples of one gradient; none: the whole batch", low=1
  ),
  "mesh.model": key.integer(
    1, "devices that split each kernel; the rest split the batch", low=1
  ),
  "mesh.params": key.choice(
    "replicated",
    ("replicated", "sharded"),
    "parameters and optimizer state: on every device, or a part on each",
  ),
  "mesh.batch_norm": key.choice(
    "global",
    ("global", "device"),
    "device: the examples of each device share statistics of norm=batch;"
    " global: those of model.norm_batch_size do",
  ),
  "train.epochs": key.number(5.0, "length of the run"),
  "train.steps": key.integer(None, "the same in steps"),
  "train.eval_every_steps": key.integer(None, "steps between evaluations"),
  "train.eval_every_epochs": key.number(
    1.0, "the same in epochs; none: at the end", optional=True
  ),
  "train.checkpoint_every_steps": key.integer(None, "steps between saves"),
  "train.checkpoint_every_epochs": key.number(
    1.0, "the same in epochs; none: at the end", optional=True
  ),
  "train.keep_checkpoints": key.integer(
    2, "checkpoints that are kept, in case one breaks; 0: none are written"
  ),
  "train.log_every_steps": key.integer(50, "steps between log rows", low=1),
  "train.keep_log_rows": key.integer(
    None, "training rows to which older ones are thinned out; none: all", low=2
  ),
  "train.divergence_factor": key.number(
    20.0, "a loss this many times the first is divergence", above=0
  ),
  "train.divergence_patience": key.integer(
    0, "log rows within which such a loss may come back, and is a spike then"
  ),
}


def default() -> ml_collections.ConfigDict:
  """Returns every key at its default: ResNet-20 with GN+WS, embedded data."""
  config = ml_collections.ConfigDict()
  for section in ("data", "task", "model", "optim", "mesh", "train"):
    config[section] = ml_collections.ConfigDict()
  for path, declared in KEYS.items():
    put(config, path, declared.default)
  for section in OWNERS:
    exchange(config, section)
  return config


def keys(config: ml_collections.ConfigDict) -> dict[str, key.Key]:
  """Returns the declaration of every key that a configuration has.

  Raises:
    ConfigError: it names an unknown model or task.

  Example:
    >>> keys(default())["optim.clip_norm"].rule
    'finite and greater than 0'
  """
  found = dict(KEYS)
  for section, tell in OWNERS.items():
    try:
      path = f"{section}.name"
      KEYS[path].check(path, config[section].name)
      own = tell(config[section].name)
    except ValueError as error:
      raise ConfigError(str(error)) from error
    found |= {f"{section}.{name}": one for name, one in own.items()}
  order = [path.partition(".")[0] for path in found]
  return dict(
    sorted(found.items(), key=lambda x: order.index(x[0].split(".")[0]))
  )


def exchange(
  config: ml_collections.ConfigDict,
  section: str,
  before: Mapping[str, key.Key] | None = None,
) -> None:
  """Gives a section the keys of what it names.

  A value of the old one stays where the new one has a key of that name, the
  value is in its range, and it is not just the default of the old one.

  Args:
    config: Configuration; it is changed in place.
    section: Section whose `name` has changed.
    before: Keys that the configuration had under the old name.

  Raises:
    ConfigError: it names an unknown model or task.
  """
  try:
    declared = OWNERS[section](config[section].name)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  fixed = {
    path.partition(".")[2]: one
    for path, one in KEYS.items()
    if path.startswith(f"{section}.") and path != f"{section}.name"
  }
  for name in list(config[section]):
    if name not in declared and name not in fixed and name != "name":
      del config[section][name]
  for name, one in (fixed | declared).items():
    kept = name in config[section] and name != "kwargs"
    old = (before or {}).get(f"{section}.{name}")
    untouched = kept and old and config[section][name] == old.default
    if not kept or untouched or not one.fits(config[section][name]):
      put(config, f"{section}.{name}", one.default)


def get(config: ml_collections.ConfigDict, path: str) -> Any:
  """Returns the value of a dotted key; a table as a dict."""
  section, _, leaf = path.rpartition(".")
  value = (config[section] if section else config)[leaf]
  return value.to_dict() if hasattr(value, "to_dict") else value


def put(config: ml_collections.ConfigDict, path: str, value: Any) -> None:
  """Sets a dotted key, in place, whatever the type of its old value."""
  section, _, leaf = path.rpartition(".")
  parent = config[section] if section else config
  # ConfigDict guards types by the old value, and knows no "int or None".
  with parent.ignore_type():
    parent[leaf] = value


def flatten(
  config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ""
) -> dict[str, Any]:
  """Returns dotted key to value, for every leaf; a table is one leaf."""
  flat = {}
  for name in config:
    value = config[name]
    inner = isinstance(value, (Mapping, ml_collections.ConfigDict))
    if inner and name != "kwargs":
      flat.update(flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = dict(value) if inner else value
  return flat


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns `": did you mean 'x'?"` for a misspelt key, or the known ones."""
  by_leaf = {full.rpartition(".")[2]: full for full in known}
  near = difflib.get_close_matches(name, list(known), n=1) or [
    by_leaf[leaf]
    for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)
  ]
  if near:
    return f": did you mean {near[0]!r}?"
  return f". Known: {', '.join(known)}"
