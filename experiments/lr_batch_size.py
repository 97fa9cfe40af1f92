"""Which learning rates are usable, for each norm, with and without WS?

Question: over three decades of the learning rate and optimizer batches from
small to large, where does each of BN, BN+WS, GN and GN+WS still learn, how well
does it learn at its best rate, and where does it break?

Scientific parameters: the norm, WS (a 2x2), the learning rate, the optimizer
  batch, and for the middle batch the training budget.
Nuisance parameters: none besides; the learning rate is the axis of the figures,
  and every comparison of arms is made at each arm's own best rate. Seeds: 3.
Fixed parameters: a ResNet-8 of half width on images of half resolution, SGD
  with Nesterov momentum 0.9 and weight decay 5e-4, cosine schedule without
  warm-up; GN with 4 channels in a group; three epochs whatever the batch, so a
  large batch takes few steps.

  python scripts/sweep.py --experiment=experiments/lr_batch_size.py --workers=2
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,"
  "channels_per_group=4,crop_padding=0,log_every_steps=10,keep_checkpoints=0"
)

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
  """Four arms, ten rates, four settings, three seeds; seed 0 comes first."""
  grids = (
    product(ARMS, SETTINGS, seed=[seed], **{"optim.learning_rate": RATES})
    for seed in range(3)
  )
  return itertools.chain(*grids)
