"""Benchmarks: `python scripts/benchmark.py NAME`, one module for each name.

Each has `run(options)`, which returns tables. A contender is a name and a
function without arguments that does its work once and returns the seconds it
took; `timing` takes contenders in turn, wherever they run: in this process, or
behind a pipe in one with other settings or another library (`worker`).
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
  "micro": "one optimizer batch as micro-batches of every size",
  "profile": "where the time of a step goes, against the machine's peaks",
  "memory": "the most memory that a step needs, donation and remat",
}

ARMS = {name: arms.ARMS[name] for name in ("BN", "BN+WS", "GN", "GN+WS")}

LIBRARIES = {
  "flax": "plain Flax code with default settings",
  "torch": "timm's layers in PyTorch, channels last",
  "torch_malloc": "the same, freed memory kept as we have it kept",
  "torch_compile": "the same, forward and loss compiled",
}

DEFAULT_MODEL = "resnet20"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line may change; a benchmark reads what it has use for.

  Attributes:
    model: a name of `ws_jax.models`; None: what the benchmark is for.
    batch_sizes: examples in a step.
    arms: names of `ARMS`.
    rounds: how often each contender is timed; None: what the benchmark takes.
    steps: how many steps a run has, where there are whole runs.
    against: names of `LIBRARIES`.
    settings: name to environment variables, of our own program in a process
      with these, as one more contender.
  """

  model: str | None = None
  batch_sizes: tuple[int, ...] = (64,)
  arms: tuple[str, ...] = tuple(ARMS)
  rounds: int | None = None
  steps: int = 200
  against: tuple[str, ...] = ()
  settings: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True)
class Table:
  """What a benchmark found: a title and rows by column.

  Attributes:
    title: what was measured, with its unit.
    rows: one dict each; the key `seconds`, every single time, is for the file
      and not for the eye.
  """

  title: str
  rows: Sequence[Row]
