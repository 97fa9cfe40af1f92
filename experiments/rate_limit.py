"""Which of BN, GN and GN+WS still learn at the learning rate 3.0?

Question: 3.0 is thirty times a moderate rate, and three times the high one of
experiments/quickstart.py. Does GN+WS still learn there, and do BN and GN?

Scientific parameters: the norm, WS.
Nuisance parameters: none; the rate is the question. Seeds: 3.
Fixed parameters: configs/fashion_mnist_10k.py with a ResNet-8 of half width,
  three epochs. Its first stage has 8 channels in 8 groups, so there GN is
  instance normalization.

  python scripts/sweep.py --experiment=experiments/rate_limit.py
"""

from ws_jax.sweep import product

CONFIG = "configs/fashion_mnist_10k.py:model=resnet8,width=0.5,epochs=3"

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Returns the runs: three arms, three seeds, one rate."""
  return product(ARMS, **{"optim.learning_rate": [3.0]}, seed=range(3))
