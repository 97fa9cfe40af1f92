"""Big Transfer's `.npz` files: R50x1 to R152x4, BiT-S and BiT-M, any head.

    resnet/root_block/standardized_conv2d/kernel
    resnet/block1/unit01/a/proj/standardized_conv2d/kernel
    resnet/block1/unit01/{a,b,c}/{standardized_conv2d/kernel,group_norm/gamma}
    resnet/group_norm/{gamma,beta}
    resnet/head/conv2d/{kernel,bias}

Kernels are raw and `[H, W, in, out]`, as ours. The head is a 1x1 convolution
there, and dense here. Images are in [-1, 1].
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ws_jax.weights import layout
from ws_jax.weights.layout import Arrays, Imported, PyTree

_CONV, _NORM = "standardized_conv2d", "group_norm"
_LEAVES = {"scale": "gamma", "bias": "beta"}


def from_bit(
  arrays: Arrays, like: PyTree, *, skip: Sequence[str] = ()
) -> Imported:
  """Returns the arrays of a Big Transfer file as variables of a model here.

  Some files number their layers, as `standardized_conv2d_3`; the numbers are
  ignored.

  Args:
    arrays: Arrays of the file by name.
    like: Variables of a `bit_*` model, or their shapes.
    skip: Shell patterns of our paths that are left out, as `params/head/*`.

  Raises:
    ValueError: an array is missing, wrong or there twice.

  Example:
    >>> like = {"params": {"stem": {"kernel": np.zeros((7, 7, 3, 64))}}}
    >>> name = "resnet/root_block/standardized_conv2d_1/kernel"
    >>> found = from_bit({name: np.ones((7, 7, 3, 64))}, like)
    >>> found.variables["params"]["stem"]["kernel"].shape
    (7, 7, 3, 64)
    >>> print(found.report)
    used 1 of 1 arrays, 9,408 values
  """
  plain: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    stem = re.sub(rf"({_CONV}|{_NORM})_\d+(?=/)", r"\1", name)
    if stem in plain:
      raise ValueError(f"{name} and another array both stand for {stem}")
    plain[stem] = array
  return layout.take(plain, like, LAYOUT, skip)


def to_bit(variables: PyTree) -> dict[str, np.ndarray]:
  """Returns variables of a `bit_*` model as the arrays of such a file.

  Args:
    variables: Raw variables, as `{"params": ...}`.

  Raises:
    ValueError: an array that a Big Transfer model does not have.

  Example:
    >>> head = {"kernel": np.ones((2048, 10)), "bias": np.ones(10)}
    >>> arrays = to_bit({"params": {"head": head}})
    >>> arrays["resnet/head/conv2d/kernel"].shape
    (1, 1, 2048, 10)
  """
  return layout.give(variables, LAYOUT)


def _theirs(paths: Sequence[str]) -> dict[str, str]:
  return {path: f"resnet/{_name(path)}" for path in paths}


def _name(path: str) -> str:
  top, *rest = path.removeprefix("params/").split("/")
  unit = re.fullmatch(r"stage(\d+)_block(\d+)", top)
  if (top, rest) == ("stem", ["kernel"]):
    return f"root_block/{_CONV}/kernel"
  if top == "norm" and rest[0] in _LEAVES:
    return f"{_NORM}/{_LEAVES[rest[0]]}"
  if top == "head":
    return f"head/conv2d/{rest[0]}"
  if unit:
    place = f"block{unit[1]}/unit{int(unit[2]):02d}"
    if rest == ["projection", "kernel"]:
      return f"{place}/a/proj/{_CONV}/kernel"
    part = re.fullmatch(r"(conv|norm)([123])", rest[0])
    if part:
      place = f"{place}/{'abc'[int(part[2]) - 1]}"
      if (part[1], rest[1]) == ("conv", "kernel"):
        return f"{place}/{_CONV}/kernel"
      if part[1] == "norm" and rest[1] in _LEAVES:
        return f"{place}/{_NORM}/{_LEAVES[rest[1]]}"
  raise layout.unknown(path, "bit")


def _to_ours(path: str, ndim: int, array: np.ndarray) -> np.ndarray:
  del path
  # A head of 1x1, and norms that some files store as [1, 1, 1, C].
  unit = array.shape[: max(0, array.ndim - ndim)]
  return array.reshape(array.shape[len(unit) :]) if set(unit) == {1} else array


def _to_theirs(
  path: str, names: Mapping[str, str], array: np.ndarray
) -> np.ndarray:
  del names
  return array[None, None] if path == "params/head/kernel" else array


LAYOUT = layout.Layout("bit", _theirs, _to_ours, _to_theirs)
