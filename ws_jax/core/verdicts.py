"""Verdicts on the arrays of a tree: a kernel, something else, or unknown.

`judge` is the one place that decides it; selectors, axis rules and tables ask
it. Start there. An array of three axes and more may be a convolution, a dense
layer over several axes, a stack of layers, or a scale, and its name alone does
not say. The evidence, from the strongest:

    1. the layer itself, where the tree holds it (Equinox);
    2. the bias beside the kernel: it has the shape of the outputs;
    3. the scale of a normalization nearby: it shows how many layers a scan or a
       vmap has stacked in front;
    4. the name that the library gave to the layer, as Conv_0 or conv2_d;
    5. the shape: [3, 3, in, out] looks like a convolution. That is a guess, and
       is marked as one.

What none of them decides is unknown. Nothing is standardized then before the
user has said what it is.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]

# The names of kernels. Channels are last, but in Equinox and PyTorch.
NAMES = ("kernel", "w", "weight")
_BIASES = {"kernel": ("bias",), "w": ("b", "bias"), "weight": ("bias",)}
_SCALES = ("scale", "gamma", "offset", "beta")
# Layers of Equinox that hold a weight; subclasses count as what they are of.
_LAYERS = re.compile(
  r"(Conv|ConvTranspose)\d?d?|(Layer|RMS|Group|Batch)Norm|Linear|Embedding"
)

# What the name of a layer says of it.
_TRANSPOSED = re.compile(
  r"transpos|deconv|up_?conv|conv_?up|upsampl|^up([_.]?\d+)*$"
)
_LOCAL = re.compile(r"conv_?local")
_CONV = re.compile(r"conv")
# What Flax and Haiku call a convolution that the user gave no name, and what
# users call one: conv1, block1_conv2.
_CLEARLY_CONV = re.compile(r"(.*_)?conv(\dd|\d_d)?(_?\d+)*")
_DENSE = re.compile(r"dense|linear|einsum")
_NORM = re.compile(r"norm|^(ln|bn|gn)(_?\d+)*$")
_ATTENTION = ("query", "key", "value", "out")
_STACK = re.compile(r"scan|stack|vmap")
# Layers that are convolutions in one codebase and dense in the next. The
# published networks with WS leave all of them out.
_HEAD = re.compile(r"(head|fc|classifier|logits|predictions)(_\d+)?")
_PATCHES = re.compile(r"(patch_?)?(embed|embedding|embeddings)(_\d+)?|patchify")
_GATE = re.compile(
  r"(se|eca|gate|attn|attention)(_\w+)?|\w*squeeze_?(and_?)?excit\w*"
)
# Names that convolutions of four axes usually have.
_USUAL = re.compile(
  r"stem|project|shortcut|downsample|depthwise|pointwise|expand|reduce|final"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A decision on one array, and the reason for it.

  Attributes:
    kernel: True for a kernel of a convolution, which WS is for; False for
      anything else; None if it cannot be known.
    axes: Fan-in axes; None if they cannot be known, or there are none.
    reason: What told it, or why it is not a kernel of a convolution.
    kind: Short name for a summary, as "3x3" or "dense"; "" for what is no
      kernel at all.
    guessed: Whether the shape alone told it.
    role: Whether it is a convolution by its layout, left out for its role.
  """

  kernel: bool | None
  axes: tuple[int, ...] | None
  reason: str
  kind: str = ""
  guessed: bool = False
  role: bool = False


@dataclasses.dataclass(frozen=True)
class _Array:
  """An array that is named as a kernel, and what lies around it.

  Attributes:
    name: Name of the array, one of `NAMES`.
    above: Keys above it, the nearest first, without numbers.
    shape: Shape of the array.
    bias: Shape of the bias beside it, or None.
    depth: Number of stacked axes that a scale nearby shows, or None.
    siblings: Keys beside its layer, as "query" and "key" of an attention.
  """

  name: str
  above: tuple[str, ...]
  shape: Shape
  bias: Shape | None = None
  depth: int | None = None
  siblings: Collection[str] = ()

  @property
  def owner(self) -> str:
    """Name of its layer in lower case."""
    return self.above[0].lower() if self.above else ""


