"""Does Weight Standardization let GroupNorm train at a high learning rate?

Question: BN, GN and GN+WS, each at a moderate and at a high learning rate, on
10,000 real images: which ones still learn?

Scientific parameters: the norm, WS, the learning rate.
Nuisance parameters: none; one seed and two rates show what happens, and prove
  nothing. experiments/README.md lists the runs that do.
  The high rate is ten times the moderate one; experiments/rate_limit.py has
  what happens at thirty times: higher is not always where WS helps.
Fixed parameters: a narrow ResNet-8, three epochs, all of the config.

  bash scripts/quickstart.sh
"""

from ws_jax.sweep import product

CONFIG = "configs/fashion_mnist_10k.py:model.name=resnet8,width=0.5,epochs=3"

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Three arms, two learning rates."""
  return product(ARMS, **{"optim.learning_rate": [0.1, 1.0]})
