"""The kernels that a command works on: `--preset`, `--where` and the like.

A preset is how a published family stores its networks: which arrays are
standardized there, and by which convention. The arrays of a file have names and
no layers, so a preset is safer than the rules of `ws_jax.core.verdicts`.
"""

import argparse
import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from ws_jax.base import names
from ws_jax.core import conventions, kernels
from ws_jax.core.standardize import gains_beside, init_gains

# What timm multiplies the gains of its norm-free networks by: one over the
# spread of the activation of a standard normal input.
GAMMAS = {
  "relu": 1.7139588594436646,
  "gelu": 1.7015043497085571,
  "silu": 1.7881293296813965,
  "none": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published way to store networks with WS.

  Attributes:
    about: Networks that are stored so.
    convention: Name of their convention.
    where: Shell patterns of the kernels that are standardized.
    exclude: Shell patterns of kernels among them that are not.
    gains: Whether each of these kernels has a gain.
  """

  about: str
  convention: str
  where: tuple[str, ...]
  exclude: tuple[str, ...] = ()
  gains: bool = False


_RESNET_V1 = ("*conv_root/kernel", "*conv[123]/kernel", "*conv_proj/kernel")

PRESETS: dict[str, Preset] = {
  "bit": Preset(
    "the .npz files of Big Transfer", "bit", ("*standardized_conv2d*/kernel",)
  ),
  "timm_bit": Preset(
    "BiT and the hybrid ViTs of timm",
    "timm_bit",
    (
      "*stem/conv/weight",
      "*stages/*/conv[123]/weight",
      "*stages/*/downsample/conv/weight",
    ),
  ),
  "timm_nf": Preset(
    "the norm-free networks of timm",
    "timm_scaled",
    (
      "*stem/conv*/weight",
      "*stages/*/conv*/weight",
      "*final_conv/weight",
    ),
    ("*attn*",),
    gains=True,
  ),
  "big_vision": Preset(
    "the ResNets of big_vision in bit.py", "big_vision", _RESNET_V1
  ),
  "vit_hybrid": Preset(
    "the R+ViT files of vision_transformer", "big_vision", _RESNET_V1
  ),
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """The kernels of a file, and how they are standardized.

  Attributes:
    where: Selector of the kernels.
    axes: Rule for their fan-in axes.
    convention: Convention, or None if nobody has said it.
    gamma: Factor of all gains, or None if nobody has said it.
  """

  where: kernels.Selector
  axes: kernels.Axes
  convention: conventions.Convention | None
  gamma: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments that choose kernels."""
  presets = "; ".join(f"{name}: {p.about}" for name, p in PRESETS.items())
  several: dict[str, Any] = {"action": "append", "default": []}
  parser.add_argument(
    "--preset",
    metavar="NAME",
    help=f"the layout of a published file, and with it its kernels and its"
    f" convention. {presets}",
  )
  parser.add_argument(
    "--where",
    **several,
    metavar="GLOB",
    help="the kernels to standardize, by their paths, as 'block*/kernel'; *"
    " crosses /. May be given several times (default: the convolutions)",
  )
  parser.add_argument(
    "--exclude",
    **several,
    metavar="GLOB",
    help="kernels to leave out. May be given several times",
  )
  parser.add_argument(
    "--filters",
    **several,
    metavar="GLOB=AXIS",
    help="the axes that count the filters of these kernels, where the layout"
    " cannot be known: 'up*/weight=1'. May be given several times",
  )
  parser.add_argument(
    "--gamma",
    choices=GAMMAS,
    help="the activation of a norm-free network of timm, whose gains are"
    " multiplied by a constant of it that is not in the file; none where the"
    " activation itself is scaled, as in dm_nfnet_*",
  )


def is_given(given: argparse.Namespace) -> bool:
  """Returns whether any of these arguments was given."""
  names_ = ("preset", "where", "exclude", "filters", "gamma")
  return any(getattr(given, name) for name in names_)


def choose(
  given: argparse.Namespace, leaves: Mapping[str, Any], source: Any
) -> Choice:
  """Returns the kernels that the arguments of a command choose.

  Args:
    given: Arguments of `add_arguments`, and `convention`.
    leaves: Arrays of the file by path.
    source: Path of the file, for messages.

  Raises:
    ValueError: An unknown preset or convention, a pattern that matches nothing,
      or a file of another layout than the preset's; one line.
  """
  preset = None
  name = given.preset
  if name is not None:
    preset = names.lookup(PRESETS, name, "preset")
  named = given.convention or (preset.convention if preset else None)
  convention = None if named is None else conventions.get_convention(named)
  where: kernels.Selector = kernels.conv_kernels
  rules = kernels.filter_axes(given.filters)
  with kernels.seeing(leaves):
    if preset is not None:
      where = _of(_preset_paths(preset, str(name), leaves, source))
    if given.where:
      where = _of(kernels.glob_paths(given.where, leaves))
    if given.exclude:
      where = _without(where, kernels.glob_paths(given.exclude, leaves))
    kernels.glob_paths(rules, leaves)  # for its error
  axes = kernels.axes_by_path(rules)
  gamma = None if given.gamma is None else GAMMAS[given.gamma]
  return Choice(where, axes, convention, gamma)


def gains(choice: Choice, leaves: Mapping[str, Any], source: Any) -> Any:
  """Returns the gains of the chosen kernels that a file holds, or None.

  Raises:
    ValueError: There is a gain beside a kernel that is not chosen, it has
      another size, or its factor is not known; one line.
  """
  with kernels.seeing(leaves):
    chosen = kernels.select(leaves, choice.where)
  for path in leaves:
    if path.rpartition("/")[2] != "gain":
      continue
    scope = path.removesuffix("gain")
    beside = [f"{scope}{name}" for name in ("kernel", "weight", "w")]
    if not any(kernel in chosen for kernel in beside):
      raise ValueError(
        f"{source}: {path} is the gain of a kernel that is not standardized;"
        " give its kernel with --where, or the --preset of the file"
      )
  found = gains_beside(leaves, where=choice.where, axes=choice.axes)
  if choice.gamma is None:
    of_timm = choice.convention == conventions.TIMM_SCALED
    if found and of_timm and any(path.endswith("weight") for path in found):
      raise ValueError(
        f"{source}: timm multiplies these gains by a constant of the"
        " activation, which the file lacks: give --gamma=relu (nf_resnet*),"
        " silu (nfnet_l*, nf_regnet*), gelu (nfnet_f*) or none (dm_nfnet_f*)"
      )
    return found
  if found is None:
    found = init_gains(leaves, where=choice.where, axes=choice.axes)
  return {
    path: jnp.float32(choice.gamma) * gain for path, gain in found.items()
  }


def _preset_paths(
  preset: Preset, name: str, leaves: Mapping[str, Any], source: Any
) -> set[str]:
  """Returns the kernels of a preset; refuses a file of another layout."""
  match = lambda path, globs: any(fnmatch.fnmatchcase(path, g) for g in globs)
  found = {
    path
    for path in leaves
    if match(path, preset.where) and not match(path, preset.exclude)
  }
  if not found:
    raise ValueError(
      f"{source}: has no kernels of the preset {name} ({preset.about}:"
      f" {', '.join(preset.where)}); it holds {_some(list(leaves))}"
    )
  if preset.gains:
    bare = [p for p in found if f"{p.rpartition('/')[0]}/gain" not in leaves]
    if bare:
      raise ValueError(
        f"{source}: has no gain beside {_some(sorted(bare))}, as files of the"
        f" preset {name} have"
      )
  return found


def _some(paths: list[str]) -> str:
  more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
  return ", ".join(paths[:3]) + more


def _of(paths: set[str]) -> kernels.Selector:
  return lambda path, leaf: path in paths


def _without(
  where: Callable[[str, Any], bool], paths: set[str]
) -> kernels.Selector:
  return lambda path, leaf: path not in paths and where(path, leaf)
