"""The names of timm's state dicts, of its files in safetensors.

The paths of ours tell which of its models it is:

    ours                          timm                         a block of it
    resnet50, resnet50_gn         of the same name             layer1.0
    resnet50 of version 2, bit_*  resnetv2_50, resnetv2_*_bit  stages.0.blocks.0
    efficientnet_b0               of the same name             blocks.0.0
    nf_resnet50, nfnet_f0         nf_resnet50, dm_nfnet_f0     stages.0.0

Kernels are `[out, in, H, W]` there, those of dense layers `[out, in]`, and
gains `[out, 1, 1, 1]`. What is dense here may be a 1x1 convolution there: the
head of `resnetv2_*`, and squeeze-and-excitation.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ws_jax.weights import layout
from ws_jax.weights.layout import Arrays, Imported, PyTree

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "gain": "gain",
  "skip_gain": "skipinit_gain",
  "mean": "running_mean",
  "var": "running_var",
}
# What is dense here, and a 1x1 convolution there.
_CONV_1X1 = re.compile(r"attn_last\.fc[12]|se\.conv_(reduce|expand)")

# Modules by the names of ours: those around the blocks, and those of a block.
_RESNET = (
  {"stem": "conv1", "stem_norm": "bn1", "head": "fc"},
  {f"norm{i}": f"bn{i}" for i in (1, 2, 3)}
  | {"projection": "downsample.0", "projection_norm": "downsample.1"},
)
_RESNETV2 = (
  {"stem": "stem.conv", "norm": "norm", "head": "head.fc"},
  {f"norm{i}": f"norm{i}" for i in (1, 2, 3)}
  | {"projection": "downsample.conv"},
)
_EFFICIENTNET = (
  {
    "stem": "conv_stem",
    "stem_norm": "bn1",
    "final": "conv_head",
    "final_norm": "bn2",
    "head": "classifier",
  },
  {
    "depthwise": "conv_dw",
    "squeeze_excite/squeeze": "se.conv_reduce",
    "squeeze_excite/excite": "se.conv_expand",
  },
)
# The rest of a block, by whether it widens its input.
_WIDENS = {
  True: {
    "expand": "conv_pw",
    "expand_norm": "bn1",
    "depthwise_norm": "bn2",
    "project": "conv_pwl",
    "project_norm": "bn3",
  },
  False: {"depthwise_norm": "bn1", "project": "conv_pw", "project_norm": "bn2"},
}
_NFNET = (
  {
    "stem": "stem.conv",
    **{f"stem{i}": f"stem.conv{i}" for i in (1, 2, 3, 4)},
    "final": "final_conv",
    "head": "head.fc",
  },
  {
    "projection": "downsample.conv",
    "squeeze_excite/squeeze": "attn_last.fc1",
    "squeeze_excite/excite": "attn_last.fc2",
  },
)
_CONVS = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}
_FOUR_CONVS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv2b"}
_FOUR_CONVS |= {"conv4": "conv3"}


def from_timm(
  arrays: Arrays, like: PyTree, *, skip: Sequence[str] = ()
) -> Imported:
  """Returns the arrays of a state dict of timm as variables of a model here.

  Args:
    arrays: Arrays by name, as of a safetensors file.
    like: Variables of the model, or their shapes. Where timm's model has batch
      normalization, so must this one.
    skip: Shell patterns of our paths that are left out, as `params/head/*`.

  Raises:
    ValueError: an array is missing or wrong, or timm has no such model.

  Example:
    >>> stem = {"kernel": np.zeros((7, 7, 3, 64))}
    >>> like = {"params": {"stem": stem, "stem_norm": {"scale": np.zeros(64)}}}
    >>> kernel, scale = np.ones((64, 3, 7, 7)), np.ones(64)
    >>> arrays = {"conv1.weight": kernel, "bn1.weight": scale}
    >>> from_timm(arrays, like).variables["params"]["stem"]["kernel"].shape
    (7, 7, 3, 64)
  """
  return layout.take(arrays, like, LAYOUT, skip)


def to_timm(variables: PyTree) -> dict[str, np.ndarray]:
  """Returns variables of a model as the arrays of a state dict of timm.

  Args:
    variables: Raw variables, as `{"params": ..., "batch_stats": ...}`.

  Raises:
    ValueError: an array that timm's model does not have.

  Example:
    >>> params = {
    ...   "stem": {"kernel": np.ones((7, 7, 3, 64))},
    ...   "stem_norm": {"scale": np.ones(64)},
    ... }
    >>> {name: x.shape for name, x in to_timm({"params": params}).items()}
    {'conv1.weight': (64, 3, 7, 7), 'bn1.weight': (64,)}
  """
  return layout.give(variables, LAYOUT)


def _theirs(paths: Sequence[str]) -> dict[str, str]:
  split = {path: path.split("/", 1)[1].rpartition("/") for path in paths}
  modules = {module for module, _, _ in split.values()}
  names = {}
  for path, (module, _, leaf) in split.items():
    found = _module(module, modules)
    if found is None or leaf not in _LEAVES:
      raise layout.unknown(path, "timm")
    names[path] = f"{found}.{_LEAVES[leaf]}"
  return names


def _module(module: str, modules: Collection[str]) -> str | None:
  """Returns timm's name of one of our modules; None if it has none."""
  top, _, inner = module.partition("/")
  unit = re.fullmatch(r"stage(\d+)_block(\d+)", top)
  has = lambda name: f"{top}/{name}" in modules
  if any(name.endswith("/depthwise") for name in modules):
    (around, inside), block = _EFFICIENTNET, "blocks.{1}.{2}"
    inside = inside | _WIDENS[has("expand")]
  elif "norm" in modules:
    (around, inside), block = _RESNETV2, "stages.{1}.blocks.{2}"
    inside = inside | _CONVS
  elif "stem_norm" in modules:
    (around, inside), block = _RESNET, "layer{0}.{2}"
    inside = inside | _CONVS
  else:
    (around, inside), block = _NFNET, "stages.{1}.{2}"
    inside = inside | (_FOUR_CONVS if has("conv4") else _CONVS)
  if unit is None:
    return around.get(module)
  stage, number = int(unit[1]), int(unit[2])
  place = block.format(stage, stage - 1, number - 1)
  if not inner:
    return place
  return f"{place}.{inside[inner]}" if inner in inside else None


def _to_ours(path: str, ndim: int, array: np.ndarray) -> np.ndarray:
  if path.endswith("/gain") and array.shape[1:] == (1, 1, 1):
    return array[:, 0, 0, 0]
  if not path.endswith("/kernel"):
    return array
  if ndim == 2 and array.shape[2:] == (1, 1):
    array = array[:, :, 0, 0]
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_theirs(
  path: str, names: Mapping[str, str], array: np.ndarray
) -> np.ndarray:
  name = names[path]
  if name.endswith(".gain"):
    return array[:, None, None, None]
  if not path.endswith("/kernel"):
    return array
  if array.ndim == 4:
    return array.transpose(3, 2, 0, 1)
  # Two families call their head so; that with a norm before it is resnetv2.
  head = name == "head.fc.weight" and "norm.weight" in names.values()
  return (
    array.T[:, :, None, None] if head or _CONV_1X1.search(name) else array.T
  )


LAYOUT = layout.Layout(
  "timm", _theirs, _to_ours, _to_theirs, no_use=("num_batches_tracked",)
)
