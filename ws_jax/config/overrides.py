"""Sets keys of a configuration: from Python, from text, from a saved run."""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from ws_jax.base import keys as key
from ws_jax.base import names
from ws_jax.config.table import (
  KEYS,
  OWNERS,
  ConfigError,
  default,
  exchange,
  flatten,
  get,
  keys,
  nearest,
  put,
)

# Names that keys had before; flags, overrides and old runs may still use them.
MOVED = {
  "data.crop_padding": "task.crop_padding",
  "data.flip": "task.flip",
  "optim.label_smoothing": "task.label_smoothing",
}


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
    ws_jax.config.table.ConfigError: unknown config key 'optim.learning_rat': \
did you mean 'optim.learning_rate'?
  """
  known = flatten(config)
  for path in overrides:
    if "." not in path and path not in known:
      raise ConfigError(f"unknown config key {path!r}{nearest(path, known)}")
  take = lambda one, path, value: one.take(path, value)
  return _apply(config, overrides.items(), take)


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


def on_any_devices(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns the configuration of a run for use on other devices than its own.

  They are as many as there are, and each holds every kernel as a whole.

  Example:
    >>> from ws_jax import config
    >>> c = config.apply(config.default(), {"mesh.model": 3})
    >>> on_any_devices(c).mesh.model
    1
  """
  copy = config.copy_and_resolve_references().unlock()
  return apply(copy, {"mesh.model": 1, "mesh.params": "replicated"})


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


def _apply(config, given, read):
  """Sets keys; those that exchange other keys come first."""
  pairs = [(MOVED.get(name, name), value) for name, value in given]
  for section in OWNERS:
    for name, value in pairs:
      if name in (section, f"{section}.name"):
        path, before = f"{section}.name", keys(config)
        config[section].name = _read(read, KEYS[path], path, value)
        exchange(config, section, before)
  declared = keys(config)
  for name, value in pairs:
    table, _, argument = name.rpartition(".")
    if table in declared and declared[table].kind is dict:
      value = key.literal(value) if isinstance(value, str) else value
      put(config, table, {**get(config, table), argument: value})
      continue
    path = _full_key(declared, name)
    put(config, path, _read(read, declared[path], path, value))
  return config


def _read(read, declared, path, value):
  try:
    return read(declared, path, value)
  except ValueError as error:
    raise ConfigError(str(error)) from None


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
