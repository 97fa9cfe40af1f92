"""How a signal passes through deep networks before any training.

  python scripts/signal_propagation.py --to=experiments/smoothness

Draws residual networks of several depths at initialization, sends Gaussian
noise through them, and writes the average squared mean and the average variance
of the channels behind each block (Brock et al. 2021, arXiv:2101.08692) to
signal.csv and signal.png. A minute on a CPU; nothing is trained.
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

_TO = flags.DEFINE_string("to", "workdirs/signal", "Folder to write to.")
_DEPTHS = flags.DEFINE_list(
  "depths", ["8", "20", "32", "56", "110"], "Which ResNets, by depth."
)

# Makes up for what a ReLU takes from the variance: Brock et al. 2021, sec. 3.
RELU_GAIN = (2 / (1 - 1 / np.pi)) ** 0.5
# Arm -> norm and convention of WS; without a norm it must be the scaled one.
ARMS = {
  "no norm": ("none", None),
  "WS": ("none", "nfnet"),
  "BN": ("batch", None),
  "BN+WS": ("batch", "bit"),
  "GN": ("group", None),
  "GN+WS": ("group", "bit"),
}


def propagate(depth: int, kind: str, convention: str | None):
  """`ChannelStats` behind each block of a pre-activation ResNet."""
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


def draw(table: list[rows.Row], depth: int):
  """The deepest network: what the mean takes of the power, and the variance."""

  def panel(column, ax):
    for arm, look in figures.looks(ARMS).items():
      mine = [r for r in table if r["arm"] == arm and r["depth"] == depth]
      blocks = [row["block"] for row in mine]
      mean = np.array([row["squared_mean"] for row in mine])
      variance = np.array([row["variance"] for row in mine])
      share = {"variance": variance, "share": mean / (mean + variance)}
      every = max(1, len(blocks) // 9)
      ax.plot(blocks, share[column], **look, markevery=every, label=arm)
    ax.set_xlabel(f"block of a ResNet-{depth} at initialization")
    if column == "variance":
      ax.set_yscale("log")
      ax.set_ylabel("average variance of the channels")
    else:
      ax.set_ylim(0)
      ax.set_ylabel("share of the squared mean in the power")

  panels = [functools.partial(panel, name) for name in ("share", "variance")]
  return figures.sheet(panels, columns=2)


def main(argv: list[str]) -> None:
  """All depths and arms; prints the last block of each."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  target = pathlib.Path(_TO.value)
  target.mkdir(parents=True, exist_ok=True)
  table: list[rows.Row] = []
  depths = [int(depth) for depth in _DEPTHS.value]
  for depth in depths:
    for arm, (kind, convention) in ARMS.items():
      stats = propagate(depth, kind, convention)
      for block, found in enumerate(stats.values(), start=1):
        values = found.squared_mean, found.variance
        squared_mean, variance = (float(f"{float(v):.4g}") for v in values)
        table.append(
          {
            "arm": arm,
            "depth": depth,
            "block": block,
            "squared_mean": squared_mean,
            "variance": variance,
          }
        )
      print(f"depth {depth} {arm}: {table[-1]}", flush=True)
  rows.write(target / "signal.csv", table)
  draw(table, max(depths)).savefig(target / "signal.png", dpi=80)


if __name__ == "__main__":
  app.run(main)
