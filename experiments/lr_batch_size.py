"""Which learning rates are usable, for each norm, with and without WS?

Question: over three decades of the learning rate and optimizer batches from
small to large, where does each of BN, BN+WS, GN and GN+WS still learn, how well
does it learn at its best rate, and at which rate does it fail?

Scientific parameters: the norm, WS (a 2x2), the learning rate, the optimizer
  batch, and for the middle batch the number of epochs.
Nuisance parameters: none; the learning rate is the axis of the figures, and
  arms are compared at their own best rates. Seeds: 3.
Fixed parameters: configs/resnet8_small.py: a ResNet-8 of half width and half
  resolution, SGD with Nesterov momentum 0.9 and weight decay 5e-4, a cosine
  schedule without warm-up. Three epochs at every batch size, so a large batch
  takes few steps.

  python scripts/sweep.py --experiment=experiments/lr_batch_size.py --workers=2
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = "configs/resnet8_small.py"

ARMS = tuple(
  {"model.norm": norm, "model.ws": ws}
  for norm in ("batch", "group")
  for ws in (False, True)
)
RATES = log_grid(0.01, 10, 10)
SETTINGS = (
  {"data.batch_size": 32, "train.epochs": 3.0},
  {"data.batch_size": 256, "train.epochs": 3.0},
  {"data.batch_size": 1024, "train.epochs": 3.0},
  {"data.batch_size": 256, "train.epochs": 1.0},
)


def sweep():
  """Yields four arms, ten rates, four settings, three seeds; seed 0 first."""
  grids = (
    product(ARMS, SETTINGS, seed=[seed], **{"optim.learning_rate": RATES})
    for seed in range(3)
  )
  return itertools.chain(*grids)
