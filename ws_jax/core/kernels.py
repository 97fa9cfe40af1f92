"""Which leaves of a parameter tree are kernels, and which axes are fan-in.

A selector is `(path, leaf) -> bool` and an axis rule `(path, leaf) -> axes`;
any function will do, and the ones here are the common cases. A path is the keys
of a leaf joined by "/", as "block/Conv_0/kernel".

The defaults go by the names and layouts of the libraries:

    Flax Conv, Dense (Linen, NNX)       kernel  [..., in, out]
    Flax ConvLocal                      kernel  [position..., in, out]
    Flax attention: query, key, value   kernel  [in, head, out]
    Flax attention: out                 kernel  [head, in, out]
    Haiku Conv, Linear                  w       [..., in, out]
    Haiku ConvTranspose                 w       [..., out, in]
    Equinox, PyTorch Conv, Linear       weight  [out, in, ...]

Layouts that neither name nor shape tells (a transposed kernel of Flax with
`transpose_kernel=True`, DenseGeneral, layers stacked by `nn.scan`) are given by
`all_but` and `axes_by_path`.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping
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


def why_not_conv(path: str, leaf: Any) -> str:
  """Says why a leaf is not taken for a convolution kernel; "" if it is.

  Example:
    >>> why_not_conv("Dense_0/kernel", jnp.zeros((8, 16)))
    'a matrix'
  """
  if not _is_floating(leaf):
    return "not a floating-point array"
  keys = path.split("/")
  position = _kernel_position(keys)
  if position is None:
    return "not named as a kernel"
  if leaf.ndim < 3:
    return "a matrix" if leaf.ndim == 2 else f"{leaf.ndim} dimensions"
  if position > 0 and keys[position - 1] in _ATTENTION:
    return "an attention projection"
  # The libraries without a DenseGeneral have no other kernels of three axes.
  if (
    leaf.ndim == 3
    and keys[position] == "kernel"
    and "conv" not in (path.lower())
  ):
    return "3 axes, and no key with 'conv': 1-D convolution or attention?"
  return ""


def conv_kernels(path: str, leaf: Any) -> bool:
  """Selects convolution kernels, by name and shape.

  A convolution kernel is a floating-point leaf with three axes or more that is
  named `w`, `weight` or, at any place of its path, `kernel` (the leaves of an
  `nnx.State` end in "value"). A Flax kernel with three axes may be a 1-D
  convolution or an attention projection; it is taken if a key on its path
  contains "conv".

  Example:
    >>> conv_kernels("Conv_0/kernel", jnp.zeros((3, 3, 8, 16)))
    True
    >>> conv_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    False
    >>> conv_kernels("attention/query/kernel", jnp.zeros((8, 2, 4)))
    False
  """
  return not why_not_conv(path, leaf)


def dense_kernels(path: str, leaf: Any) -> bool:
  """Selects matrices that are named as kernels: those of Dense and Linear.

  Example:
    >>> dense_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    True
  """
  return named_kernels(path, leaf) and leaf.ndim == 2


def named_kernels(path: str, leaf: Any) -> bool:
  """Selects whatever is named as a kernel, of any layer: attention, too.

  Example:
    >>> named_kernels("attention/query/kernel", jnp.zeros((8, 2, 4)))
    True
    >>> named_kernels("norm/weight", jnp.zeros(8))
    False
  """
  named = _kernel_position(path.split("/")) is not None
  return named and _is_floating(leaf) and leaf.ndim > 1


def matching(*globs: str) -> Selector:
  """Selects by shell patterns on the whole path; `*` crosses "/".

  Example:
    >>> where = matching("encoder/*/kernel", "stem/kernel")
    >>> where("encoder/Conv_0/kernel", None), where("head/kernel", None)
    (True, False)
  """
  return lambda path, leaf: any(fnmatch.fnmatchcase(path, g) for g in globs)


def matching_regex(pattern: str) -> Selector:
  """Selects by a regular expression that is found anywhere in the path.

  Example:
    >>> matching_regex("Conv_[0-9]/kernel$")("block/Conv_0/kernel", None)
    True
  """
  compiled = re.compile(pattern)
  return lambda path, leaf: compiled.search(path) is not None


def all_but_last(
  params: PyTree, n: int, *, where: Selector = conv_kernels
) -> Selector:
  """Selects what `where` does in this tree, except for the last n kernels.

  "Last" is by path, with numbers in their order: "Conv_2" before "Conv_10".
  Where the names of a model do not follow its depth, use `matching`.

  Raises:
    ValueError: n is negative, or there are no more than n kernels.

  Example:
    >>> layer = {"kernel": jnp.zeros((3, 3, 8, 8))}
    >>> params = {"Conv_2": layer, "Conv_10": layer}
    >>> where = all_but_last(params, 1)
    >>> [name for name in params if where(f"{name}/kernel", layer["kernel"])]
    ['Conv_2']
  """
  paths, _, _ = selected_kernels(params, where)
  kernels = sorted((path for path in paths if path), key=_natural)
  if not 0 <= n < len(kernels):
    raise ValueError(
      f"cannot leave out the last {n} of {len(kernels)} kernels: "
      f"{', '.join(kernels)}"
    )
  kept = frozenset(kernels[: len(kernels) - n])
  return lambda path, leaf: path in kept


def fan_in_axes(path: str, leaf: Any) -> tuple[int, ...]:
  """Returns the fan-in axes of a kernel, by the table of this module.

  Right for convolutions of 1, 2 or 3 dimensions, grouped and depthwise ones
  too: their kernels hold the inputs of one group only.

  Example:
    >>> fan_in_axes("Conv_0/kernel", jnp.zeros((3, 3, 8, 16)))
    (0, 1, 2)
    >>> fan_in_axes("layers/0/weight", jnp.zeros((16, 8, 3, 3)))
    (1, 2, 3)
  """
  keys = path.split("/")
  position = _kernel_position(keys)
  name = "kernel" if position is None else keys[position]
  above = keys[position - 1] if position else ""
  if name == "weight":
    return all_but(0)(path, leaf)
  if name == "w" and "transpose" in above.lower():
    return all_but(-2)(path, leaf)
  if above in ("query", "key", "value") and leaf.ndim == 3:
    return (0,)
  if above.lower().startswith("convlocal"):
    return (leaf.ndim - 2,)
  return all_but(-1)(path, leaf)


def all_but(*kept: int) -> Axes:
  """Axis rule: every axis is fan-in, except for these.

  `all_but(-2)` is right for `[H, W, out, in]`, `all_but(0, -1)` for the
  stacked layers `[layer, H, W, in, out]` of `nn.scan` and `nn.vmap`, and
  `all_but(-2, -1)` for a DenseGeneral kernel `[in, head, out]`.

  Example:
    >>> all_but(0, -1)("stack/kernel", jnp.zeros((4, 3, 3, 8, 16)))
    (1, 2, 3)
  """

  def axes(path: str, leaf: Any) -> tuple[int, ...]:
    del path
    for axis in kept:
      if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(f"no axis {axis} in shape {list(leaf.shape)}")
    left_out = {axis % leaf.ndim for axis in kept}
    return tuple(i for i in range(leaf.ndim) if i not in left_out)

  return axes


def axes_by_path(
  rules: Mapping[str, Axes], *, default: Axes = fan_in_axes
) -> Axes:
  """Axis rule: that of the first shell pattern that the path matches.

  Example:
    >>> axes = axes_by_path({"up/*": all_but(-2)})
    >>> axes("up/ConvTranspose_0/kernel", jnp.zeros((2, 2, 16, 8)))
    (0, 1, 3)
  """

  def axes(path: str, leaf: Any) -> tuple[int, ...]:
    for glob, rule in rules.items():
      if fnmatch.fnmatchcase(path, glob):
        return rule(path, leaf)
    return default(path, leaf)

  return axes


def selected_kernels(
  params: PyTree, where: Selector
) -> tuple[list[str | None], list[Any], Any]:
  """Flattens a tree and applies a selector.

  Returns:
    For every leaf its path if it was selected and else None; the leaves; the
    tree's structure.

  Raises:
    ValueError: nothing was selected; the message lists the paths.
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


def _is_floating(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _kernel_position(keys: list[str]) -> int | None:
  """Where in a path the name of the kernel stands."""
  if "kernel" in keys:
    return keys.index("kernel")
  return len(keys) - 1 if keys[-1] in ("w", "weight") else None


def _natural(path: str) -> list[tuple[int, str]]:
  parts = re.split(r"(\d+)", path)
  return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


def _listing(paths: list[str], leaves: list[Any], limit: int = 40) -> str:
  shown = [
    f"{path} {list(jnp.shape(leaf))}"
    for path, leaf in zip(paths[:limit], leaves[:limit], strict=True)
  ]
  if len(paths) > limit:
    shown.append(f"and {len(paths) - limit} more")
  return ", ".join(shown) or "none, the tree is empty"