def judge(
  leaves: Mapping[str, Any], layers: Mapping[str, Any] | None = None
) -> dict[str, Verdict]:
  """Returns what each array of a tree is.

  Args:
    leaves: Leaves of the tree by path.
    layers: Layers by path, from `layers_of`.

  Example:
    >>> zeros = jnp.zeros
    >>> norm = {"norm/weight": zeros((8, 6, 6)), "norm/bias": zeros((8, 6, 6))}
    >>> judge(norm)["norm/weight"].reason
    'a scale: its bias has its shape'
    >>> conv = {"net/weight": zeros((8, 6, 6)), "net/bias": zeros((8, 1))}
    >>> judge(conv)["net/weight"].axes
    (1, 2)
    >>> judge({"net/weight": zeros((8, 6, 6))})["net/weight"].kernel is None
    True
  """
  scopes = _scopes(leaves)
  return {
    path: _judge(path, leaf, leaves, scopes, layers or {})
    for path, leaf in leaves.items()
  }


def kernel_name(path: str) -> str:
  """Returns the name of a kernel that a path ends in, or "".

  Example:
    >>> kernel_name("conv/kernel"), kernel_name("kernel/scale")
    ('kernel', '')
  """
  keys = path.split("/")
  # Files of older versions of NNX have the box around the array in the path.
  if keys[-1] == "value" and len(keys) > 1 and keys[-2] in NAMES:
    return keys[-2]
  return keys[-1] if keys[-1] in NAMES else ""


def is_floating(leaf: Any) -> bool:
  """Returns whether a leaf is an array of real floating-point numbers."""
  return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def layers_of(tree: Any) -> dict[tuple[Any, ...], Any]:
  """Returns the Equinox layers that hold a weight in a tree, by their keys."""
  found = jax.tree.leaves_with_path(tree, is_leaf=lambda x: bool(_class_of(x)))
  return {keys: layer for keys, layer in found if _class_of(layer)}


def _class_of(node: Any) -> str:
  """Returns the name of the Equinox layer that an object is, or ""."""
  for kind in type(node).__mro__:
    if kind.__module__.startswith("equinox.nn."):
      return kind.__name__ if _LAYERS.fullmatch(kind.__name__) else ""
  return ""


def _judge(
  path: str,
  leaf: Any,
  leaves: Mapping[str, Any],
  scopes: Mapping[str, Any],
  layers: Mapping[str, Any],
) -> Verdict:
  """Returns what one array is."""
  if not is_floating(leaf):
    return Verdict(False, None, "not a floating-point array")
  name, shape = kernel_name(path), tuple(leaf.shape)
  if not name:
    # What may be a kernel of a layer of the user's own is counted.
    other = path.rpartition("/")[2] not in (*_SCALES, "bias", "b")
    large = other and sum(n > 1 for n in shape) > 2
    kind = "of another name" if large else ""
    return Verdict(False, None, "not named as a kernel", kind)
  if len(shape) < 2:
    return Verdict(False, None, f"{len(shape)} dimensions")
  scope, _, _ = path.removesuffix("/value").rpartition("/")
  layer = layers.get(scope)
  array = _Array(
    name,
    tuple(k for k in reversed(scope.split("/")) if k and not _numeric(k)),
    shape,
    _bias(scope, name, leaves),
    _depth(scope, shape, scopes),
    scopes.get(scope.rpartition("/")[0], _Scope()).keys,
  )
  if layer is not None:
    verdict = _of_layer(array, layer)
  elif len(shape) == 2:
    return _matrix(array)
  else:
    verdict = (_first if name == "weight" else _last)(array)
  return _role(array, verdict) if verdict.kernel else verdict


