"""Times what ws_jax does, contenders interleaved in one process.

  python scripts/benchmark.py step --batch_size=64
  python scripts/benchmark.py step --model=resnet18 --json=step.json

`step` is a whole training step (gather, augmentation, forward, backward,
update) of BN, GN, GN+WS and BN+WS on the embedded images. Each round times
every contender once, so a drift of the machine meets all of them; the median
of the ratios within rounds is what to quote.
"""

import json
import pathlib
import platform
import statistics
import time

import jax
from absl import app, flags, logging
from rich import box, console, table

from ws_jax import backend, config, data, train
from ws_jax import step as steps

ARMS = {
  "BN": {"model.norm": "batch", "model.ws": False},
  "BN+WS": {"model.norm": "batch", "model.ws": True},
  "GN": {"model.norm": "group", "model.ws": False},
  "GN+WS": {"model.norm": "group", "model.ws": True},
}

_MODEL = flags.DEFINE_string("model", "resnet20", "Name of the model.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Examples in a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Times each contender is timed.")
_JSON = flags.DEFINE_string("json", None, "File for every single time, too.")


class Contender:
  """One arm: its program and state, and the seconds of each step."""

  def __init__(self, overrides: dict):
    c = config.load("configs/fashion_mnist_10k.py")
    overrides = overrides | {
      "model.name": _MODEL.value,
      "data.batch_size": _BATCH_SIZE.value,
      # No step is the last: at learning rate 0 the weights would stand still.
      "train.steps": 1_000_000,
    }
    self.config, dataset, self.program = train.prepare(
      config.apply(c, overrides)
    )
    self.arrays = jax.device_put(dataset.train)
    o = self.config.optim
    numbers = {
      "learning_rate": o.learning_rate,
      "weight_decay": o.weight_decay,
      "momentum": o.momentum,
    }
    self.state: steps.TrainState = steps.init_state(
      self.program, self.arrays, 0, numbers
    )
    self.done, self.seconds = 0, []

  def step(self) -> float:
    """One step, waited for; its seconds."""
    indices = data.batch_indices(
      0, self.done, 1, _BATCH_SIZE.value, len(self.arrays["label"])
    )
    began = time.perf_counter()
    self.state = steps.train_block(
      self.program, self.state, self.arrays, indices[:, None]
    )
    jax.block_until_ready(self.state)
    self.done += 1
    return time.perf_counter() - began


def bench_step() -> dict:
  """Every arm, `--rounds` times in turn."""
  contenders = {name: Contender(arm) for name, arm in ARMS.items()}
  for contender in contenders.values():
    contender.step()  # compiles
  for _ in range(_ROUNDS.value):
    for contender in contenders.values():
      contender.seconds.append(contender.step())
  return {name: contender.seconds for name, contender in contenders.items()}


def show(seconds: dict[str, list[float]], against: str) -> None:
  """A table of medians, spread, and ratios to `against` round by round."""
  columns = ("", "median ms", "min", "max", "images/s", f"time / {against}")
  shown = table.Table(*columns, box=box.MARKDOWN)
  for name, times in seconds.items():
    median = statistics.median(times)
    ratios = [a / b for a, b in zip(times, seconds[against], strict=True)]
    shown.add_row(
      name,
      *(f"{1e3 * x:.1f}" for x in (median, min(times), max(times))),
      f"{_BATCH_SIZE.value / median:.0f}",
      f"{statistics.median(ratios):.3f}",
    )
  console.Console(width=100).print(shown)


def main(argv: list[str]) -> None:
  """Runs the benchmark that is named first."""
  if argv[1:] != ["step"]:
    raise app.UsageError(f"expected the name of a benchmark: {argv[1:]}: step")
  logging.set_verbosity(logging.WARNING)
  about = backend.describe() | {"processor": platform.processor()}
  print(json.dumps(about))
  print(f"{_MODEL.value}, batch {_BATCH_SIZE.value}, {_ROUNDS.value} rounds")
  seconds = bench_step()
  show(seconds, against="BN")
  if _JSON.value:
    record = {"about": about, "seconds": seconds}
    pathlib.Path(_JSON.value).write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
  app.run(main)
