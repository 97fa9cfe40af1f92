"""Which leaves of a parameter tree are kernels, and which axes are fan-in.

A selector is `(path, leaf) -> bool` and an axis rule `(path, leaf) -> tuple`;
any function will do. A path is the keys of a leaf, joined by "/".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Selector = Callable[[str, Any], bool]
Axes = Callable[[str, Any], tuple[int, ...]]

# Names that Flax's MultiHeadDotProductAttention gives to its projections.
_ATTENTION = ("query", "key", "value", "out")


def path_string(path: tuple[Any, ...]) -> str:
  """Returns the keys of a leaf as one string.

  Example:
    >>> [(path, _)] = jax.tree.leaves_with_path({"a": [1.0]})
    >>> path_string(path)
    'a/0'
  """
  return jax.tree_util.keystr(path, simple=True, separator="/")


def conv_kernels(path: str, leaf: Any) -> bool:
  """Selects convolution kernels by name and shape.

  A convolution kernel is a floating-point leaf below a key "kernel" (the leaf's
  own or, as in an `nnx.State`, one above it), with four dimensions or more. A
  kernel with three may be a 1-D convolution or an attention projection; it is
  taken if a key on its path contains "conv".

  Example:
    >>> conv_kernels("Conv_0/kernel", jnp.zeros((3, 3, 8, 16)))
    True
    >>> conv_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    False
    >>> conv_kernels("attention/query/kernel", jnp.zeros((8, 2, 4)))
    False
  """
  return is_kernel(path, leaf) and _looks_like_conv(path, leaf)


def dense_kernels(path: str, leaf: Any) -> bool:
  """Selects matrices `[in, out]` named "kernel", as of `nn.Dense`.

  Example:
    >>> dense_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    True
  """
  return is_kernel(path, leaf) and leaf.ndim == 2


def is_kernel(path: str, leaf: Any) -> bool:
  """Whether a leaf is a floating-point array below a key "kernel"."""
  return (
    "kernel" in path.split("/")
    and hasattr(leaf, "dtype")
    and jnp.issubdtype(leaf.dtype, jnp.floating)
  )


def _looks_like_conv(path: str, leaf: Any) -> bool:
  keys = path.split("/")
  above = keys[keys.index("kernel") - 1] if keys[0] != "kernel" else ""
  if above in _ATTENTION:
    return False
  return leaf.ndim > 3 or (leaf.ndim == 3 and "conv" in path.lower())


def fan_in_axes(path: str, leaf: Any) -> tuple[int, ...]:
  """Returns the fan-in axes of a kernel: all but the last.

  Right for `nn.Conv` of any dimension, grouped or depthwise, and `nn.Dense`.

  Example:
    >>> fan_in_axes("Conv_0/kernel", jnp.zeros((3, 3, 8, 16)))
    (0, 1, 2)
  """
  del path
  return tuple(range(leaf.ndim - 1))


def selected_kernels(
  params: PyTree, where: Selector
) -> tuple[list[str | None], list[Any], Any]:
  """Flattens a tree and applies a selector.

  Returns:
    For every leaf its path if it was selected and else None; the leaves; the
    tree's structure.

  Raises:
    ValueError: nothing was selected.
  """
  flat, treedef = jax.tree.flatten_with_path(params)
  paths = [path_string(path) for path, _ in flat]
  leaves = [leaf for _, leaf in flat]
  chosen = [
    path if where(path, leaf) else None
    for path, leaf in zip(paths, leaves, strict=True)
  ]
  if all(path is None for path in chosen):
    raise ValueError(
      f"no kernel was selected; paths seen: {_listing(paths, leaves)}"
    )
  return chosen, leaves, treedef


def _listing(paths: list[str], leaves: list[Any], limit: int = 40) -> str:
  shown = [
    f"{path} {list(jnp.shape(leaf))}"
    for path, leaf in zip(paths[:limit], leaves[:limit], strict=True)
  ]
  if len(paths) > limit:
    shown.append(f"and {len(paths) - limit} more")
  return ", ".join(shown) or "none, the tree is empty"
