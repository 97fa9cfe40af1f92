r"""What does a training step cost with and without Weight Standardization?

Question: how long does a training step of BN, BN+WS, GN and GN+WS take, and how
much memory, at batches of 1 to 256? What does WS add, and at which batch does
it show?

Scientific parameters: the norm, WS, the batch size.
Nuisance parameters: drift of the machine. Every arm is timed once in each
  round, and ratios are taken within rounds.
Fixed parameters: ResNet-20 of configs/fashion_mnist_10k.py on 32x32x3 images of
  noise, float32, SGD with momentum; memory is what XLA plans for a whole step.

  python experiments/cost.py --to=experiments/cost

Nothing is trained, so this is no sweep: it runs `scripts/benchmark.py cost`.
"""

import os
import pathlib
import sys

from absl import app, flags

_TO = flags.DEFINE_string("to", "workdirs/cost", "Folder to write to.")

BENCHMARK = pathlib.Path(__file__).parents[1] / "scripts" / "benchmark.py"
# The last arm is the one that the others are divided by.
SETTINGS = (
  "--batch_size=1,4,16,64,256",
  "--arms=BN+WS,GN,GN+WS,BN",
  "--rounds=15",
)


def main(argv: list[str]) -> None:
  """Times every arm at every batch size; writes table and figure to --to."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  command = [sys.executable, str(BENCHMARK), "cost", *SETTINGS]
  # In place of this process, so that a signal ends the benchmark itself.
  os.execv(sys.executable, [*command, f"--to={_TO.value}"])


if __name__ == "__main__":
  app.run(main)
