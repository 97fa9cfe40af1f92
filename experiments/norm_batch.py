"""Does a small normalization batch hurt BN, and GN or GN+WS not at all?

Question: with the optimizer batch fixed at 128, how does test accuracy depend
on the number of examples over which BN computes its statistics? And where do GN
and GN+WS stand, which normalize each example by itself? (Wu and He 2018,
1803.08494, table 2; Qiao et al. 2019, 1903.10520, figure 1.)

Scientific parameters: BN with normalization batches of 2 to 128; GN; GN+WS.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 128, two epochs.

  python scripts/sweep.py --experiment=experiments/norm_batch.py --workers=2
"""

from ws_jax.sweep import log_grid, product

CONFIG = "configs/resnet8_small.py:epochs=2"

ARMS = (
  *(
    {"model.norm": "batch", "model.ws": False, "model.norm_batch_size": size}
    for size in (2, 4, 8, 16, 32, 128)
  ),
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Returns the runs: eight arms, seven rates, three seeds."""
  rates = log_grid(0.02, 2, 7)
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
