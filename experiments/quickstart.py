"""Does Weight Standardization let GroupNorm train at a high learning rate?

Question: BN, GN and GN+WS, each at a moderate and at a high learning rate, on
10,000 real images: which ones still learn?

Scientific parameters: the norm, WS, the learning rate.
Nuisance parameters: none. One seed and two rates show what happens, and prove
  nothing. experiments/lr_batch_size.py is the study: the same network with
  three seeds at ten rates over three decades.
Fixed parameters: configs/resnet8_small.py, batch 128, three epochs.

  bash scripts/quickstart.sh
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/resnet8_small.py:epochs=3,log_every_steps=50,keep_checkpoints=1"
)

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Returns the runs: three arms, two learning rates."""
  return product(ARMS, **{"optim.learning_rate": [0.1, 1.0]})
