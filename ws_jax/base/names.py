"""Looking a name up, with an error that helps."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


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
  """The tail of a message about an unknown name: the nearest, then all."""
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  return f"{hint}Known: {', '.join(known)}"
