"""The kernels of a parameter tree, and which of their axes are fan-in.

A selector is `(path, leaf) -> bool` and an axis rule `(path, leaf) -> axes`;
any function will do, and the ones here are the common cases. A path is the keys
of a leaf joined by "/", as "block/Conv_0/kernel". `select` and `replace` are
how the rest of the package takes kernels out of a tree and puts others in.

The defaults go by the layouts of the libraries, which `ws_jax.core.verdicts`
tells from bias, name and shape:

    Flax Conv, Dense (Linen, NNX)       kernel  [..., in, out]
    Flax ConvLocal                      kernel  [position..., in, out]
    Flax attention: query, key, value   kernel  [in, head, out]
    Flax attention: out                 kernel  [head, in, out]
    Haiku Conv, Linear                  w       [..., in, out]
    Haiku ConvTranspose                 w       [..., out, in]
    Equinox, PyTorch Conv, Linear       weight  [out, in, ...]
    PyTorch ConvTranspose               weight  [in, out, ...]

and the same behind the axes that `nn.scan`, `nn.vmap` and the like stack in
front. Where neither is known it is an error, and `where=` and `axes=` say it:
`all_but`, `axes_by_path`.
"""

import contextlib
import contextvars
import difflib
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ws_jax.base.names import suggest
from ws_jax.core import verdicts

PyTree = Any
Selector = Callable[[str, Any], bool]
Where = Selector | str | Sequence[str]
Axes = Callable[[str, Any], tuple[int, ...]]

_SAY_AXES = (
  "say which axes are fan-in with axes=, as all_but(-1) for [..., in, out]"
  " (model.ws_axes='GLOB=-1' of a run, --filters of a command)"
)
# What the arrays of the tree are that is gone through just now.
_SEEN: contextvars.ContextVar[dict[str, verdicts.Verdict] | None] = (
  contextvars.ContextVar("seen", default=None)
)
# What `conv_kernels` answers just now where it does not know.
_ASSUMED: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
  "assumed", default=None
)
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
  verdict = verdict_on(path, leaf)
  return "" if verdict.kernel else verdict.reason


def conv_kernels(path: str, leaf: Any) -> bool:
  """Selects convolution kernels, by the rules of `ws_jax.core.verdicts`.

  A convolution kernel is a floating-point leaf with three axes or more that is
  named `kernel`, `w` or `weight`, and that its layer, its bias, its name or its
  shape shows to be one. Left out by their role are heads of 1x1,
  squeeze-and-excitation, and embeddings of patches.

  In a tree, the arrays around a kernel count too: inside of the functions of
  this package it sees them, also as a part of a selector of your own.

  Raises:
    ValueError: It cannot be known.

  Example:
    >>> conv_kernels("Conv_0/kernel", jnp.zeros((3, 3, 8, 16)))
    True
    >>> conv_kernels("Dense_0/kernel", jnp.zeros((8, 16)))
    False
    >>> conv_kernels("attention/query/kernel", jnp.zeros((8, 2, 4)))
    False
  """
  verdict = verdict_on(path, leaf)
  if verdict.kernel is not None:
    return verdict.kernel
  assumed = _ASSUMED.get()
  if assumed is None:
    raise ValueError(_question({path: leaf}, {path: verdict.reason}))
  return assumed


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
  named = verdicts.kernel_name(path) and verdicts.is_floating(leaf)
  # The scale of a normalization over several axes is not a kernel.
  return (
    bool(named) and leaf.ndim > 1 and (verdict_on(path, leaf).kind != "scale")
  )


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
  """Returns the fan-in axes of a kernel, by the rules of this module.

  It is right for convolutions of 1, 2 or 3 dimensions, grouped and depthwise
  ones too: their kernels hold the inputs of one group only. In a tree it sees
  the arrays around a kernel, as `conv_kernels` does.

  Raises:
    ValueError: They cannot be known.

  Example:
    >>> fan_in_axes("Conv_0/kernel", jnp.zeros((3, 3, 8, 16)))
    (0, 1, 2)
    >>> fan_in_axes("layers/0/weight", jnp.zeros((16, 8, 3, 3)))
    (1, 2, 3)
  """
  if not verdicts.is_floating(leaf) or leaf.ndim < 2:
    return all_but(-1)(path, leaf)  # refused for a better reason
  verdict = verdict_on(path, leaf)
  if verdict.axes is None:
    raise ValueError(
      f"the fan-in axes of {list(leaf.shape)} cannot be known"
      f" ({verdict.reason}): {_SAY_AXES}"
    )
  return verdict.axes


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


