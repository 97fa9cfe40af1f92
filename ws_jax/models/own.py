"""Models of the user's own, by import name: `my_lab.nets:Net`.

The callable is called with `config.model.kwargs`, and with those of `norm` (a
`ws_jax.layers.norm.NormSpec`), `dtype` and the number of outputs that it takes
(as `num_outputs` or `num_classes`). It returns a Flax Linen module. A class of
`flax.nnx.Module` is called later, with `rngs=` besides, once for each seed.
"""

import functools
import inspect
from typing import Any

from flax import nnx

from ws_jax.base import keys as key
from ws_jax.base import names
from ws_jax.models import common

_OUTPUTS = ("num_outputs", "num_classes")


def keys(name: str) -> dict[str, key.Key]:
  """Returns the keys of `config.model` that the callable has a use for.

  Raises:
    ValueError: there is no such module or callable.
  """
  if name.startswith(f"{names.GIVEN}:"):
    return {}
  takes = _parameters(names.load_object(name, "model"))
  found = {"kwargs": key.table(f"arguments of {name}")}
  if "norm" in takes:
    found |= common.NORM_KEYS
  if "dtype" in takes:
    found |= common.DTYPE_KEYS
  return found


def create(
  name: str,
  *,
  num_outputs: int,
  kwargs: dict[str, Any] | None = None,
  **given: Any,
) -> Any:
  """Calls the callable.

  Args:
    name: Import name, `package.module:callable`.
    num_outputs: Number of outputs for each example.
    kwargs: Arguments of the user's.
    **given: `norm` and `dtype`; left out where the callable takes none.

  Returns:
    A Flax Linen module, or for a class of `nnx.Module` a function of `rngs`
    that makes one.

  Raises:
    ValueError: an argument that the callable does not take, or whatever the
      callable raises, with its name in front.
  """
  function = names.load_object(name, "model")
  takes = _parameters(function)
  arguments = dict(kwargs or {})
  unknown = [word for word in arguments if takes and word not in takes]
  if unknown and "**" not in takes:
    raise ValueError(
      f"{name} takes no argument {unknown[0]!r}:"
      f" {names.suggest(unknown[0], takes)}"
    )
  for word in _OUTPUTS:
    if word in takes and word not in arguments:
      arguments[word] = num_outputs
  arguments |= {w: x for w, x in given.items() if w in takes}
  try:
    if isinstance(function, type) and issubclass(function, nnx.Module):
      return functools.partial(function, **arguments)
    return function(**arguments)
  except TypeError as error:
    raise ValueError(f"{name}: {error}") from error


def _parameters(function: Any) -> tuple[str, ...]:
  """Returns the names of the arguments; "**" if it takes any others."""
  # The metaclass of NNX hides what the class itself takes.
  call = function.__init__ if isinstance(function, type) else function
  try:
    parameters = inspect.signature(call).parameters.values()
  except (TypeError, ValueError):  # a builtin, which tells nothing
    return ("**",)
  return tuple(
    "**" if p.kind is inspect.Parameter.VAR_KEYWORD else p.name
    for p in parameters
    if p.kind is not inspect.Parameter.VAR_POSITIONAL
  )
