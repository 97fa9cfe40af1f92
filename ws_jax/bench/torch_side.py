"""The same networks in PyTorch, made of timm's own layers.

Modules have the names of those in `ws_jax.models`, so that weights carry over
by name. It runs in a worker and imports nothing of ws_jax: no process holds
both JAX and PyTorch.
"""

import functools
import importlib
import importlib.util
import pathlib
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# From this folder, where the worker finds it; as a part of ws_jax it would
# import JAX.
torch_step = importlib.import_module("torch_step")

DEVICE = torch_step.DEVICE


@functools.cache
def _timm_layers() -> tuple[Any, Any]:
  """Imports StdConv2d and GroupNorm of timm, without the rest of timm.

  Its models import torchvision, which must match the build of torch exactly,
  and which nothing here uses.
  """
  spec = importlib.util.find_spec("timm")
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError("no timm: pip install 'ws_jax[bench]'")
  folder = pathlib.Path(spec.origin).parent
  sys.modules["torchvision"] = None  # type: ignore[assignment]
  for name, path in (("timm", folder), ("timm.layers", folder / "layers")):
    package = types.ModuleType(name)
    package.__path__ = [str(path)]
    sys.modules[name] = package
  from timm.layers.fast_norm import set_fast_norm
  from timm.layers.norm import GroupNorm
  from timm.layers.std_conv import StdConv2d

  set_fast_norm()  # In autocast, the dtype of activations for GroupNorm, too.

  return StdConv2d, GroupNorm


class Block(nn.Module):
  """The residual block of `ws_jax.models.resnet`, version 1."""

  def __init__(self, make_conv, make_norm, inputs, convs):
    super().__init__()
    self.depth = len(convs)
    stride, last = 1, inputs
    for i, (channels, size, step) in enumerate(convs, 1):
      self.add_module(f"conv{i}", make_conv(last, channels, size, step))
      self.add_module(f"norm{i}", make_norm(channels))
      stride, last = stride * step, channels
    self.projects = stride > 1 or inputs != last
    if self.projects:
      self.projection = make_conv(inputs, last, 1, stride)
      self.projection_norm = make_norm(last)

  def forward(self, x):
    y = x
    for i in range(1, self.depth + 1):
      y = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(y))
      if i < self.depth:
        y = functional.relu(y)
    if self.projects:
      x = self.projection_norm(self.projection(x))
    return functional.relu(x + y)


class ResNet(nn.Module):
  """The network of `ws_jax.models.ResNet`, with either of two stems."""

  def __init__(self, settings: Mapping[str, Any], inputs: int):
    super().__init__()
    std_conv, group_norm = _timm_layers()

    def make_conv(inputs, channels, size, stride):
      padding = (size - 1) // 2
      if settings["ws"]:
        # The epsilon of our default convention, for equal losses.
        return std_conv(inputs, channels, size, stride, padding, eps=1e-10)
      return nn.Conv2d(inputs, channels, size, stride, padding, bias=False)

    def make_norm(channels):
      if settings["norm"] == "group":
        return group_norm(channels, num_groups=8)
      return nn.BatchNorm2d(channels)

    width = settings["channels"]
    self.pools = settings["stem"] == "imagenet"
    size, stride = (7, 2) if self.pools else (3, 1)
    self.stem = make_conv(inputs, width, size, stride)
    self.stem_norm = make_norm(width)
    last, blocks = width, []
    for stage, size in enumerate(settings["block_sizes"]):
      channels = width * 2**stage
      for i in range(size):
        stride = 2 if stage and not i else 1
        convs = [(channels, 3, stride), (channels, 3, 1)]
        if settings["bottleneck"]:
          convs = [(channels, 1, 1), (channels, 3, stride)]
          convs.append((4 * channels, 1, 1))
        block = Block(make_conv, make_norm, last, convs)
        self.add_module(f"stage{stage + 1}_block{i + 1}", block)
        blocks.append(block)
        last = convs[-1][0]
    self.blocks = blocks  # a plain list: they are registered by name
    self.head = nn.Linear(last, 10)

  def forward(self, x):
    x = functional.relu(self.stem_norm(self.stem(x)))
    if self.pools:
      x = functional.max_pool2d(x, 3, 2, padding=1)
    for block in self.blocks:
      x = block(x)
    return self.head(x.float().mean((2, 3)))

  def load(self, arrays) -> None:
    """Sets the parameters, from arrays by name.

    Args:
      arrays: Arrays by the name in ws_jax, as `stage1_block1/conv1/kernel`;
        kernels are HWIO. Names that are no parameter are ignored.
    """
    own = self.state_dict()
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    for path in arrays:
      *owner, leaf = path.split("/")
      if leaf in names and owner:
        value = torch.from_numpy(arrays[path])
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        own[".".join([*owner, names[leaf]])].copy_(value.permute(axes))


def make(settings: Mapping[str, Any], arrays) -> nn.Module:
  """Returns the network with the weights that `ours.Step` wrote.

  Args:
    settings: Settings `channels`, `block_sizes`, `bottleneck`, `stem`, `norm`,
      `ws` and `dtype`.
    arrays: Arrays of that file.
  """
  network = ResNet(settings, arrays["inputs"].shape[-1])
  network.load(arrays)
  return network


def batch(settings: Mapping[str, Any], arrays) -> tuple[Any, Any]:
  """Returns the images, channels last, and their labels."""
  del settings
  return _images(arrays["inputs"]), torch.from_numpy(arrays["labels"])


def optimizer(network: nn.Module, learning_rate: float) -> Any:
  """Returns SGD as we have it."""
  return torch_step.sgd(network, learning_rate)


