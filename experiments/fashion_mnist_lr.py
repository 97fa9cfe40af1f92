"""Which learning rate suits BN, and which GN+WS? Tuned alike, on little data.

Question: the best peak learning rate of each arm, for the runs of
experiments/fashion_mnist_resnet20.py.

Scientific parameters: the arm, BN or GN+WS.
Nuisance parameters: the peak learning rate, the same grid for both arms.
Fixed parameters: ResNet-20 and the recipe of configs/fashion_mnist.py, but a
  sixth of the images and 1.5 epochs of them. One seed.

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
  """Two arms, five rates."""
  return product(ARMS, **{"optim.learning_rate": [0.025, 0.05, 0.1, 0.2, 0.4]})
