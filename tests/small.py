"""A network and data that are quick to compile, for runs on several devices.

As a program it trains one run after the other, so that a table of them costs
one start: `python -m tests.small FOLDER PORT COUNT NUMBER`, with a JSON table
of overrides by name on standard input.
"""

import json
import pathlib
import sys

import flax.linen as nn
import numpy as np

from ws_jax.layers.norm import NormSpec

OVERRIDES = {
  "model.name": "tests.small:Net",
  "model.num_groups": 2,
  "data.name": "tests.small:images",
  "data.batch_size": 16,
  "data.eval_batch_size": 12,
  "task.crop_padding": 1,
  "optim.learning_rate": 0.1,
  "optim.ema_decay": 0.5,
  "optim.clip_norm": 1.0,
  "train.steps": 6,
  "train.log_every_steps": 2,
  "train.checkpoint_every_steps": 2,
}


class Net(nn.Module):
  """Two convolutions and a head: the least in which all can be split."""

  norm: NormSpec
  num_classes: int = 4

  @nn.compact
  def __call__(self, x, *, train):
    for i in (1, 2):
      x = nn.Conv(8, (3, 3), use_bias=False, name=f"conv{i}")(x)
      x = nn.relu(self.norm.layer(name=f"norm{i}")(x, train=train))
    return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def images():
  """Images whose brightness tells the class; 29 to test on, a prime."""
  rng = np.random.default_rng(0)
  made = {}
  for split, size in (("train", 100), ("test", 29)):
    labels = np.arange(size, dtype=np.int32) % 4
    noise = rng.integers(0, 80, (size, 6, 6, 1))
    x = (noise + 50 * labels[:, None, None, None]).astype(np.uint8)
    made[split] = {"image": x, "label": labels}
  return made


def main(folder, port, count, number):
  from ws_jax import config, train
  from ws_jax.train import processes

  if int(count) > 1:
    processes.join(f"127.0.0.1:{port}", int(count), int(number))
  for name, overrides in json.load(sys.stdin).items():
    chosen = config.apply(config.default(), OVERRIDES | overrides)
    train.train_and_evaluate(chosen, pathlib.Path(folder, name))


if __name__ == "__main__":
  main(*sys.argv[1:])
