"""Looking a name up, with an error that helps."""

import difflib
import importlib
import os
import pathlib
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# In the place of a module in "module:name": what was passed as an object.
GIVEN = "given"


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
  """Returns `table[name]`, or says which names there are.

  Args:
    table: the known names and what they stand for.
    name: the name asked for.
    what: what the names are, in the singular, for the message.

  Returns:
    The value of that name.

  Raises:
    ValueError: the name is not in the table; the message lists the names and
      the nearest one.

  Example:
    >>> lookup({"group": 1, "batch": 2}, "group", "norm")
    1
    >>> lookup({"group": 1, "batch": 2}, "grop", "norm")
    Traceback (most recent call last):
    ValueError: unknown norm 'grop': did you mean 'group'? Known: batch, group
  """
  if isinstance(name, str) and name in table:
    return table[name]
  raise ValueError(f"unknown {what} {name!r}: {suggest(name, table)}")


def suggest(name: Any, known: Iterable[str]) -> str:
  """Returns the tail of a message on an unknown name: the nearest, then all."""
  known = sorted(map(str, known))
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  return f"{hint}Known: {', '.join(known)}"


def load_object(name: str, what: str) -> Any:
  """Imports what `"package.module:attribute"` names.

  The current folder is importable, as it is with `python -m`. An exception
  raised by the imported module itself is not caught: its traceback shows the
  line that raised it.

  Args:
    name: a module and an attribute of it with a colon between them; both may
      be dotted.
    what: what the object is, in the singular, for the message.

  Returns:
    The attribute: a class, a function, or any other object.

  Raises:
    ValueError: the name has another form, there is no such module, or the
      module has no such attribute; the message names the nearest one.

  Example:
    >>> load_object("math:sqrt", "model")(9.0)
    3.0
    >>> load_object("math:sqtr", "model")
    Traceback (most recent call last):
    ValueError: model 'math:sqtr': module 'math' has no attribute 'sqtr': \
did you mean 'sqrt'?
  """
  module_name, _, attribute = name.partition(":")
  parts = [*module_name.split("."), *attribute.split(".")]
  if not all(part.isidentifier() for part in parts):
    raise ValueError(f"{what} {name!r}: {_form(module_name, attribute)}")
  if not {"", os.getcwd()} & set(sys.path):
    sys.path.insert(0, os.getcwd())
  try:
    found: Any = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    missing = error.name or ""
    if module_name != missing and not module_name.startswith(f"{missing}."):
      raise  # The module is there; one that it imports is not.
    near = _nearest(missing, _modules_beside(missing))
    raise ValueError(f"{what} {name!r}: {error.msg}{near}") from None
  owner = f"module {module_name!r}"
  for part in attribute.split("."):
    if not hasattr(found, part):
      public = [other for other in dir(found) if not other.startswith("_")]
      raise ValueError(
        f"{what} {name!r}: {owner} has no attribute {part!r}"
        f"{_nearest(part, public)}"
      )
    found, owner = getattr(found, part), f"{part!r} in {owner}"
  return found


def _form(module_name: str, attribute: str) -> str:
  """Returns what a name without the form `module:attribute` should be."""
  wanted = "expected 'package.module:name'"
  path = pathlib.PurePath(module_name)
  if path.suffix == ".py" or len(path.parts) > 1:
    dotted = ".".join(path.with_suffix("").parts).lstrip("./")
    return f"{wanted}, e.g. '{dotted}:{attribute or 'NAME'}' for that file"
  return wanted


def _nearest(name: str, known: Iterable[str]) -> str:
  """Returns the tail of a message that names the nearest name, if one is."""
  near = difflib.get_close_matches(name, sorted(known), n=1)
  return f": did you mean {near[0]!r}?" if near else ""


def _modules_beside(name: str) -> set[str]:
  """Returns the modules that could be imported instead of `name`."""
  parent, _, _ = name.rpartition(".")
  if parent:
    folders = getattr(sys.modules.get(parent), "__path__", [])
    prefix = f"{parent}."
    return {module.name for module in pkgutil.iter_modules(folders, prefix)}
  here = {path.name for path in pathlib.Path.cwd().iterdir() if path.is_dir()}
  return here | {module.name for module in pkgutil.iter_modules()}
