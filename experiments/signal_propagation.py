"""How does a signal pass through deep networks before any training?

Question: in residual networks of growing depth at initialization, how much of a
signal's power is the mean of its channels, and how does the variance grow from
block to block, with BN, GN and no norm, with and without WS? (Brock et al.
2021, 2101.08692.)

Scientific parameters: the norm, WS, the depth.
Nuisance parameters: none; one draw of the weights and of the images.
Fixed parameters: pre-activation ResNets with the CIFAR stem, 32 images of
  Gaussian noise. Without a norm WS is the scaled one of NFNets.

  python experiments/signal_propagation.py --to=experiments/signal_propagation

Writes the average squared mean and the average variance of the channels behind
each block to signal.csv, and signal.png. Takes a minute on a CPU; nothing is
trained, so this is no sweep.
"""

import functools
import pathlib

import jax
import numpy as np
from absl import app, flags, logging

import ws_jax
from ws_jax import diagnostics, models
from ws_jax.layers import norm
from ws_jax.report import figures
from ws_jax.sweep import rows

_TO = flags.DEFINE_string(
  "to", "workdirs/signal_propagation", "Folder to write to."
)
_DEPTHS = flags.DEFINE_list(
  "depths", ["8", "20", "32", "56", "110"], "Depths of the ResNets."
)

# Makes up for the variance that a ReLU takes: Brock et al. 2021, section 3.
RELU_GAIN = (2 / (1 - 1 / np.pi)) ** 0.5
# Arm -> norm and convention of WS. Without a norm only the scaled convention
# keeps the signal at a size of order one.
ARMS = {
  "no norm": ("none", None),
  "WS": ("none", "nfnet"),
  "BN": ("batch", None),
  "BN+WS": ("batch", "bit"),
  "GN": ("group", None),
  "GN+WS": ("group", "bit"),
}


def propagate(
  depth: int, kind: str, convention: str | None
) -> dict[str, diagnostics.ChannelStats]:
  """Returns the channel statistics behind each block of one network.

  Args:
    depth: depth of the ResNet, one of those that `models` has.
    kind: kind of norm, as `model.norm`.
    convention: name of the convention of WS, or None for no WS.

  Returns:
    Path of the block to its statistics, from the first block to the last.
  """
  model = models.create_model(
    f"resnet{depth}",
    num_classes=10,
    norm=norm.NormSpec(kind),
    version=2,
  )
  key, noise = jax.random.split(jax.random.key(0))
  images = jax.random.normal(noise, (32, 16, 16, 3))
  # Not compiled: a hundred layers are the same few operations again and again.
  variables = model.init(key, images, train=False)
  if convention is not None:
    params = variables["params"]
    gains = None
    if convention == "nfnet":
      gains = ws_jax.init_gains(params)
      gains = jax.tree.map(lambda gain: RELU_GAIN * gain, gains)
    effective = ws_jax.weight_standardize(
      params, convention=convention, gains=gains
    )
    variables = {**variables, "params": effective}
  return diagnostics.activation_stats(
    model,
    variables,
    images,
    train=True,
    where=ws_jax.matching_regex(r"block\d+$"),
  )


def measure(depth: int, arm: str) -> list[rows.Row]:
  """Returns a row for each block of one network, to four digits."""
  table: list[rows.Row] = []
  for block, stats in enumerate(propagate(depth, *ARMS[arm]).values(), start=1):
    row: rows.Row = {"arm": arm, "depth": depth, "block": block}
    for name in ("squared_mean", "variance"):
      row[name] = float(f"{float(getattr(stats, name)):.4g}")
    table.append(row)
  return table


def draw(table: list[rows.Row], depth: int):
  """Draws the mean's share of the power, and the variance, of one depth."""
  table = [row for row in table if row["depth"] == depth]
  panels = [
    functools.partial(_panel, table=table, column=column)
    for column in ("share", "variance")
  ]
  return figures.sheet(panels, columns=2)


def _panel(ax, *, table, column):
  for arm, look in figures.looks(ARMS).items():
    mine = [row for row in table if row["arm"] == arm]
    blocks = [row["block"] for row in mine]
    mean = np.array([row["squared_mean"] for row in mine])
    variance = np.array([row["variance"] for row in mine])
    values = variance if column == "variance" else mean / (mean + variance)
    every = max(1, len(blocks) // 9)
    ax.plot(blocks, values, **look, markevery=every, label=arm)
  ax.set_xlabel(f"block of a ResNet-{table[0]['depth']} at initialization")
  if column == "variance":
    ax.set_yscale("log")
    ax.set_ylabel("average variance of the channels")
  else:
    ax.set_ylim(0)
    ax.set_ylabel("share of the squared mean in the power")


def main(argv: list[str]) -> None:
  """Measures all depths and arms, and draws the deepest network."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  target = pathlib.Path(_TO.value)
  target.mkdir(parents=True, exist_ok=True)
  depths = [int(depth) for depth in _DEPTHS.value]
  table: list[rows.Row] = []
  for depth in depths:
    for arm in ARMS:
      table += measure(depth, arm)
      print(f"depth {depth} {arm}: {table[-1]}", flush=True)
  rows.write(target / "signal.csv", table)
  draw(table, max(depths)).savefig(target / "signal.png", dpi=80)


if __name__ == "__main__":
  app.run(main)
