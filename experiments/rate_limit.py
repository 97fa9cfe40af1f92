"""Where does it end? BN, GN and GN+WS at thirty times the moderate rate.

Question: at the rate 3.0, three times what is high for them, which of the arms
still learn?

Scientific parameters: the norm, WS.
Nuisance parameters: none; the rate is the question. Seeds: 3.
Fixed parameters: a ResNet-8 of half width, three epochs. Its first stage has 8
  channels in 8 groups: GN is instance normalization there.

  python scripts/sweep.py --experiment=experiments/rate_limit.py
"""

from ws_jax.sweep import product

CONFIG = "configs/fashion_mnist_10k.py:model.name=resnet8,width=0.5,epochs=3"

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Three arms, three seeds, one rate."""
  return product(ARMS, **{"optim.learning_rate": [3.0]}, seed=range(3))
