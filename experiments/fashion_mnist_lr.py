"""Which learning rate suits BN, and which suits GN+WS, on little data?

Question: what is the best peak learning rate of each arm, for the runs of
experiments/fashion_mnist_resnet20.py?

Scientific parameters: the arm, BN or GN+WS.
Nuisance parameters: the peak learning rate, on the same grid for both arms.
Fixed parameters: configs/fashion_mnist.py, a ResNet-20, but 1.5 epochs of the
  10,000 images of fashion_mnist_10k instead of 6 epochs of 60,000. One seed.

  python scripts/sweep.py --experiment=experiments/fashion_mnist_lr.py
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist.py:data.name=fashion_mnist_10k,epochs=1.5,"
  "eval_every_epochs=1.5"
)

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Returns the runs: two arms, five rates."""
  return product(ARMS, **{"optim.learning_rate": [0.025, 0.05, 0.1, 0.2, 0.4]})
