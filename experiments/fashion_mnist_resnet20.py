"""BatchNorm and GN+WS on all of Fashion-MNIST: is training here right?

Question: does ResNet-20 reach at least 93 % test accuracy on Fashion-MNIST,
with BN and with GN+WS?

Scientific parameters: the arm, BN or GN+WS.
Nuisance parameters: the learning rate, tuned alike for both arms in
  experiments/fashion_mnist_lr.py. Both run at 0.1: there the best for BN, and
  within a standard error of the best (0.05) for GN+WS.
Fixed parameters: all of configs/fashion_mnist.py. Seeds: 3.

  python scripts/prepare_data.py fashion_mnist --from-debian
  python scripts/sweep.py --experiment=experiments/fashion_mnist_resnet20.py
"""

from ws_jax.sweep import product

CONFIG = "configs/fashion_mnist.py:model.name=resnet20"

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Two arms, three seeds."""
  return product(ARMS, seed=range(3))
