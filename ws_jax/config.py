"""The configuration of a run: its keys, overrides, and derived numbers.

A config file calls `default()`, changes what differs, and hands the rest of
`--config=configs/x.py:norm=batch,ws=false` to `variant`. Where a quantity has
two keys the more explicit one wins when it is given: `*_steps` over
`*_epochs`, `learning_rate` over `base_learning_rate` (per 256 examples), and
`channels_per_group` over `num_groups`.

`keys` is the table of all keys, with default, meaning and range: those declared
here, and those of the model and the task that the configuration names. Setting
`model.name` or `task.name` exchanges the keys of the old one for those of the
new one.
"""

import difflib
import importlib.util
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from ws_jax import models, tasks
from ws_jax.base import keys as key
from ws_jax.base import names

_BASE_BATCH = 256
_LARGEST_SEED = 2**31 - 1

# Sections whose `name` decides which other keys they have, and what tells them.
_OWNERS = {"model": models.keys, "task": tasks.keys}
# Names that keys had before; flags, overrides and old runs may still use them.
_MOVED = {
  "data.crop_padding": "task.crop_padding",
  "data.flip": "task.flip",
  "optim.label_smoothing": "task.label_smoothing",
}


class ConfigError(ValueError):
  """A configuration that cannot be run; the message is one line."""


def _rising(parts: tuple[float, ...]) -> bool:
  edges = (0.0, *parts, 1.0)
  return all(a < b for a, b in zip(edges[:-1], edges[1:], strict=True))


# The keys of every run; those of its model and its task come besides.
_KEYS = {
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
    (), "shell patterns of paths to standardize; (): convolution kernels"
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
  "optim.micro_batch_size": key.integer(
    None, "examples of one gradient; none: the whole batch", low=1
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
    1, "checkpoints that are kept; 0: none are written"
  ),
  "train.log_every_steps": key.integer(50, "steps between log rows", low=1),
  "train.divergence_factor": key.number(
    20.0, "a loss this many times the first is divergence", above=0
  ),
}


def default() -> ml_collections.ConfigDict:
  """Returns every key at its default: ResNet-20 with GN+WS, embedded data."""
  config = ml_collections.ConfigDict()
  for section in ("data", "task", "model", "optim", "train"):
    config[section] = ml_collections.ConfigDict()
  for path, declared in _KEYS.items():
    _set(config, path, declared.default)
  for section in _OWNERS:
    _exchange(config, section)
  return config


def keys(config: ml_collections.ConfigDict) -> dict[str, key.Key]:
  """Returns the declaration of every key that a configuration has.

  Raises:
    ConfigError: it names an unknown model or task.

  Example:
    >>> keys(default())["optim.clip_norm"].rule
    'finite and greater than 0'
  """
  found = dict(_KEYS)
  for section, tell in _OWNERS.items():
    try:
      path = f"{section}.name"
      _KEYS[path].check(path, config[section].name)
      own = tell(config[section].name)
    except ValueError as error:
      raise ConfigError(str(error)) from error
    found |= {f"{section}.{name}": one for name, one in own.items()}
  order = [path.partition(".")[0] for path in found]
  return dict(
    sorted(found.items(), key=lambda x: order.index(x[0].split(".")[0]))
  )