def _numeric(key: str) -> bool:
  return key.isdecimal() or key == "~"


@dataclasses.dataclass
class _Scope:
  """The keys right below a scope, and the scales anywhere below it."""

  keys: set[str] = dataclasses.field(default_factory=set)
  scales: set[Shape] = dataclasses.field(default_factory=set)


def _scopes(leaves: Mapping[str, Any]) -> dict[str, _Scope]:
  """Returns the scopes of a tree by their paths."""
  scopes: dict[str, _Scope] = {}
  for path, leaf in leaves.items():
    keys = path.split("/")
    is_scale = keys[-1] in _SCALES and hasattr(leaf, "shape")
    for i, key in enumerate(keys):
      scope = scopes.setdefault("/".join(keys[:i]), _Scope())
      scope.keys.add(key)
      if is_scale:
        scope.scales.add(tuple(leaf.shape))
  return scopes


def _bias(scope: str, name: str, leaves: Mapping[str, Any]) -> Shape | None:
  """Returns the shape of the bias beside a kernel, or None."""
  for bias in _BIASES[name]:
    for box in ("", "/value"):
      found = leaves.get(f"{scope}/{bias}{box}" if scope else f"{bias}{box}")
      if hasattr(found, "shape"):
        return tuple(found.shape)
  # In a list of layers, the norm behind a convolution has its outputs too.
  above, _, number = scope.rpartition("/")
  if number.isdecimal():
    for scale in ("weight", "scale"):
      behind = leaves.get(f"{above}/{int(number) + 1}/{scale}".lstrip("/"))
      outputs = tuple(getattr(behind, "shape", ()))
      if len(outputs) == 1:
        return outputs
  return None


def _depth(
  scope: str, shape: Shape, scopes: Mapping[str, _Scope]
) -> int | None:
  """Returns how many stacked axes the scales nearest to a kernel have.

  A scale is [C], and [layer, C] in a stack of layers.
  """
  while scope:
    scope = scope.rpartition("/")[0]
    scales = scopes[scope].scales if scope in scopes else set()
    if scales:
      depths = set()
      for scale in scales:
        # Haiku's scales of images are [1, 1, 1, C].
        while len(scale) > 1 and scale[0] == 1:
          scale = scale[1:]
        depth = max(len(scale) - 1, 0)
        if scale[:depth] == shape[:depth]:
          depths.add(depth)
      return depths.pop() if len(depths) == 1 else None
  return None


def _of_layer(array: _Array, layer: Any) -> Verdict:
  """Returns the verdict where the layer is in the tree: [out, in, ...]."""
  name, shape = _class_of(layer), array.shape
  ndim = len(shape)
  if "Conv" not in name:
    kind = {"Linear": "dense", "Embedding": "embedding"}.get(name, "scale")
    axes = None if kind == "scale" else (ndim - 1,)
    return Verdict(False, axes, f"equinox {name}, no convolution", kind)
  inputs = layer.in_channels // layer.groups
  own = (layer.out_channels, inputs, *layer.kernel_size)
  if shape[-len(own) :] != own:
    return _unknown(shape, f"equinox {name} {list(own)}, stacked along an axis")
  axes = tuple(range(ndim - len(own) + 1, ndim))
  return Verdict(True, axes, f"equinox {name}", _kind(shape, axes[1:]))


def _matrix(array: _Array) -> Verdict:
  """Returns the verdict on two axes."""
  shape, bias = array.shape, array.bias
  if array.name == "weight" and bias == shape:
    return Verdict(False, None, "a scale: its bias has its shape", "scale")
  axes = (1,) if array.name == "weight" else (0,)
  if "einsum" in array.owner:  # [out, in] or [in, out], as its equation says
    axes = None
    if bias is not None and len(bias) == 1 and shape[0] != shape[1]:
      axes = (1,) if bias == shape[:1] else (0,)
  kind = "embedding" if "embed" in array.owner else "dense"
  return Verdict(False, axes, "a matrix", kind)


