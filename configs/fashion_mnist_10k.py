"""ResNet-20 with GN+WS on the embedded subset of Fashion-MNIST.

Command (no download):

    python -m ws_jax.main --config=configs/fashion_mnist_10k.py \
      --workdir=workdirs/fashion_mnist_10k

Arms: `:norm=batch,ws=false` is BN, `:norm=group,ws=false` is GN.
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  return base.variant(config, arg)
