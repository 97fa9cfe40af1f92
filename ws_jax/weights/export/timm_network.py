"""Folded weights in PyTorch: timm's networks with plain convolutions.

    network = timm_network.load("x.safetensors")
    logits = network.eval()(images)  # [N, C, H, W], normalized

A folded kernel goes into a plain convolution; timm's own that standardize would
do so a second time.
"""

import importlib
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ws_jax import models
from ws_jax.base import extras
from ws_jax.models.normfree import ACTIVATIONS, NFNet
from ws_jax.weights import formats
from ws_jax.weights.export import network

# timm's names by ours.
NAMES = {
  **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
  **{name: name for name in ("resnet152", "resnet50_gn")},
  **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(4)},
  **{f"nf_resnet{i}": f"nf_resnet{i}" for i in (26, 50, 101)},
  **{f"nfnet_f{i}": f"dm_nfnet_f{i}" for i in range(3)},
  **{
    f"bit_r{shape}": f"resnetv2_{shape}_bit"
    for shape in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")
  },
}
# Keys of `config.model` that change nothing of a trained network.
_NO_MATTER = (
  *("name", "ws", "ws_convention", "ws_where", "ws_depthwise", "ws_axes"),
  *("ws_gains", "norm_batch_size", "scan", "remat_keep"),
  *("norm_momentum", "dropout", "stochastic_depth", "remat", "dtype"),
)


def name_of(model: Mapping[str, Any]) -> str:
  """Returns timm's name of a network; "" if it has none like it.

  Args:
    model: The `config.model` of a run.

  Example:
    >>> name_of({"name": "nf_resnet50", "width": 0.5})
    ''
  """
  name = model["name"]
  if name not in NAMES:
    return ""
  published = {key: one.default for key, one in models.keys(name).items()}
  no_matter = set(_NO_MATTER)
  if "norm" in published and not name.startswith(("bit_", "resnet50_gn")):
    published["norm"] = "batch"
    no_matter |= {"num_groups", "channels_per_group"}
  same = all(
    model.get(key, value) == value
    for key, value in published.items()
    if key not in no_matter
  )
  return NAMES[name] if same else ""


def factor_of(model: Any) -> float:
  """Returns the factor that timm has in the kernels of a model of ours.

  It has that of the activation there in `nf_resnet*`, and ours behind each
  activation.

  Args:
    model: Module of ours.
  """
  if isinstance(model, NFNet) and model.scaled_stem:
    return ACTIVATIONS[model.activation][1]
  return 1.0


def load(path: str | pathlib.Path) -> Any:
  """Returns a network of timm with the folded weights of a file.

  Args:
    path: Path of the `.safetensors` file that `weights export` has written.

  Raises:
    ValueError: the file is of no network that timm has.
    MissingExtra: PyTorch or timm is not installed.
  """
  extras.need("bench", by="a network of timm")
  torch: Any = importlib.import_module("torch")
  timm = _import_timm(torch)
  path = pathlib.Path(path)
  about = network.loads(formats.read_note(path), path)
  if not about.get("timm"):
    raise ValueError(f"{path}: timm has no network like {about['model']}")
  made = timm.create_model(
    about["timm"],
    num_classes=about["output"]["shape"][-1],
    in_chans=about["input"]["shape"][-1],
  )
  _make_plain(made, torch, timm)
  arrays = formats.read(path)
  made.load_state_dict(
    {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
  )
  return made.eval()


def read(path: pathlib.Path) -> network.Network:
  """Reads a network, to be called with images `[N, H, W, C]`.

  Raises:
    ValueError: as `load`.
    MissingExtra: as `load`.
  """
  made = load(path)
  torch: Any = importlib.import_module("torch")
  timm: Any = importlib.import_module("timm")

  def call(inputs: np.ndarray) -> np.ndarray:
    images = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
    with torch.no_grad():
      return made(torch.from_numpy(images)).numpy()

  return network.Network(
    about=json.loads(formats.read_note(path)),
    call=call,
    runtime=f"timm {timm.__version__} on PyTorch {torch.__version__}",
  )


def _import_timm(torch: Any) -> Any:
  """Imports timm, beside a torchvision that was built for another torch, too.

  timm needs nothing of torchvision for its networks, but imports it.
  """
  try:
    importlib.import_module("torchvision")
  except RuntimeError:  # operators of its compiled half are missing
    for module in [m for m in sys.modules if m.startswith("torchvision")]:
      del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
      library.define(
        f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
      )
    _kept.append(library)
  except ImportError:
    pass  # timm says what it needs
  return importlib.import_module("timm")


_kept: list[Any] = []  # An operator is gone with the library that defined it.


def _make_plain(module: Any, torch: Any, timm: Any) -> None:
  """Puts plain convolutions in the place of those that standardize."""
  for name, child in module.named_children():
    if "StdConv2d" not in type(child).__name__:
      _make_plain(child, torch, timm)
      continue
    same = getattr(child, "same_pad", False)
    make = timm.layers.Conv2dSame if same else torch.nn.Conv2d
    plain = make(
      child.in_channels,
      child.out_channels,
      child.kernel_size,
      stride=child.stride,
      padding=0 if same else child.padding,
      dilation=child.dilation,
      groups=child.groups,
      bias=child.bias is not None,
    )
    setattr(module, name, plain)