def _role(array: _Array, verdict: Verdict) -> Verdict:
  """Leaves out what is a convolution by its layout, but not by its role."""
  kind = verdict.kind
  nearest = [key.lower() for key in array.above[:2]]
  above = [key.lower() for key in array.above[:4]]
  one = set(kind.split("x")) <= {"1"}
  axes = verdict.axes

  def out(why, kind):
    return Verdict(False, axes, f"{why}; `where` takes it", kind, role=True)

  if one and any(map(_HEAD.fullmatch, nearest)):
    return out("a head of 1x1", "head")
  if any(map(_PATCHES.fullmatch, nearest)):
    return out("an embedding of patches", "patch embedding")
  # The one kernel of a channel attention as ECA's has one input and output.
  eca = axes and math.prod(array.shape) == max(array.shape)
  gate = any(map(_GATE.fullmatch, above)) or array.owner in ("fc1", "fc2")
  if (one or eca) and gate:
    return out("squeeze-and-excitation or attention", "gate")
  return verdict


def _kind(shape: Shape, spatial: tuple[int, ...]) -> str:
  """Returns the size of a convolution in words, as 3x3."""
  return "x".join(str(shape[i]) for i in spatial) or "dense"


@dataclasses.dataclass(frozen=True)
class _Reading:
  """A way to read the axes of a kernel.

  Attributes:
    stack: Number of stacked axes in front.
    axes: Fan-in axes.
    outputs: Number of output axes.
    bias: Shape that a bias has.
    transposed: Whether outputs come before inputs, or after them in PyTorch.
  """

  stack: int
  axes: tuple[int, ...]
  outputs: int
  bias: Shape
  transposed: bool = False

  @property
  def convolves(self) -> bool:
    """Whether it is a convolution: one axis of outputs, two or more of inputs.

    A dense layer over several axes looks the same, with the same axes.
    """
    return self.outputs == 1 and len(self.axes) > 1


def _readings_last(shape: Shape) -> Iterator[_Reading]:
  """Yields the ways to read a kernel with channels last."""
  n = len(shape)
  for stack in range(n - 1):
    front = shape[:stack]
    for end in range(stack + 1, n):  # DenseGeneral: inputs, then outputs
      axes = tuple(range(stack, end))
      yield _Reading(stack, axes, n - end, front + shape[end:])
    if n - stack >= 3:
      axes = (*range(stack, n - 2), n - 1)
      yield _Reading(stack, axes, 1, (*front, shape[n - 2]), True)


def _readings_first(shape: Shape) -> Iterator[_Reading]:
  """Yields the ways to read a kernel `[out, in, ...]`."""
  n = len(shape)
  for stack in range(n - 1):
    front, axes = shape[:stack], tuple(range(stack + 1, n))
    yield _Reading(stack, axes, 1, (*front, shape[stack]))
    if n - stack >= 3:
      axes = (stack, *range(stack + 2, n))
      yield _Reading(stack, axes, 1, (*front, shape[stack + 1]), True)


def _fitting(array: _Array, readings: Iterator[_Reading]) -> list[_Reading]:
  """Returns the readings that bias and scales allow."""
  fit = list(readings)
  if array.bias is not None:
    exact = [r for r in fit if r.bias == array.bias]
    # Equinox has a bias [out, 1, 1], others [1, 1, 1, out].
    bare = tuple(n for n in array.bias if n != 1)
    fit = exact or [
      r for r in fit if tuple(n for n in r.bias if n != 1) == bare
    ]
  if array.depth is not None:
    fit = [r for r in fit if r.stack == array.depth] or fit
  elif array.bias is None:
    stacked = any(_STACK.search(key.lower()) for key in array.above)
    deep = len(array.shape) > 4
    fit = fit if stacked or deep else [r for r in fit if r.stack == 0]
  return fit


