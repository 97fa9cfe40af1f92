"""Models by name: the families of this package, and the user's own.

A family is a module with `MODELS` (its names, and for each the `defaults` that
differ from those of `KEYS`), `KEYS` (its part of `config.model`), `create`,
`NATIVE` if it convolves and multiplies by `ws_jax.layers` alone, and `WS_WHERE`
if WS is for other kernels than those of convolutions. A name
`package.module:callable` is a model of the user's own, `ws_jax.models.own`.
"""

import dataclasses
from typing import Any

from flax.typing import Dtype

from ws_jax.base import names
from ws_jax.base.keys import Key
from ws_jax.layers.norm import NormSpec
from ws_jax.models import (
  efficientnet,
  nfnet,
  own,
  resnet,
  speech,
  text_cnn,
  transformer,
)
from ws_jax.models.resnet import MODELS, ResNet, create_model

__all__ = ["MODELS", "ResNet", "create", "create_model", "keys", "ws_where"]

FAMILIES = (resnet, efficientnet, nfnet, speech, text_cnn, transformer)
TEXT = (text_cnn, transformer)  # Families that are told `num_inputs`.


def keys(name: str) -> dict[str, Key]:
  """Returns the keys that a model adds to `config.model`.

  Args:
    name: Name of a model, or `package.module:callable`.

  Raises:
    ValueError: unknown name; the message has the nearest one.

  Example:
    >>> keys("resnet50")["num_groups"].default
    8
    >>> keys("resnet50_gn")["num_groups"].default
    32
  """
  if ":" in name:
    return own.keys(name)
  family = _family(name)
  published = family.MODELS[name].get("defaults", {})
  return {
    key: dataclasses.replace(one, default=published.get(key, one.default))
    for key, one in family.KEYS.items()
  }


def create(
  name: str,
  *,
  num_outputs: int,
  norm: NormSpec | None = None,
  dtype: Dtype | None = None,
  **settings: Any,
) -> Any:
  """Makes a model; nothing is computed or compiled.

  Args:
    name: Name of a model, or `package.module:callable`.
    num_outputs: Number of outputs for each example, as classes.
    norm: Normalization; None for a model that brings its own.
    dtype: Dtype of the activations; None for a model that brings its own.
    **settings: The other `keys` of the model, and `num_inputs`, the number of
      tokens, if its inputs are text with labels.

  Returns:
    A Flax Linen module, or what the user's own callable returns.

  Raises:
    ValueError: an unknown name, or a setting that the model refuses.

  Example:
    >>> create("resnet20", num_outputs=10).num_classes
    10
  """
  if norm is not None:
    settings["norm"] = norm
  if dtype is not None:
    settings["dtype"] = dtype
  make = own.create if ":" in name else _family(name).create
  if "num_inputs" in settings and ":" not in name:
    suitable = [known for family in TEXT for known in family.MODELS]
    if name not in suitable:
      raise ValueError(
        f"model {name!r} takes no text: {names.suggest(name, suitable)}"
      )
  return make(name, num_outputs=num_outputs, **settings)


def convolves_natively(name: str) -> bool:
  """Returns whether a model convolves and multiplies by `ws_jax.layers` alone.

  XLA's own convolutions are slow inside a compiled loop of steps on a CPU.
  """
  return ":" not in name and getattr(_family(name), "NATIVE", False)


def ws_where(name: str) -> tuple[str, ...]:
  """Returns the parameters of a model that WS is for, as shell patterns.

  Args:
    name: Name of a model, or `package.module:callable`.

  Returns:
    Patterns of paths; empty for the kernels of convolutions.

  Example:
    >>> ws_where("transformer_lm")
    ('*/attention/*/kernel', '*/mlp/*/kernel')
  """
  return () if ":" in name else getattr(_family(name), "WS_WHERE", ())


def _family(name: str) -> Any:
  families = {known: family for family in FAMILIES for known in family.MODELS}
  return names.lookup(families, name, "model")
