"""Keys of a configuration: the default, the meaning and the range of each.

A key is declared once, by the part of the code that reads it, with one of the
functions below. From the declaration come the default, the check of a value
given in Python (`take`), the reading of a value given as text (`parse`) and the
line that `--help` prints.
"""

import ast
import dataclasses
import fractions
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of a configuration.

  Attributes:
    default: Value if nobody sets the key.
    kind: Type of a value: int, float, bool, str, or dict for a table of
      arguments whose names are not declared.
    meaning: Sentence fragment for `--help`, with the unit.
    allowed: Returns whether a value is in the range.
    rule: The range in words, to follow "must be".
    optional: Whether None is a value: "not set" or "off".
    many: Whether a value is a tuple of `kind`.
  """

  default: Any
  kind: type
  meaning: str
  allowed: Callable[[Any], bool] = lambda value: True
  rule: str = ""
  optional: bool = False
  many: bool = False

  def take(self, path: str, value: Any) -> Any:
    """Returns a value given in Python as the configuration stores it.

    Args:
      path: Dotted name of the key, for the message.
      value: Number, text, tuple or None; NumPy scalars count as numbers.

    Raises:
      ValueError: the value is of another type; its range is not looked at.
    """
    if value is None and self.optional:
      return None
    try:
      if self.kind is dict:
        if not hasattr(value, "keys"):
          raise TypeError
        return dict(value)
      if not self.many:
        return self._one(value)
      if isinstance(value, str):
        raise TypeError
      return tuple(self._one(item) for item in value)
    except (OverflowError, TypeError):  # A float has no 10**400.
      raise ValueError(
        f"{path}={_shown(value)}: config key {path!r} takes {self.type_name}"
      ) from None

  def parse(self, path: str, text: str) -> Any:
    """Returns the value that a text on the command line stands for.

    Args:
      path: Dotted name of the key, for the message.
      text: The value as typed: `0.1`, `1/3`, `true`, `none`, `(0.5, 0.75)`.

    Raises:
      ValueError: the text is not a value of this type.
    """
    if self.optional and text.lower() == "none":
      return None
    read = {int: _integer, float: _number, bool: _switch, str: str}.get(
      self.kind, literal
    )
    try:
      if not self.many:
        return self.take(path, read(text))
      inner = text.strip().removeprefix("(").removeprefix("[")
      inner = inner.removesuffix(")").removesuffix("]")
      parts = (part.strip().strip("'\"") for part in inner.split(","))
      return tuple(read(part) for part in parts if part)
    except ValueError:
      raise ValueError(
        f"{path}={_shown(text)}: config key {path!r} takes {self.type_name}"
      ) from None

  def check(self, path: str, value: Any) -> None:
    """Refuses a value of a wrong type or out of range.

    Raises:
      ValueError: the message names the key, the value and the range.
    """
    taken = self.take(path, value)
    if taken is not None and not self.allowed(taken):
      raise ValueError(f"{path}={_shown(value)} must be {self.rule}")

  def fits(self, value: Any) -> bool:
    """Returns whether a value is of this type and in range."""
    try:
      self.check("", value)
    except ValueError:
      return False
    return True

  @property
  def type_name(self) -> str:
    """The type in words, as in "a number or none"."""
    words = {
      int: "a whole number",
      float: "a number",
      bool: "true or false",
      str: "a text",
      dict: "a table of arguments",
    }
    name = words[self.kind]
    if self.many:
      name = f"a tuple of {name.split(' ', 1)[1]}s"
    return f"{name} or none" if self.optional else name

  def _one(self, value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
      value = value.item()  # a NumPy scalar
    is_switch = isinstance(value, bool)
    if self.kind is float and isinstance(value, (int, float)) and not is_switch:
      return float(value)
    if not isinstance(value, self.kind) or is_switch != (self.kind is bool):
      raise TypeError
    return value


def integer(
  default: int | None,
  meaning: str,
  *,
  low: int = 0,
  high: int | None = None,
  optional: bool = False,
) -> Key:
  """Declares a whole number from `low` to `high`.

  Example:
    >>> integer(128, "examples a step", low=1).check("batch_size", 0)
    Traceback (most recent call last):
    ValueError: batch_size=0 must be greater than 0
  """
  rule = "greater than 0" if low == 1 else f"{low} or more"
  if high is not None:
    rule = f"from {low} to {high}"
  return Key(
    default,
    int,
    meaning,
    lambda value: low <= value <= (math.inf if high is None else high),
    rule,
    optional or default is None,
  )


def number(
  default: float | None,
  meaning: str,
  *,
  above: float | None = None,
  below: float | None = None,
  high: float | None = None,
  optional: bool = False,
) -> Key:
  """Declares a finite number: `above < x` or else `0 <= x`, up to an end.

  Args:
    default: Value if nobody sets the key.
    meaning: Sentence fragment for `--help`.
    above: Number that a value exceeds; None: a value is 0 or more.
    below: Number that a value stays below.
    high: Largest value.
    optional: Whether None is a value although it is not the default.
  """
  allowed, rule = _range(above, below, high)
  return Key(
    default, float, meaning, allowed, rule, optional or default is None
  )


def numbers(
  default: tuple[float, ...],
  meaning: str,
  allowed: Callable[[tuple[float, ...]], bool],
  rule: str,
) -> Key:
  """Declares a tuple of numbers with a range of its own."""
  return Key(default, float, meaning, allowed, rule, many=True)


def switch(default: bool, meaning: str) -> Key:
  """Declares a key that is true or false."""
  return Key(default, bool, meaning)


def text(default: str | None, meaning: str, *, optional: bool = False) -> Key:
  """Declares a text."""
  return Key(default, str, meaning, optional=optional or default is None)


def choice(default: str, options: tuple[str, ...], meaning: str) -> Key:
  """Declares a text that is one of a few.

  Example:
    >>> choice("scale", ("leave", "scale"), "what is done").check("do", "keep")
    Traceback (most recent call last):
    ValueError: do=keep must be leave or scale
  """
  allowed = lambda value: value in options
  return Key(default, str, meaning, allowed, " or ".join(options))


def texts(default: tuple[str, ...], meaning: str) -> Key:
  """Declares a tuple of texts."""
  return Key(default, str, meaning, many=True)


def table(meaning: str) -> Key:
  """Declares a table of arguments for a function of the user's own."""
  return Key({}, dict, meaning)


