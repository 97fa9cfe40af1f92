"""Finds and loads config files."""

import importlib.util
import os
import pathlib

import ml_collections

from ws_jax.base import names
from ws_jax.config.table import ConfigError


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
  package = pathlib.Path(__file__).resolve().parents[1]
  # The checkout; and the package, where a wheel brings its own copy.
  roots = (package.parent, package)
  for place in (pathlib.Path(name), *(root / name for root in roots)):
    if os.path.isfile(place):  # False for a name that is too long
      return place
  files = [file for root in roots for file in root.glob("configs/*.py")]
  known = {f"configs/{file.name}" for file in files}
  raise ConfigError(f"no config file {name!r}: {names.suggest(name, known)}")