def _one(readings: list[_Reading]) -> tuple[int, ...] | None:
  """Returns the axes of all readings if they are the same, else None."""
  axes = {r.axes for r in readings}
  return axes.pop() if len(axes) == 1 else None


def _last(array: _Array) -> Verdict:
  """Returns the verdict on three or more axes with channels last."""
  shape, owner = array.shape, array.owner
  fit = _fitting(array, _readings_last(shape))
  convs = [r for r in fit if r.convolves and not r.transposed]
  turned = [r for r in fit if r.transposed]
  dense = [r for r in fit if not r.transposed]
  if _is_attention(array):
    side = [r for r in dense if (r.outputs == 1) == (owner == "out")]
    if owner != "out":
      side = [r for r in side if len(r.axes) == 1]
    return Verdict(False, _one(side), "an attention projection", "attention")
  if _LOCAL.search(owner):
    axes = (len(shape) - 2,)
    return Verdict(True, axes, "by its name", "local")
  if _TRANSPOSED.search(owner):
    # Haiku has one layout for them, and Flax has two.
    return _turned(array, turned if array.name == "w" else turned + convs)
  if _DENSE.search(owner) and not _CONV.search(owner):
    plain = "general" not in owner and "einsum" not in owner
    side = [r for r in dense if plain <= (r.outputs == len(r.axes) == 1)]
    axes = None if "einsum" in owner and array.bias is None else _one(side)
    return Verdict(False, axes, "a dense layer", "dense")
  if array.bias is not None and not convs:
    if turned:
      return _turned(array, turned)
    if not fit:
      return _unknown(shape, f"its bias {list(array.bias)} fits no layer")
    if all(r.stack > 1 for r in fit):
      return _unknown(shape, "stacked dense layers, or a ConvLocal?")
    return Verdict(False, _one(fit), "a dense layer, by its bias", "dense")
  named = bool(_CONV.search(owner))
  rank = len(shape) - (array.depth or 0)
  if array.bias is None:
    return _by_shape(array, convs, named)
  return _by_bias(array, convs, turned, named, rank)


def _by_bias(
  array: _Array,
  convs: list[_Reading],
  turned: list[_Reading],
  named: bool,
  rank: int,
) -> Verdict:
  """Returns the verdict on channels last where the bias is a convolution's."""
  axes = _one(convs)
  if axes is None and not named:
    return _unknown(array.shape, "its bias fits several layouts")
  if axes is None:
    convs = [r for r in convs if r.stack == 0] or convs
    axes = _one(convs)
    if axes is None:
      return _unknown(array.shape, "its bias fits several layouts")
  if len(axes) == 2 and array.name == "kernel" and not named:
    why = f"{rank} axes, and no name that tells: 1-D convolution or attention?"
    return Verdict(None, axes, why, "?")
  kind = _kind(array.shape, axes[:-1])
  if turned and not named:
    # As many inputs as outputs: a transposed kernel would look the same.
    return _likely(array, axes, kind)
  return Verdict(True, axes, "by its name" if turned else "by its bias", kind)


def _by_shape(array: _Array, convs: list[_Reading], named: bool) -> Verdict:
  """Returns the verdict on channels last without a bias."""
  shape, owner = array.shape, array.owner
  axes = _one(convs)
  if axes is None:
    return _unknown(shape, "stacked layers, or a convolution of more axes?")
  spatial = axes[:-1]
  kind = _kind(shape, spatial)
  # A name as conv_proj may hide a DenseGeneral [in, head, out], which seldom
  # has more heads than inputs.
  window, inputs = [shape[i] for i in spatial], shape[axes[-1]]
  small = max(window) <= 32
  if len(axes) == 2:
    small = inputs == 1 or window[0] <= inputs
  if _CLEARLY_CONV.fullmatch(owner) or (named and small):
    return Verdict(True, axes, "by its name", kind)
  if len(axes) > 2 and _is_square(window):
    return _likely(array, axes, kind)
  if len(axes) == 2:
    return _unknown(
      shape,
      f"{len(shape)} axes, no bias and no name that tells: 1-D convolution or"
      " attention?",
    )
  return _unknown(shape, "no bias and no name that tells, and an odd shape")


