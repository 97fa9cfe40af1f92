r"""What does a training step cost with and without Weight Standardization?

Question: time and memory of a step of ResNet-20 with BN, BN+WS, GN and GN+WS at
batches of 1 to 512: what does WS add, and where does it show?

Scientific parameters: the norm, WS, the batch size.
Nuisance parameters: the machine's own drift: in each round every arm is timed
  once, and ratios are taken within rounds.
Fixed parameters: 32x32x3 images of noise, float32, SGD with momentum; memory is
  what XLA plans for the whole step.

  python scripts/benchmark.py cost --arms=BN+WS,GN,GN+WS,BN \
      --to=experiments/cost
"""

from ws_jax.bench import ARMS, cost
from ws_jax.sweep import product

CONFIG = "configs/fashion_mnist_10k.py"


def sweep():
  """The cells that the benchmark times; nothing is trained to an end."""
  return product(ARMS.values(), **{"data.batch_size": cost.BATCH_SIZES})