def literal(word: str) -> Any:
  """Returns the Python number, truth value, tuple or text that a word spells.

  Example:
    >>> literal("3"), literal("true"), literal("relu"), literal("(1, 2)")
    (3, True, 'relu', (1, 2))
  """
  words = {"true": True, "false": False, "none": None}
  if word.lower() in words:
    return words[word.lower()]
  try:
    return ast.literal_eval(word)
  except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
    return word  # Also "{[]: 1}", and what is nested too deep for the parser.


def listing(declared: Mapping[str, Key], values: Mapping[str, Any]) -> str:
  """Returns lines for `--help`: each key with its value, meaning and range.

  Args:
    declared: Keys by dotted name.
    values: The value that each key has.
  """
  lines = []
  for path, key in declared.items():
    value = values.get(path, key.default)
    words = "none" if value is None else str(value)
    if isinstance(value, bool):
      words = words.lower()
    rule = f"; {key.rule}" if key.rule else ""
    text = f"{key.meaning} ({key.type_name}{rule})"
    lines.append(f"  {path}={words}")
    lines += textwrap.wrap(
      text, 74, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
  return "\n".join(lines)


def _range(above, below, high) -> tuple[Callable[[Any], bool], str]:
  low = 0.0 if above is None else above
  first = "at least 0" if above is None else f"greater than {above:g}"
  if below is not None:
    rule = f"{first} and below {below:g}"
  elif high is not None:
    rule = f"{first} and at most {high:g}"
  elif above is None:
    rule = "finite and 0 or more"
  else:
    rule = f"finite and {first}"

  def allowed(value: float) -> bool:
    big_enough = value >= low if above is None else value > low
    end = below if below is not None else math.inf
    return big_enough and value < end and (high is None or value <= high)

  return allowed, rule


def _shown(value: Any) -> str:
  """Returns a value for a message, cut where it is long."""
  try:
    text = str(value)
  except ValueError:  # Python prints no whole number of 5000 digits.
    text = f"a {type(value).__name__} too long to print"
  return text if len(text) <= 200 else f"{text[:200]}..."


def _integer(word: str) -> int:
  value = _number(word)
  if not value.is_integer():
    raise ValueError
  return int(value)


def _number(word: str) -> float:
  # A fraction is exact: 1e999999999 as one would take all memory.
  try:
    return float(fractions.Fraction(word) if "/" in word else word)
  except (OverflowError, ZeroDivisionError):
    raise ValueError from None


def _switch(word: str) -> bool:
  words = {"true": True, "1": True, "false": False, "0": False}
  if word.lower() not in words:
    raise ValueError
  return words[word.lower()]