def filter_axes(rules: Iterable[str]) -> dict[str, Axes]:
  """Returns rules for `axes_by_path` that are given as text.

  Args:
    rules: Texts `GLOB=AXIS` or `GLOB=AXIS,AXIS`: the axes of the kernels at
      these paths that count filters. All others are fan-in.

  Raises:
    ValueError: A text has another form.

  Example:
    >>> axes = axes_by_path(filter_axes(["up/*=-2"]))
    >>> axes("up/kernel", jnp.zeros((2, 2, 16, 8)))
    (0, 1, 3)
  """
  found = {}
  for rule in rules:
    glob, equals, numbers = rule.rpartition("=")
    try:
      found[glob] = all_but(*(int(n) for n in numbers.split(",")))
    except ValueError:
      equals = ""
    if not (glob and equals):
      raise ValueError(
        f"{rule!r} must be GLOB=AXIS or GLOB=AXIS,AXIS, as 'up*/kernel=-1': the"
        " axes that count filters"
      )
  return found


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


def select(tree: PyTree, where: Where) -> dict[str, Any]:
  """Returns the leaves that a selector takes, by their paths.

  Args:
    tree: Any pytree.
    where: Selector of the leaves, a glob or several; see `choose`.

  Returns:
    The selected leaves as `{path: leaf}`, in the order of the tree.

  Raises:
    ValueError: Nothing was selected (the message lists the paths), two leaves
      have one path, or it cannot be known whether a leaf is a kernel.

  Example:
    >>> tree = {"Conv_0": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 4, 2))}}
    >>> list(select(tree, conv_kernels))
    ['Conv_0/kernel']
    >>> list(select(tree, "Conv_*"))
    ['Conv_0/kernel']
  """
  with seeing(tree) as leaves:
    return _selected(leaves, where)


def select_axes(
  tree: PyTree, where: Where, axes: Axes
) -> dict[str, tuple[Any, tuple[int, ...]]]:
  """Returns the leaves that a selector takes, each with its fan-in axes.

  Args:
    tree: Any pytree.
    where: Selector of the leaves, as in `select`.
    axes: Rule for their fan-in axes.

  Raises:
    ValueError: As `select`, or the axes of a leaf cannot be known.

  Example:
    >>> tree = {"Conv_0": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 4, 2))}}
    >>> select_axes(tree, conv_kernels, fan_in_axes)["Conv_0/kernel"][1]
    (0, 1)
  """
  with seeing(tree) as leaves:
    found = {}
    for path, leaf in _selected(leaves, where).items():
      with errors_name(path):
        found[path] = leaf, axes(path, leaf)
    return found


def choose(leaves: Mapping[str, Any], where: Where) -> dict[str, bool | None]:
  """Returns which leaves a selector takes; None where it cannot be known.

  Args:
    leaves: Leaves of a tree by path.
    where: Selector `(path, leaf) -> bool`. Or a shell pattern of whole paths,
      or several: of what a pattern matches, the kernels are taken if there are
      any.

  Raises:
    ValueError: A pattern matches no path; the message has the nearest one.
    TypeError: It is none of these.
  """
  if not callable(where):
    taken = glob_paths(where, leaves)
    return {path: path in taken for path in leaves}
  chosen: dict[str, bool | None] = {}
  for path, leaf in leaves.items():
    # A selector may ask for more than `conv_kernels` does. Only where its
    # answer hangs on what cannot be known is there a question.
    chosen[path] = _assuming(True, where, path, leaf)
    if verdict_on(path, leaf).kernel is None:
      other = _assuming(False, where, path, leaf)
      chosen[path] = chosen[path] if chosen[path] == other else None
  return chosen


