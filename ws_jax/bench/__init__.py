"""Benchmarks: `python scripts/benchmark.py NAME`, one module for each name.

Each module has `run(options)`, which returns tables. Start reading at `step`,
the simplest. A contender is a function without arguments that does its work
once and returns the seconds it took. `timing` calls the contenders in turn.
Some run in this process; those with other settings or another library run in a
process of their own, behind a pipe (`worker`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ws_jax.sweep import arms

BENCHMARKS = {
  "step": "a training step of each arm, against PyTorch and plain Flax",
  "cost": "time and memory of a step of each arm, against the batch size",
  "ws": "Weight Standardization over all kernels of a network",
  "norm": "GroupNorm and BatchNorm, forward and backward, with their error",
  "input": "how long the device waits for its input",
  "compile": "from the start of a process to its first finished step",
  "sweep": "runs per hour, against one process for each run",
  "fold": "inference with folded weights",
  "export": "exported networks: size, time to write, read and call",
  "micro": "one optimizer batch as micro-batches of every size",
  "scaling": "memory and communication of a step, against devices; compiles",
  "profile": "where the time of a step goes, against the machine's peaks",
  "memory": "the most memory that a step needs, donation and remat",
}

_IMAGES = ("BN", "BN+WS", "GN", "GN+WS")
_TEXT = ("LN", "LN+WS", "RMS", "RMS+WS", "no norm", "WS")
ARMS = {name: arms.ARMS[name] for name in (*_IMAGES, *_TEXT)}
# What `configs/austen.py` standardizes with. Without the scale the outputs of
# attention's query and key are so large that rounding decides where it looks.
ARMS |= {
  f"{norm}+scaled WS": arms.ARMS[f"{norm}+WS"]
  | {"model.ws_convention": "timm_scaled"}
  for norm in ("LN", "RMS")
}

LIBRARIES = {
  "flax": "plain Flax code with default settings",
  "torch": "timm's layers in PyTorch, channels last",
  "torch_malloc": "torch, with freed memory kept as ours is",
  "torch_compile": "torch, with forward and loss compiled",
  "torch_graphs": "torch_compile, replaying CUDA graphs",
}

DEFAULT_MODEL = "resnet20"
# Where they are not `_IMAGES`.
_ARMS_OF = {
  "transformer_lm": ("LN", "LN+scaled WS"),
  "transformer_classifier": ("LN", "LN+scaled WS"),
  "text_cnn": ("no norm", "WS"),
}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """The settings of the command line; each benchmark reads those it can use.

  Attributes:
    model: Name of a model in `ws_jax.models`; None for the benchmark's own.
    batch_sizes: Numbers of examples in a step; one table for each.
    arms: Names in `ARMS`.
    rounds: Number of times each contender is timed; None for the benchmark's
      own.
    steps: Number of steps of a run, in benchmarks that do whole runs.
    stacks: Numbers of runs in one program, in `sweep`; () for none together.
    source: Where `input` gets its images: "memory" or "stream".
    workers: Numbers of workers of the loaders of `input`, streamed.
    photographs: Folders with photographs to cut its images from; () for where
      Debian puts them.
    examples: Number of these images.
    against: Names in `LIBRARIES`.
    dtype: Dtype of the activations.
    size: Height and width of images; beyond those of CIFAR models have the stem
      that they were published with.
    settings: Environment variables by name. Each name is one more contender:
      our program in a process with these variables.
  """

  model: str | None = None
  batch_sizes: tuple[int, ...] = (64,)
  arms: tuple[str, ...] = _IMAGES
  rounds: int | None = None
  steps: int = 200
  stacks: tuple[int, ...] = ()
  source: str = "memory"
  workers: tuple[int, ...] = (1, 2)
  photographs: tuple[str, ...] = ()
  examples: int = 400
  against: tuple[str, ...] = ()
  dtype: str = "float32"
  size: int = 32
  settings: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )


def arms_of(model: str | None) -> tuple[str, ...]:
  """Returns the arms of a model that are timed by default.

  Example:
    >>> arms_of("text_cnn")
    ('no norm', 'WS')
  """
  return _ARMS_OF.get(model or DEFAULT_MODEL, _IMAGES)


@dataclasses.dataclass(frozen=True)
class Table:
  """The result of a benchmark: a title and rows.

  Attributes:
    title: Description of what was measured, with its unit.
    rows: One dict for each row, by column. The key `seconds` holds every single
      time; it is written to files and not printed.
  """

  title: str
  rows: Sequence[Row]
