"""ResNet-20 on the 60,000 images of Fashion-MNIST (Xiao et al. 2017).

Command, after `python scripts/prepare_data.py fashion_mnist`:

    python -m ws_jax.main --config=configs/fashion_mnist.py \
      --workdir=workdirs/fashion_mnist

Results and how they were made: experiments/README.md.
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  config.data.name = "fashion_mnist"
  config.optim.base_learning_rate = 0.2  # 0.1 at batch 128
  config.optim.schedule = "one_cycle"
  # In few epochs the net does not overfit: a crop only slows it.
  config.data.crop_padding = 0
  config.train.epochs = 6.0
  return base.variant(config, arg)