def from_saved(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns the configuration of a run from its `config.json`.

  Keys that the run's version of ws_jax did not have get their defaults.

  Args:
    saved: Nested dicts, as stored.

  Raises:
    ConfigError: a key that this version does not have, or a wrong type.
  """
  if not isinstance(saved, Mapping):
    raise ConfigError("not a table of keys and values")
  return apply(default(), flatten(saved))


def use_object(
  config: ml_collections.ConfigDict, section: str, one: Any
) -> None:
  """Records that a run uses an object in the place of a name, in place.

  Args:
    config: Configuration.
    section: Section whose `name` the object takes the place of.
    one: The object; its type is recorded.
  """
  kind = one if hasattr(one, "__qualname__") else type(one)
  name = f"{names.GIVEN}:{kind.__module__}.{kind.__qualname__}"
  apply(config, {f"{section}.name": name})


def load(path: str) -> ml_collections.ConfigDict:
  """Loads `path.py` or `path.py:variant` as the command line does.

  Args:
    path: Config file, absolute, relative to the working directory or to the
      project, with an optional variant behind a colon.

  Returns:
    The result of its `get_config`.

  Raises:
    ConfigError: there is no such file (the message names the nearest), or it
      is not a config file.
  """
  name, _, arg = path.partition(":")
  file = find(name)
  spec = importlib.util.spec_from_file_location(file.stem, file)
  if file.suffix != ".py" or spec is None or spec.loader is None:
    raise ConfigError(f"{name}: a config is a .py file with get_config(arg)")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    make = module.get_config
  except AttributeError:
    raise ConfigError(f"{name}: has no function get_config(arg)") from None
  except SyntaxError as error:
    raise ConfigError(f"{name}, line {error.lineno}: {error.msg}") from error
  return make(arg) if arg else make()


def find(name: str) -> pathlib.Path:
  """Returns the config file of a name, from here or from the project's folder.

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
    config: Configuration; it is changed in place and returned.
    arg: Comma-separated `key=value`; a comma within brackets separates the
      items of a tuple. Empty or None changes nothing.

  Raises:
    ConfigError: not of that form, an unknown key, or a value of a wrong type.

  Example:
    >>> variant(default(), "norm=batch,ws=false").model.norm
    'batch'
  """
  given = []
  for item in _split(arg or ""):
    name, equals, text = item.partition("=")
    if not equals:
      raise ConfigError(f"config variant {item!r}: expected key=value")
    given.append((name.strip(), text.strip()))
  return apply_texts(config, given)


def apply_texts(
  config: ml_collections.ConfigDict, given: Iterable[tuple[str, str]]
) -> ml_collections.ConfigDict:
  """Sets keys to values given as text, in place: those of the command line.

  Args:
    config: Configuration; it is changed in place and returned.
    given: Pairs of a key, as in `variant`, and the text of its value.

  Raises:
    ConfigError: an unknown key, with the nearest one, or a text that is not a
      value of the key's type.

  Example:
    >>> given = [("optim.boundaries", "(1/2, 0.75)")]
    >>> apply_texts(default(), given).optim.boundaries
    (0.5, 0.75)
  """
  return _apply(config, given, lambda one, path, text: one.parse(path, text))


def apply(
  config: ml_collections.ConfigDict, overrides: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Sets dotted keys, e.g. `{"optim.learning_rate": 0.4}`, in place.

  Args:
    config: Configuration; it is changed in place and returned.
    overrides: Dotted key to value.

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
  for path in overrides:
    if "." not in path and path not in known:
      raise ConfigError(f"unknown config key {path!r}{nearest(path, known)}")
  take = lambda one, path, value: one.take(path, value)
  return _apply(config, overrides.items(), take)


def _apply(config, given, read):
  """Sets keys; those that exchange other keys come first."""
  pairs = [(_MOVED.get(name, name), value) for name, value in given]
  for section in _OWNERS:
    for name, value in pairs:
      if name in (section, f"{section}.name"):
        path = f"{section}.name"
        config[section].name = _read(read, _KEYS[path], path, value)
        _exchange(config, section)
  declared = keys(config)
  for name, value in pairs:
    table, _, argument = name.rpartition(".")
    if table in declared and declared[table].kind is dict:
      value = key.literal(value) if isinstance(value, str) else value
      _set(config, table, {**_get(config, table), argument: value})
      continue
    path = _full_key(declared, name)
    _set(config, path, _read(read, declared[path], path, value))
  return config


def _read(read, declared, path, value):
  try:
    return read(declared, path, value)
  except ValueError as error:
    raise ConfigError(str(error)) from None


def _exchange(config: ml_collections.ConfigDict, section: str) -> None:
  """Gives a section the keys of what it names.

  A value of the old one stays where the new one has a key of that name and the
  value is in its range.
  """
  own = _OWNERS[section]
  try:
    declared = own(config[section].name)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  fixed = {path for path in _KEYS if path.startswith(f"{section}.")}
  for name in list(config[section]):
    if name not in declared and f"{section}.{name}" not in fixed:
      del config[section][name]
  for name, one in declared.items():
    kept = name in config[section] and name != "kwargs"
    if not kept or not one.fits(config[section][name]):
      _set(config, f"{section}.{name}", one.default)


def _get(config: ml_collections.ConfigDict, path: str) -> Any:
  section, _, leaf = path.rpartition(".")
  value = (config[section] if section else config)[leaf]
  return value.to_dict() if hasattr(value, "to_dict") else value


def _set(config: ml_collections.ConfigDict, path: str, value: Any) -> None:
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


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what can be refused without data: types, ranges, relations.

  Raises:
    ConfigError: an unknown key, a value of a wrong type or out of range, or
      numbers that do not fit each other.
  """
  declared, flat = keys(config), flatten(config)
  for path, value in flat.items():
    if path in _MOVED:
      raise ConfigError(f"config key {path!r} is {_MOVED[path]!r} now")
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
    _set(config, "optim.learning_rate", rate)
  _batches(config, num_devices)
  steps_per_epoch = num_examples / batch
  for path in (
    "train.steps",
    "optim.warmup_steps",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
  ):
    steps, epochs = _get(config, path), _get(config, _epochs_key(path))
    if steps is not None:
      if path == "train.steps":
        _set(config, "train.epochs", steps / steps_per_epoch)
      continue
    if epochs is not None:
      steps = round(epochs * steps_per_epoch)
    if "_every_" in path:
      steps = max(1, steps or config.train.steps)
    _set(config, path, steps or 0)
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
  _set(config, "optim.micro_batch_size", micro)
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
  _set(config, "model.norm_batch_size", model.norm_batch_size or micro)
  if micro % model.norm_batch_size:
    raise ConfigError(
      f"optim.micro_batch_size={micro} is not divisible by"
      f" model.norm_batch_size={model.norm_batch_size}"
    )


def _full_key(known: Mapping[str, Any], name: str) -> str:
  if f"{name}.name" in known:
    return f"{name}.name"
  if name in known:
    return name
  full = [path for path in known if path.rpartition(".")[2] == name]
  if len(full) == 1:
    return full[0]
  if full:
    raise ConfigError(f"config key {name!r} could be {' or '.join(full)}")
  raise ConfigError(f"unknown config key {name!r}{nearest(name, known)}")


def _split(arg: str) -> list[str]:
  """Splits at commas outside of brackets."""
  items, depth = [""], 0
  for letter in arg:
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and depth == 0:
      items.append("")
    else:
      items[-1] += letter
  return [item for item in items if item.strip()]
