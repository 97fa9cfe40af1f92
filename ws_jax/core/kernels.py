"""The kernels of a parameter tree, and which of their axes are fan-in.

A selector is `(path, leaf) -> bool` and an axis rule `(path, leaf) -> axes`;
any function will do, and the ones here are the common cases. A path is the keys
of a leaf joined by "/", as "block/Conv_0/kernel". `select` and `replace` are
how the rest of the package takes kernels out of a tree and puts others in.

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

import contextlib
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ws_jax.base.names import suggest

PyTree = Any
Selector = Callable[[str, Any], bool]
Axes = Callable[[str, Any], tuple[int, ...]]

# The names that Flax's MultiHeadDotProductAttention gives to its projections.
_ATTENTION = ("query", "key", "value", "out")
# The key of the array in an `nnx.Variable` or an `nn.Partitioned`.
_BOX = jax.tree_util.GetAttrKey("value")


def path_string(path: tuple[Any, ...]) -> str:
  """Returns the keys of a leaf as one string.

  The box around an array adds no key: the path of a kernel is the same in a
  plain dict, in an `nnx.State` and as an `nn.Partitioned`.

  Args:
    path: Keys of the leaf, as from `jax.tree.leaves_with_path`.

  Example:
    >>> [(path, _)] = jax.tree.leaves_with_path({"a": [1.0]})
    >>> path_string(path)
    'a/0'
  """
  while len(path) > 1 and path[-1] == _BOX:
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def why_not_conv(path: str, leaf: Any) -> str:
  """Returns why a leaf is not taken for a convolution kernel; "" if it is.

  Args:
    path: Path of the leaf.
    leaf: Array, or anything else that a tree may hold.

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
  named `w`, `weight` or, at any place of its path, `kernel`. A Flax kernel with
  three axes may be a 1-D convolution or an attention projection; it is taken if
  a key on its path contains "conv".

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
  """Selects matrices that are named as kernels, as in Dense and Linear.

  Example:
    >>> dense_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    True
  """
  return named_kernels(path, leaf) and leaf.ndim == 2


def named_kernels(path: str, leaf: Any) -> bool:
  """Selects leaves that are named as kernels, those of attention included.

  Example:
    >>> named_kernels("attention/query/kernel", jnp.zeros((8, 2, 4)))
    True
    >>> named_kernels("norm/weight", jnp.zeros(8))
    False
  """
  named = _kernel_position(path.split("/")) is not None
  return named and _is_floating(leaf) and leaf.ndim > 1


def matching(*globs: str) -> Selector:
  """Returns a selector by shell patterns on the whole path; `*` crosses "/".

  Args:
    *globs: Patterns, of which a path must match one.

  Example:
    >>> where = matching("encoder/*/kernel", "stem/kernel")
    >>> where("encoder/Conv_0/kernel", None), where("head/kernel", None)
    (True, False)
  """
  return lambda path, leaf: any(fnmatch.fnmatchcase(path, g) for g in globs)


def matching_regex(pattern: str) -> Selector:
  """Returns a selector by a regular expression, found anywhere in the path.

  Args:
    pattern: Regular expression.

  Example:
    >>> matching_regex("Conv_[0-9]/kernel$")("block/Conv_0/kernel", None)
    True
  """
  compiled = re.compile(pattern)
  return lambda path, leaf: compiled.search(path) is not None


def all_but_last(
  params: PyTree, n: int, *, where: Selector = conv_kernels
) -> Selector:
  """Returns a selector of all kernels of a tree but the last n.

  "Last" is by path, with numbers in their order: "Conv_2" before "Conv_10".
  Where the names of a model do not follow its depth, use `matching`.

  Args:
    params: Tree of parameters.
    n: Number of kernels to leave out.
    where: Selector to start from.

  Raises:
    ValueError: n is negative, or there are no more than n kernels.

  Example:
    >>> layer = {"kernel": jnp.zeros((3, 3, 8, 8))}
    >>> params = {"Conv_2": layer, "Conv_10": layer}
    >>> where = all_but_last(params, 1)
    >>> [name for name in params if where(f"{name}/kernel", layer["kernel"])]
    ['Conv_2']
  """
  kernels = sorted(select(params, where), key=_natural)
  if not 0 <= n < len(kernels):
    raise ValueError(
      f"cannot leave out the last {n} of {len(kernels)} kernels: "
      f"{', '.join(kernels)}"
    )
  kept = frozenset(kernels[: len(kernels) - n])
  return lambda path, leaf: path in kept


