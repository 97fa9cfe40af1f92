"""Names of a package that import what they need when they are asked for."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ws_jax.base import extras


def attributes(
  package: str, modules: Mapping[str, str], extra: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """Returns `__getattr__` and `__dir__` for the `__init__` of a package.

  Args:
    package: the name of the package.
    modules: the lazy names, and the module that each comes from.
    extra: Name of the extra that these modules need; empty for none.

  Example:
    >>> get, names = attributes("mine", {"sqrt": "math"})
    >>> get("sqrt")(4.0), "sqrt" in names()
    (2.0, True)
  """

  def get(name: str) -> Any:
    if name not in modules:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if extra:
      extras.need(extra, by=f"{package}.{name}")
    return getattr(importlib.import_module(modules[name]), name)

  def names() -> list[str]:
    known = vars(sys.modules[package]) if package in sys.modules else {}
    return sorted({*known, *modules})

  return get, names
