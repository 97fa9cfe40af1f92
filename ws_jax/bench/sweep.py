"""`sweep`: runs per hour, against one process for each run."""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ws_jax import data
from ws_jax.bench import ARMS, Options, Table, timing
from ws_jax.bench.others import network, side
from ws_jax.bench.worker import Worker

LEARNING_RATES = (0.03, 0.1, 0.3, 1.0)
_SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "sweep.py"
# No augmentation, no checkpoints, one evaluation: as in the other libraries.
_EXPERIMENT = """
from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model={model},batch_size={batch_size},"
  "crop_padding=0,flip=false,train.steps={steps},"
  "train.eval_every_steps={steps},keep_checkpoints=0"
)


def sweep():
  return product(
    {arms}, **{{"seed": {seeds}, "optim.learning_rate": {rates}}}
  )
"""


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size; every contender does the whole grid.

  Raises:
    ValueError: `torch_compile` is asked for; it would compile in each run, and
      do little else.
  """
  if "torch_compile" in options.against:
    raise ValueError("sweep: --against=torch_compile has no whole run")
  return [_table(options, batch_size) for batch_size in options.batch_sizes]


def _table(options: Options, batch_size: int) -> Table:
  model = options.model or "resnet8"
  seeds = range(-(-max(options.stacks, default=1) // len(LEARNING_RATES)))
  grid = list(itertools.product(options.arms, seeds, LEARNING_RATES))
  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    images = str(pathlib.Path(folder, "images.npz"))
    write_images(images)
    common = {"data": images, "steps": options.steps, "batch_size": batch_size}

    def whole_sweep(workers: int, stack: int = 1) -> timing.Contender:
      return lambda: _sweep(
        model, options, batch_size, workers, list(seeds), stack
      )

    def processes(library: str, at_once: int) -> timing.Contender:
      def one(cell):
        arm, _, rate = cell
        module, env = side(library)
        arguments: dict[str, Any] = common | {"learning_rate": rate}
        if library == "flax":
          arguments |= {"model": model, "arm": arm}
        else:
          arguments["network"] = network(model, arm)
          arguments["threads"] = max(1, cores // at_once)
        with Worker(env) as worker:
          return worker.call(worker.make(module, "Run", **arguments))

      def contender():
        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
          list(pool.map(one, grid))
        return time.perf_counter() - began

      return contender

    contenders: dict[str, timing.Contender] = {"ours": whole_sweep(1)}
    if cores > 1 and not options.stacks:
      contenders[f"ours, {cores} workers"] = whole_sweep(cores)
    for stack in options.stacks:
      contenders[f"ours, {stack} in a program"] = whole_sweep(1, stack)
    for library in options.against:
      for at_once in dict.fromkeys((1, cores)):
        name = f"{library}, a process a run, {at_once} at once"
        contenders[name] = processes(library, at_once)
    seconds = timing.interleave(contenders, options.rounds or 1, warmup=0)
  rows = timing.rows(seconds, against="ours")
  for row in rows:
    row["runs/h"] = len(grid) * 3600 / (row["median ms"] / 1e3)
  return Table(
    f"sweep: {model}, {len(grid)} runs of {options.steps} steps, batch"
    f" {batch_size}, no program compiled before",
    rows,
  )


def _sweep(
  model: str,
  options: Options,
  batch_size: int,
  workers: int,
  seeds: list[int],
  stack: int,
) -> float:
  """Runs a sweep by its command, with an empty cache; returns the seconds."""
  with tempfile.TemporaryDirectory() as folder:
    experiment = pathlib.Path(folder, "experiment.py")
    arms = [ARMS[arm] for arm in options.arms]
    text = _EXPERIMENT.format(
      model=model,
      batch_size=batch_size,
      steps=options.steps,
      arms=arms,
      seeds=seeds,
      rates=list(LEARNING_RATES),
    )
    experiment.write_text(text)
    began = time.perf_counter()
    done = subprocess.run(
      [
        sys.executable,
        str(_SCRIPT),
        f"--experiment={experiment}",
        f"--out={folder}/out",
        f"--workers={workers}",
        f"--stack={stack}",
      ],
      env=os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"},
      capture_output=True,
      text=True,
    )
    if done.returncode:
      raise ValueError(f"scripts/sweep.py failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def write_images(path: str) -> None:
  """Writes the embedded images, normalized, for programs without ws_jax."""
  dataset = data.load(data.Request("fashion_mnist_10k"))
  mean, std = (np.asarray(x, np.float32) for x in (dataset.mean, dataset.std))
  arrays: dict[str, Any] = {}
  for split, part in (("train", dataset.train), ("test", dataset.test)):
    arrays[f"{split}_image"] = (part["image"] / np.float32(255) - mean) / std
    arrays[f"{split}_label"] = part["label"]
  np.savez(path, **arrays)