class Run:
  """A run from its start to its test accuracy.

  Args:
    network: Settings of the network; see `make`.
    data: Path of a file with the normalized images and the labels of both
      splits.
    steps: Number of steps.
    batch_size: Number of examples in a step, drawn at random.
    learning_rate: Peak of the cosine schedule; the optimizer is `sgd`.
    threads: Number of threads; None for the number of cores of this process.
  """

  def __init__(
    self,
    network: Mapping[str, Any],
    data: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    threads: int | None = None,
  ):
    torch_step.set_up(threads)
    with np.load(data, allow_pickle=False) as file:
      self.arrays = dict(file)
    self.steps, self.batch_size = steps, batch_size
    self.network = ResNet(network, self.arrays["train_image"].shape[-1])
    self.network.to(DEVICE, memory_format=torch.channels_last)
    self.optimizer = optimizer(self.network, learning_rate)

  def __call__(self) -> float:
    """Trains, and returns the test accuracy."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
      self.optimizer, self.steps
    )
    rng = np.random.default_rng(0)
    for _ in range(self.steps):
      chosen = rng.integers(0, len(self.arrays["train_label"]), self.batch_size)
      self.optimizer.zero_grad(set_to_none=True)
      outputs = self.network(_images(self.arrays["train_image"][chosen]))
      labels = torch.from_numpy(self.arrays["train_label"][chosen]).long()
      functional.cross_entropy(outputs, labels.to(DEVICE)).backward()
      self.optimizer.step()
      schedule.step()
    return self._evaluate()

  @torch.no_grad()
  def _evaluate(self) -> float:
    self.network.eval()
    correct, labels = 0, self.arrays["test_label"]
    for i in range(0, len(labels), 500):
      outputs = self.network(_images(self.arrays["test_image"][i : i + 500]))
      found = outputs.argmax(1).cpu().numpy()
      correct += int((found == labels[i : i + 500]).sum())
    return correct / len(labels)


class Standardize:
  """Weight Standardization as in timm, by `batch_norm`: both passes.

  Args:
    shapes: Shapes of the kernels, HWIO.
  """

  def __init__(self, shapes: Sequence[Sequence[int]]):
    torch_step.set_up()
    generator = torch.Generator().manual_seed(0)
    make = lambda h, w, i, o: torch.randn(o, i, h, w, generator=generator)
    kernels = [0.05 * make(*shape).to(DEVICE) for shape in shapes]
    self.kernels = [kernel.requires_grad_() for kernel in kernels]
    self.cotangents = [torch.ones_like(kernel) for kernel in kernels]

  def __call__(self) -> float:
    """Does both passes over all kernels; returns the seconds."""
    began = time.perf_counter()
    effective = []
    for kernel in self.kernels:
      kernel.grad = None
      rows = kernel.reshape(1, len(kernel), -1)
      rows = functional.batch_norm(rows, None, None, training=True, eps=1e-6)
      effective.append(rows.reshape_as(kernel))
    torch.autograd.backward(effective, self.cotangents)
    if DEVICE == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - began


class Norm:
  """GroupNorm (8 groups) or BatchNorm, forward and backward.

  Args:
    kind: `group` or `batch`.
    shape: Shape of the input, NHWC.
  """

  def __init__(self, kind: str, shape: Sequence[int]):
    torch_step.set_up()
    channels = shape[-1]
    group = kind == "group"
    self.layer = (
      nn.GroupNorm(8, channels) if group else nn.BatchNorm2d(channels)
    )
    self.layer.to(DEVICE)
    self.x = _images(np.random.default_rng(0).normal(size=shape))
    self.dy = _images(np.random.default_rng(1).normal(size=shape))
    self.x.requires_grad_()

  def __call__(self) -> float:
    """Does both passes; returns the seconds."""
    began = time.perf_counter()
    self.x.grad = None
    self.layer.zero_grad(set_to_none=True)
    self.layer(self.x).backward(self.dy)
    if DEVICE == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - began


class Conv:
  """One pass of a convolution without bias.

  Args:
    inputs: Shape of the input, NHWC.
    kernel: Shape of the kernel, HWIO.
    stride: Stride in both directions.
    which: `forward`, `input gradient` or `filter gradient`.
  """

  def __init__(
    self,
    inputs: Sequence[int],
    kernel: Sequence[int],
    stride: int,
    which: str,
  ):
    torch_step.set_up()
    rng = np.random.default_rng(0)
    self.x = _images(rng.normal(size=inputs))
    self.kernel = _images(rng.normal(size=[kernel[i] for i in (3, 0, 1, 2)]))
    self.how = ([stride] * 2, [(kernel[0] - 1) // 2] * 2, [1, 1])
    y = functional.conv2d(self.x, self.kernel, None, *self.how)
    self.dy = torch.randn_like(y)  # in its memory format, too
    self.which = which

  def __call__(self) -> float:
    """Does the pass; returns the seconds."""
    began = time.perf_counter()
    self._pass()
    if DEVICE == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - began

  def _pass(self) -> None:
    if self.which == "forward":
      functional.conv2d(self.x, self.kernel, None, *self.how)
      return
    wanted = [self.which == "input gradient", self.which != "input gradient"]
    torch.ops.aten.convolution_backward(
      self.dy,
      self.x,
      self.kernel,
      None,
      *self.how,
      False,
      [0, 0],
      1,
      [*wanted, False],
    )


def _images(nhwc: np.ndarray) -> torch.Tensor:
  images = torch.from_numpy(nhwc.astype(np.float32)).permute(0, 3, 1, 2)
  return images.to(DEVICE, memory_format=torch.channels_last)
