"""A training step in PyTorch, of any network of which there is a twin.

A twin is a module in this folder with three functions: `make` returns the
network of an arm with our first weights, `batch` the inputs and the labels that
our step begins with, and `optimizer` the optimizer. Like them this runs in a
worker and imports nothing of ws_jax.
"""

import importlib
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Modes of `torch.compile`: its default, and one that replays CUDA graphs.
MODES = {"torch_compile": "default", "torch_graphs": "reduce-overhead"}
# Number of steps between two waits for a GPU; ours waits after as many.
_STEPS_ON_GPU = 10


class Step:
  """A training step on a batch that is ready: forward, backward, update.

  Args:
    twin: Name of the module with the twin.
    network: Settings of the network, as the twin takes them. With `dtype`
      bfloat16, forward pass and loss run in autocast.
    weights: Path of the file that `ours.Step` wrote.
    learning_rate: Learning rate of the twin's optimizer.
    micro_batch_size: Number of examples in a micro-batch; None for the whole
      batch.
    library: Name in `MODES` of how `torch.compile` compiles forward pass and
      loss; others do not compile.
    checked_steps: Number of steps done when it is made; their losses are kept.

  Attributes:
    losses: Losses of these first steps.
    count: Number of steps that a call does.
  """

  def __init__(
    self,
    twin: str,
    network: Mapping[str, Any],
    weights: str,
    learning_rate: float,
    micro_batch_size: int | None = None,
    library: str = "torch",
    checked_steps: int = 3,
  ):
    set_up()
    module = importlib.import_module(twin)
    with np.load(weights, allow_pickle=False) as file:
      arrays = dict(file)
    inputs, labels = module.batch(network, arrays)
    self.inputs, self.labels = inputs.to(DEVICE), labels.long().to(DEVICE)
    self.micro = micro_batch_size or len(labels)
    self.low = network.get("dtype") == "bfloat16"
    # Of a network over images; the axes of others do not ask for it.
    layout = torch.channels_last if inputs.ndim == 4 else torch.preserve_format
    self.network = module.make(network, arrays)
    self.network.to(DEVICE, memory_format=layout)
    self.optimizer = module.optimizer(self.network, learning_rate)
    self.loss = self._loss
    if library in MODES:
      self.loss = torch.compile(self._loss, mode=MODES[library])
    self.count = _STEPS_ON_GPU if DEVICE == "cuda" else 1
    self.losses = [self._step() for _ in range(checked_steps)]

  def __call__(self) -> float:
    """Does `count` steps, waits for them, and returns the seconds."""
    began = time.perf_counter()
    for _ in range(self.count):
      self._step(ask=False)
    if DEVICE == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - began

  def _step(self, ask: bool = True) -> float:
    """Does a step; returns its loss if asked to, which waits for it."""
    self.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for inputs, labels in zip(
      self.inputs.split(self.micro), self.labels.split(self.micro), strict=True
    ):
      loss = self.loss(inputs, labels)
      if len(labels) < len(self.labels):
        loss = loss * (len(labels) / len(self.labels))
      loss.backward()
      if ask:
        total += loss.item()
    self.optimizer.step()
    return total

  def _loss(self, inputs, labels):
    with torch.autocast(DEVICE, torch.bfloat16, enabled=self.low):
      logits = self.network(inputs)
    return functional.cross_entropy(
      logits.float().flatten(0, -2), labels.flatten()
    )


def set_up(threads: int | None = None) -> None:
  """Sets up PyTorch to be as fast as it can be, at the precision of JAX.

  On a GPU both compute float32 products and convolutions in TF32: JAX does so
  by default, PyTorch for convolutions alone.

  Args:
    threads: Number of threads; None for the number of cores of this process.
  """
  torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
  if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def sgd(network: torch.nn.Module, learning_rate: float) -> Any:
  """Returns SGD with Nesterov momentum 0.9 and weight decay on kernels."""
  kernels = [p for p in network.parameters() if p.ndim > 1]
  others = [p for p in network.parameters() if p.ndim == 1]
  return torch.optim.SGD(
    [
      {"params": kernels, "weight_decay": 5e-4},
      {"params": others, "weight_decay": 0.0},
    ],
    lr=learning_rate,
    momentum=0.9,
    nesterov=True,
    fused=True,
  )