def _likely(array: _Array, axes: tuple[int, ...], kind: str) -> Verdict:
  """Returns the verdict on what looks like a convolution of images."""
  if _USUAL.search(array.owner):
    return Verdict(True, axes, "by its name and shape", kind)
  return Verdict(True, axes, "a guess by its shape", kind, True)


def _turned(array: _Array, readings: list[_Reading]) -> Verdict:
  """Returns the verdict on a transposed convolution."""
  axes = _one(readings)
  if axes is None:
    why = "a transposed convolution: [..., in, out] or [..., out, in]?"
    if array.name == "weight":
      why = "a transposed convolution: [out, in, ...] or [in, out, ...]?"
    return Verdict(True, None, why, "transposed")
  return Verdict(True, axes, "a transposed convolution", "transposed")


def _first(array: _Array) -> Verdict:
  """Returns the verdict on three or more axes `[out, in, ...]`."""
  shape, owner, bias = array.shape, array.owner, array.bias
  if bias == shape:
    return Verdict(False, None, "a scale: its bias has its shape", "scale")
  named, norm = bool(_CONV.search(owner)), bool(_NORM.search(owner))
  if norm and not named:
    return Verdict(False, None, "a scale, by its name", "scale")
  if "bilinear" in owner:
    return Verdict(False, tuple(range(1, len(shape))), "bilinear", "dense")
  if _DENSE.search(owner) and not (named or norm):
    axes = (len(shape) - 1,)
    return Verdict(False, axes, "a stack of dense layers", "dense")
  fit = _fitting(array, _readings_first(shape))
  convs = [r for r in fit if r.convolves and not r.transposed]
  turned = [r for r in fit if r.transposed]
  if _TRANSPOSED.search(owner):
    if bias is not None and not fit:  # groups: [in, out / groups, ...]
      return Verdict(True, None, "a transposed convolution of groups", "?")
    return _turned(array, fit)
  if bias is not None and not convs:
    if not fit:
      return _unknown(shape, f"its bias {list(bias)} fits no layer")
    if turned:
      return _turned(array, turned)
    return Verdict(False, _one(fit), "a stack of dense layers", "dense")
  axes = _one(convs)
  if axes is None:
    return _unknown(shape, "stacked layers, or a convolution of more axes?")
  spatial = axes[1:]
  kind = _kind(shape, spatial)
  if bias is not None:
    bilinear = len(axes) == 2 and bias == shape[:1]  # it looks the same
    if (turned or bilinear) and not named:
      return _likely(array, axes, kind)
    return Verdict(True, axes, "by its bias", kind)
  if named and not norm:
    return Verdict(True, axes, "by its name", kind)
  if len(axes) > 2 and _is_square([shape[i] for i in spatial]):
    return _likely(array, axes, kind)
  return _unknown(
    shape, f"{len(shape)} axes, no bias and no name that tells: a scale?"
  )


def _is_attention(array: _Array) -> bool:
  """Returns whether a kernel is one of Flax's attention."""
  owner = array.owner
  if owner not in _ATTENTION or array.name != "kernel":
    return False
  if owner != "out":
    return True
  inside = "".join(array.above[1:3]).lower()
  return "query" in array.siblings or "attention" in inside or "attn" in inside


def _is_square(sizes: list[int]) -> bool:
  """Returns whether these look like the sizes of a window: 3x3, 1x7, 7x1."""
  return len(set(sizes) - {1}) <= 1 and max(sizes) <= 32


def _unknown(shape: Shape, why: str) -> Verdict:
  return Verdict(None, None, f"cannot be known: {why}", "?")