def glob_paths(
  globs: str | Iterable[str], leaves: Mapping[str, Any]
) -> set[str]:
  """Returns the paths of the kernels that shell patterns match.

  Args:
    globs: One pattern of whole paths, or several; `*` crosses "/".
    leaves: Leaves of a tree by path.

  Raises:
    ValueError: A pattern matches no path; the message has the nearest one.
    TypeError: It is something else.
  """
  several = [globs] if isinstance(globs, str) else globs
  if not isinstance(several, Iterable):
    several = [several]
  found: set[str] = set()
  for glob in several:
    if not isinstance(glob, str):
      raise TypeError(
        "`where` must be a function (path, leaf) -> bool, a glob as"
        f" 'block*/kernel', or a list of globs, got {globs!r}"
      )
    matched = fnmatch.filter(leaves, glob)
    if not matched:
      near = difflib.get_close_matches(glob, leaves, n=1, cutoff=0.0)
      hint = f"; the nearest is {near[0]!r}" if near else ""
      raise ValueError(
        f"no kernel was selected by {glob!r}: it matches no path{hint}. A"
        " pattern is for whole paths, and * crosses '/'"
      )
    found.update([p for p in matched if named_kernels(p, leaves[p])] or matched)
  return found


@contextlib.contextmanager
def seeing(tree: PyTree) -> Iterator[dict[str, Any]]:
  """Lets the rules of this module see all of a tree, and yields its leaves.

  Whatever calls `where` or `axes` on the leaves of a tree does it inside.

  Raises:
    ValueError: Two leaves have one path.

  Example:
    >>> tree = {"net": {"weight": jnp.ones((8, 6, 6)), "bias": jnp.ones(8)}}
    >>> with seeing(tree) as leaves:
    ...   conv_kernels("net/weight", leaves["net/weight"])
    True
  """
  leaves = by_path(tree)
  layers = {path_string(k): x for k, x in verdicts.layers_of(tree).items()}
  token = _SEEN.set(verdicts.judge(leaves, layers))
  try:
    yield leaves
  finally:
    _SEEN.reset(token)


def verdict_on(path: str, leaf: Any) -> verdicts.Verdict:
  """Returns what a leaf is: in the tree that is gone through, or by itself."""
  seen = _SEEN.get()
  if seen is not None and path in seen:
    return seen[path]
  return verdicts.judge({path: leaf})[path]


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


def _selected(leaves: Mapping[str, Any], where: Where) -> dict[str, Any]:
  """Returns the leaves that are taken; asks where it cannot be known."""
  chosen = choose(leaves, where)
  unknown = [path for path, taken in chosen.items() if taken is None]
  if unknown:
    reasons = {p: verdict_on(p, leaves[p]).reason for p in unknown}
    raise ValueError(_question(leaves, reasons))
  selected = {path: leaf for path, leaf in leaves.items() if chosen[path]}
  if not selected:
    raise ValueError(f"no kernel was selected; paths seen: {_listing(leaves)}")
  return selected


def _assuming(known: bool, where: Selector, path: str, leaf: Any) -> bool:
  """Calls a selector; `conv_kernels` in it takes the unknown, or does not."""
  token = _ASSUMED.set(known)
  try:
    return bool(where(path, leaf))
  finally:
    _ASSUMED.reset(token)


def _question(leaves: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
  """Returns the message that asks which leaves are kernels."""
  listed = [
    f"{path} {list(jnp.shape(leaves[path]))}"
    for path in itertools.islice(reasons, 4)
  ]
  more = f" and {len(reasons) - 4} more" if len(reasons) > 4 else ""
  first = next(iter(reasons.values())).removeprefix("cannot be known: ")
  one = len(reasons) == 1
  are = f"{'is the kernel' if one else 'are kernels'} of a convolution"
  return (
    f"cannot know whether {', '.join(listed)}{more} {are} ({first})."
    " Say it with where=, a glob or a list of globs of the kernels or a"
    " function of your own (model.ws_where of a run, --where or --exclude of a"
    f" command); {_SAY_AXES}"
  )


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
