"""Does Weight Standardization let GroupNorm train at a high learning rate?

Question: BN, GN and GN+WS, each at a moderate and at a high learning rate, on
10,000 real images: which ones still learn?

Scientific parameters: the norm, WS, the learning rate.
Nuisance parameters: none; one seed and two rates show what happens, and prove
  nothing. experiments/README.md lists the runs that do: lr_batch_size.py has
  the same network at ten rates over three decades.
Fixed parameters: a ResNet-8 of half width on images of half resolution, GN with
  4 channels in a group, three epochs.

  bash scripts/quickstart.sh
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,"
  "channels_per_group=4,crop_padding=0,epochs=3"
)

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Three arms, two learning rates."""
  return product(ARMS, **{"optim.learning_rate": [0.1, 1.0]})
