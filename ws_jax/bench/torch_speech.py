"""The networks for keywords in PyTorch, with the names of `models.speech`.

Modules have the names of ours, so that weights carry over by name. Like
`torch_side` it runs in a worker and imports nothing of ws_jax.
"""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# From this folder, where the worker finds it; as a part of ws_jax it would
# import JAX.
torch_step = importlib.import_module("torch_step")

# The epsilon of our default convention, for equal losses.
_EPSILON = 1e-10


class Conv(nn.Module):
  """A convolution without bias over one or two axes, with or without WS.

  Weights are standardized as in timm: by `batch_norm` over each filter.

  Args:
    inputs: Number of channels of the input.
    channels: Number of channels of the output.
    size: Size of the kernel along each axis.
    stride: Stride along each axis.
    dilation: Dilation along each axis.
    groups: Number of groups of channels.
    ws: Whether the kernel is standardized.
  """

  def __init__(self, inputs, channels, size, stride, dilation, groups, ws):
    super().__init__()
    self.weight = nn.Parameter(torch.empty(channels, inputs // groups, *size))
    self.how = (stride, dilation, groups)
    around = [d * (n - 1) for n, d in zip(size, dilation, strict=True)]
    self.even = any(total % 2 for total in around)
    self.padding = [total // 2 for total in around]
    # For `functional.pad`, which begins with the last axis.
    self.both = [
      side
      for total in reversed(around)
      for side in (total // 2, total - total // 2)
    ]
    self.ws = ws
    self.function = (functional.conv1d, functional.conv2d)[len(size) - 1]

  def forward(self, x):
    stride, dilation, groups = self.how
    weight = self.weight
    if self.ws:
      rows = weight.reshape(1, len(weight), -1)
      rows = functional.batch_norm(
        rows, None, None, training=True, eps=_EPSILON
      )
      weight = rows.reshape_as(weight)
    padding = self.padding
    if self.even:
      x, padding = functional.pad(x, self.both), [0] * len(padding)
    return self.function(x, weight, None, stride, padding, dilation, groups)


class _Network(nn.Module):
  """The parts that all of them share.

  Args:
    settings: Values of `speech.network`.
    axes: Number of axes that a convolution has.
  """

  def __init__(self, settings: Mapping[str, Any], axes: int):
    super().__init__()
    self.settings, self.axes = settings, axes

  def conv(self, name, inputs, channels, size, stride=1, dilation=1, groups=1):
    """Adds a convolution of that name."""
    each = lambda x: tuple(x) if isinstance(x, (list, tuple)) else (x,)
    full = lambda x: each(x) * (self.axes if len(each(x)) == 1 else 1)
    ws = self.settings["ws"]
    sizes = (full(size), full(stride), full(dilation))
    self.add_module(name, Conv(inputs, channels, *sizes, groups, ws))

  def norm(self, name, channels):
    """Adds a norm of that name."""
    if self.settings["norm"] == "group":
      made = nn.GroupNorm(self.settings["groups"], channels)
    else:
      made = (nn.BatchNorm1d, nn.BatchNorm2d)[self.axes - 1](channels)
    self.add_module(name, made)

  def layer(self, x, conv, norm, relu=True):
    """Applies a convolution and a norm by their names."""
    x = getattr(self, norm)(getattr(self, conv)(x))
    return functional.relu(x) if relu else x


class TCResNet(_Network):
  """`models.speech.TCResNet`, on features `[B, bands, frames]`."""

  def __init__(self, settings: Mapping[str, Any], bands: int):
    super().__init__(settings, 1)
    first, *rest = settings["channels"]
    self.conv("conv0", bands, first, 3)
    self.norm("norm0", first)
    self.blocks, last = [], first
    for i, channels in enumerate(rest, 1):
      name, stride = f"block{i}", 1 if channels == last else 2
      parts = [("1", last, 9, stride), ("2", channels, 9, 1)]
      if stride == 2:
        parts.append(("_shortcut", last, 1, 2))
      for part, inputs, size, step in parts:
        self.conv(f"{name}_conv{part}", inputs, channels, size, step)
        self.norm(f"{name}_norm{part}", channels)
      self.blocks.append((name, stride))
      last = channels
    self.head = nn.Linear(last, settings["outputs"])

  def forward(self, x):
    x = self.layer(x, "conv0", "norm0")
    for name, stride in self.blocks:
      shortcut = x
      if stride == 2:
        shortcut = self.layer(
          x, f"{name}_conv_shortcut", f"{name}_norm_shortcut"
        )
      y = self.layer(x, f"{name}_conv1", f"{name}_norm1")
      y = self.layer(y, f"{name}_conv2", f"{name}_norm2", relu=False)
      x = functional.relu(y + shortcut)
    return self.head(x.float().mean(2))


class Res(_Network):
  """`models.speech.Res`, on features `[B, 1, frames, bands]`."""

  def __init__(self, settings: Mapping[str, Any], bands: int):
    del bands
    super().__init__(settings, 2)
    channels = settings["channels"]
    self.conv("conv0", 1, channels, 3)
    for i in range(1, settings["layers"] + 1):
      dilation = 2 ** ((i - 1) // 3) if settings["dilated"] else 1
      self.conv(f"conv{i}", channels, channels, 3, dilation=dilation)
      self.norm(f"norm{i}", channels)
    self.head = nn.Linear(channels, settings["outputs"])

  def forward(self, x):
    x = functional.relu(self.conv0(x))
    if math.prod(self.settings["pool"]) > 1:
      x = functional.avg_pool2d(x, tuple(self.settings["pool"]))
    block_input = x
    for i in range(1, self.settings["layers"] + 1):
      x = functional.relu(getattr(self, f"conv{i}")(x))
      if i % 2 == 0:
        x = block_input = x + block_input
      x = getattr(self, f"norm{i}")(x)
    return self.head(x.float().mean((2, 3)))


class DSCNN(_Network):
  """`models.speech.DSCNN`, on features `[B, 1, frames, bands]`."""

  def __init__(self, settings: Mapping[str, Any], bands: int):
    del bands
    super().__init__(settings, 2)
    channels = settings["channels"]
    first, second = settings["strides"]
    self.conv("conv0", 1, channels, (10, 4), first)
    self.norm("norm0", channels)
    for i in range(1, settings["layers"] + 1):
      stride = second if i == 1 else 1
      name = f"depthwise_conv{i}"
      self.conv(name, channels, channels, 3, stride, groups=channels)
      self.norm(f"depthwise_norm{i}", channels)
      self.conv(f"conv{i}", channels, channels, 1)
      self.norm(f"norm{i}", channels)
    self.head = nn.Linear(channels, settings["outputs"])

  def forward(self, x):
    x = self.layer(x, "conv0", "norm0")
    for i in range(1, self.settings["layers"] + 1):
      x = self.layer(x, f"depthwise_conv{i}", f"depthwise_norm{i}")
      x = self.layer(x, f"conv{i}", f"norm{i}")
    return self.head(x.float().mean((2, 3)))


NETWORKS = {"tc_resnet": TCResNet, "res": Res, "ds_cnn": DSCNN}


def arrange(features: np.ndarray, family: str) -> torch.Tensor:
  """Returns features `[B, frames, bands]` as a network of a family takes them.

  The layout is changed once, before any step.
  """
  x = torch.from_numpy(features.astype(np.float32))
  if family == "tc_resnet":
    return x.transpose(1, 2).contiguous()
  return x[:, None].contiguous(memory_format=torch.channels_last)


def make(settings: Mapping[str, Any], arrays: Mapping[str, Any]) -> nn.Module:
  """Returns a network with the weights that `ours.Step` wrote.

  Args:
    settings: Settings of the network, as `speech.network` returns them.
    arrays: Arrays of that file.
  """
  family, bands = settings["family"], arrays["inputs"].shape[-1]
  network = NETWORKS[family](settings, bands)
  load(network, arrays)
  return network


def batch(settings: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
  """Returns the features as the network takes them, and the labels."""
  features = arrange(arrays["inputs"], settings["family"])
  return features, torch.from_numpy(arrays["labels"])


def optimizer(network: nn.Module, learning_rate: float) -> Any:
  """Returns SGD as we have it."""
  return torch_step.sgd(network, learning_rate)


def load(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
  """Sets the parameters, from arrays by their path in ws_jax.

  Args:
    network: Network to fill.
    arrays: Arrays by name, as `block1_conv1/kernel`; kernels are HWIO or WIO.
  """
  leaves = {"weight": ("kernel", "scale"), "bias": ("bias",)}
  axes = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}
  for name, value in network.named_parameters():
    owner, _, leaf = name.rpartition(".")
    paths = [f"{owner}/{one}" for one in leaves[leaf]]
    array = next(arrays[path] for path in paths if path in arrays)
    value.data.copy_(torch.from_numpy(array.transpose(axes[array.ndim]).copy()))