def fan_in_axes(path: str, leaf: Any) -> tuple[int, ...]:
  """Returns the fan-in axes of a kernel, by the table of this module.

  It is right for convolutions of 1, 2 or 3 dimensions, grouped and depthwise
  ones too: their kernels hold the inputs of one group only.

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
  """Returns the axis rule by which all axes are fan-in, except for these.

  `all_but(-2)` is right for `[H, W, out, in]`, `all_but(0, -1)` for the
  stacked layers `[layer, H, W, in, out]` of `nn.scan` and `nn.vmap`, and
  `all_but(-2, -1)` for a DenseGeneral kernel `[in, head, out]`.

  Args:
    *kept: Axes that are not fan-in; the rule raises a ValueError for a kernel
      that does not have them.

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
  """Returns the axis rule that asks one of several rules, by the path.

  Args:
    rules: Axis rules by shell pattern; the first pattern that matches counts.
    default: Axis rule for a path that matches none.

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


def by_path(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree by their paths, in the order of the tree.

  Raises:
    ValueError: Two leaves have one path.

  Example:
    >>> by_path({"conv": {"bias": 0.0, "kernel": 1.0}})
    {'conv/bias': 0.0, 'conv/kernel': 1.0}
  """
  leaves = {}
  for keys, leaf in jax.tree.leaves_with_path(tree):
    path = path_string(keys)
    if path in leaves:
      raise ValueError(f"two leaves have the path {path!r}: rename one of them")
    leaves[path] = leaf
  return leaves


def select(tree: PyTree, where: Selector) -> dict[str, Any]:
  """Returns the leaves that a selector takes, by their paths.

  Args:
    tree: Any pytree.
    where: Selector of the leaves.

  Returns:
    The selected leaves as `{path: leaf}`, in the order of the tree.

  Raises:
    ValueError: Nothing was selected (the message lists the paths), or two
      leaves have one path.

  Example:
    >>> tree = {"Conv_0": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 4, 2))}}
    >>> list(select(tree, conv_kernels))
    ['Conv_0/kernel']
  """
  leaves = by_path(tree)
  selected = {path: leaf for path, leaf in leaves.items() if where(path, leaf)}
  if not selected:
    raise ValueError(f"no kernel was selected; paths seen: {_listing(leaves)}")
  return selected


def replace(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
  """Returns a tree with other leaves at some of its paths.

  Args:
    tree: Any pytree.
    leaves: New leaves as `{path: leaf}`; the others stay the same objects.

  Raises:
    ValueError: The tree has no such path, or two leaves have one path.

  Example:
    >>> replace({"conv": {"bias": 0.0, "kernel": 1.0}}, {"conv/kernel": 7.0})
    {'conv': {'bias': 0.0, 'kernel': 7.0}}
  """
  old = by_path(tree)
  for path in leaves:
    if path not in old:
      raise ValueError(f"unknown path {path!r}: {suggest(path, old)}")
  new = [leaves.get(path, leaf) for path, leaf in old.items()]
  return jax.tree.unflatten(jax.tree.structure(tree), new)


@contextlib.contextmanager
def errors_name(path: str) -> Iterator[None]:
  """Puts a path in front of the message of an error that is raised inside.

  Example:
    >>> with errors_name("Conv_0/kernel"):
    ...   raise ValueError("fan-in 1")
    Traceback (most recent call last):
    ValueError: Conv_0/kernel: fan-in 1
  """
  try:
    yield
  except (TypeError, ValueError) as error:
    error.args = (f"{path}: {error}",)
    raise


def _is_floating(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _kernel_position(keys: list[str]) -> int | None:
  """Returns the position in a path of the kernel's name, or None."""
  if "kernel" in keys:
    return keys.index("kernel")
  return len(keys) - 1 if keys[-1] in ("w", "weight") else None


def _natural(path: str) -> list[tuple[int, str]]:
  """Returns a key that sorts paths with numbers as numbers."""
  parts = re.split(r"(\d+)", path)
  return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


def _listing(leaves: Mapping[str, Any], limit: int = 40) -> str:
  """Returns the first paths of a tree with their shapes, for a message."""
  shown = [
    f"{path} {list(jnp.shape(leaf))}"
    for path, leaf in itertools.islice(leaves.items(), limit)
  ]
  if len(leaves) > limit:
    shown.append(f"and {len(leaves) - limit} more")
  return ", ".join(shown) or "none, the tree is empty"
