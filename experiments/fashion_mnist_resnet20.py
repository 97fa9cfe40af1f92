"""Do BN and GN+WS both reach 93 % on all of Fashion-MNIST?

Question: does ResNet-20 reach at least 93 % test accuracy on Fashion-MNIST,
with BN and with GN+WS, in other words, does training work as it should?

Scientific parameters: the arm, BN or GN+WS.
Nuisance parameters: the learning rate, tuned on one grid for both arms in
  experiments/fashion_mnist_lr.py. Both run at 0.1, which was the best rate of
  BN there; GN+WS did best at 0.05, and within a standard error of that at 0.1.
Fixed parameters: all of configs/fashion_mnist.py. Seeds: 3.

  python scripts/prepare_data.py fashion_mnist --from_debian
  python scripts/sweep.py --experiment=experiments/fashion_mnist_resnet20.py
"""

from ws_jax.sweep import product

CONFIG = "configs/fashion_mnist.py:model.name=resnet20"

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Returns the runs: two arms, three seeds."""
  return product(ARMS, seed=range(3))
