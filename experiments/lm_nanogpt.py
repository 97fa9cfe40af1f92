"""What does a language model here reach, beside nanoGPT's recipe in PyTorch?

Question: how many bits per byte does the decoder of configs/austen.py need for
the beginning of Persuasion, with and without scaled WS, and how many does a
decoder in PyTorch that is trained as nanoGPT trains it, with as many
parameters, steps and tokens, in which time? A byte 5-gram has 2.18.

Scientific parameters: the program; scaled WS with gains.
Nuisance parameters: the learning rate, chosen for each arm on Northanger Abbey
  with a tenth of the steps. One seed.
Fixed parameters: four blocks of 128 channels with four heads, rows of 256
  bytes, batch 16, weight decay 0.1, clipping at 1. Rows, loss and bytes of the
  evaluation are the same.

  python experiments/lm_nanogpt.py --to=experiments/lm_nanogpt

Needs PyTorch: `pip install '.[bench]'`. Each run has all cores to itself, and a
call goes on where an earlier one ended. Plan: three arms of 9 minutes.
"""

import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from ws_jax import config as config_lib
from ws_jax import data
from ws_jax.base import disk
from ws_jax.bench import others, worker
from ws_jax.data.text import austen
from ws_jax.sweep import rows
from ws_jax.train import backend, build, loop, trained

_TO = flags.DEFINE_string("to", "workdirs/lm_nanogpt", "Folder to write to.")
_STEPS = flags.DEFINE_integer("steps", 1500, "Number of steps of a run.")

BASE = "configs/austen.py:batch_size=16,eval_batch_size=64,b2=0.95"
BATCH, LENGTH, BYTES = 16, 256, 200_000
SPLITS = {
  "validation": f"validation[:{BYTES // LENGTH}]",
  "test": f"test[:{BYTES // LENGTH}]",
}
WS = {"model.ws": True, "model.ws_gains": True}
OURS = {"ws_jax, LN": {}, "ws_jax, LN+WS": WS}
RATES = {
  "ws_jax, LN": (3e-3, 6e-3, 1.2e-2),
  "ws_jax, LN+WS": (6e-3, 1.2e-2, 2.4e-2),
  "nanoGPT": (1e-3, 2e-3, 4e-3),
}


def ours(arm: str, rate: float, steps: int) -> rows.Row:
  """Trains a run of ours, and returns its row."""
  config = config_lib.apply(config_lib.load(BASE), OURS[arm])
  numbers = {
    "data.eval_split": SPLITS["validation"],
    "optim.learning_rate": rate,
    "optim.warmup_steps": steps // 15,
    "train.steps": steps,
    "train.eval_every_steps": steps,
    "train.checkpoint_every_steps": steps,
  }
  config = config_lib.apply(config, numbers)
  with tempfile.TemporaryDirectory() as folder:
    loop.train_and_evaluate(config, folder)
    run = trained.load_run(folder)
    seconds = disk.read_json(pathlib.Path(folder, "status.json"))["seconds"]
    found = {
      name: run.evaluate([("data.eval_split", split)])["bits_per_byte"]
      for name, split in SPLITS.items()
    }
  size = sum(np.size(x) for x in jax.tree.leaves(run.params))
  return _row(arm, rate, steps, size, seconds["train"], found)


def nanogpt(
  process: worker.Worker, path: str, rate: float, steps: int
) -> rows.Row:
  """Trains a run in PyTorch, and returns its row."""
  settings = {
    "inputs": 257,
    **{"layers": 4, "dim": 128, "heads": 4, "length": LENGTH},
    **{"batch_size": BATCH, "steps": steps, "warmup": steps // 15},
    "b2": 0.95,
  }
  number = process.make(
    *("torch_text", "Run"), data=path, settings=settings, learning_rate=rate
  )
  found = process.call(number)
  size, seconds = process.get(number, "parameters"), found.pop("seconds")
  return _row("nanoGPT", rate, steps, size, seconds, found)


def _row(arm, rate, steps, size, seconds, found) -> rows.Row:
  row: rows.Row = {"arm": arm, "learning_rate": rate, "steps": steps}
  row |= {"parameters": size, "tokens": steps * BATCH * LENGTH}
  row |= {f"{name} bits per byte": found[name] for name in SPLITS}
  row |= {"seconds": round(seconds, 1)}
  print(row, flush=True)
  return row


def write_data(path: str) -> None:
  """Writes the training text and the rows of evaluation, for PyTorch."""
  text = b"".join(austen.read("train"))
  arrays: dict[str, Any] = {"train": np.frombuffer(text, np.uint8)}
  for name, split in SPLITS.items():
    config = config_lib.load(BASE)
    config = config_lib.apply(config, {"data.eval_split": split})
    test = data.load(build.request(config)).test
    arrays |= {name: test["tokens"], f"{name}_bytes": test["bytes"].sum()}
  np.savez(path, **arrays)


def main(argv: list[str]) -> None:
  """Tunes the rate of each arm, trains each at its best, and writes a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  backend.configure()
  target, steps = pathlib.Path(_TO.value), _STEPS.value
  target.mkdir(parents=True, exist_ok=True)
  table = rows.read(target / "runs.csv")
  with (
    tempfile.TemporaryDirectory() as folder,
    worker.Worker(others.PLAIN) as process,
  ):
    path = str(pathlib.Path(folder, "austen.npz"))
    write_data(path)

    def train(arm, rate, steps):
      for row in table:  # What an earlier call has done is not done again.
        if (row["arm"], row["learning_rate"], row["steps"]) == (
          *(arm, rate, steps),
        ):
          return row
      if arm in OURS:
        row = ours(arm, rate, steps)
      else:
        row = nanogpt(process, path, rate, steps)
      table.append(row)
      rows.write(target / "runs.csv", table)
      return row

    long = []
    for arm, rates in RATES.items():
      short = [train(arm, rate, steps // 10) for rate in rates]
      best = min(short, key=lambda row: row["validation bits per byte"])
      long.append(train(arm, best["learning_rate"], steps))
  write(target, long)


def write(target: pathlib.Path, table: list[rows.Row]) -> None:
  """Writes the long runs as a table."""
  columns = list(table[0])
  lines = [columns, ["---"] * len(columns)]
  show = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)
  lines += [[show(row[name]) for name in columns] for row in table]
  text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
  disk.write_text(target / "summary.md", text)
  print(text)


if __name__ == "__main__":
  app.run(main)
