"""Does a small normalization batch hurt BN, and GN or GN+WS not at all?

Question: with the optimizer batch fixed at 128, how does test accuracy depend
on how many examples share BN's statistics, and where do GN and GN+WS, which
share none, stand? (Wu and He 2018, table 2; Qiao et al. 2019, figure 1.)

Scientific parameters: BN with normalization batches of 2 to 128; GN; GN+WS.
Nuisance parameters: the learning rate, one grid for all arms, each at its best.
  Seeds: 3.
Fixed parameters: as experiments/lr_batch_size.py, but two epochs.

  python scripts/sweep.py --experiment=experiments/norm_batch.py --workers=2
"""

from ws_jax.sweep import log_grid, product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,"
  "channels_per_group=4,crop_padding=0,log_every_steps=10,keep_checkpoints=0,"
  "epochs=2"
)

ARMS = (
  *(
    {"model.norm": "batch", "model.ws": False, "model.norm_batch_size": size}
    for size in (2, 4, 8, 16, 32, 128)
  ),
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Eight arms, seven rates, three seeds."""
  rates = log_grid(0.02, 2, 7)
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
