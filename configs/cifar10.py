"""ResNet-20 on CIFAR-10, the recipe of He et al. 2015 (1512.03385, sec. 4.2).

Batch 128, learning rate 0.1 divided by 10 at 32k and 48k of 64k steps, weight
decay 1e-4, crop of a 4-pixel padding and flip; published for BN: 91.25 %.
Not run here: no copy of CIFAR-10 could be had.

    python scripts/prepare_data.py cifar10
    python -m ws_jax.main --config=configs/cifar10.py:norm=batch,ws=false \
      --workdir=workdirs/cifar10
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  config.data.name = "cifar10"
  config.data.crop_padding = 4
  config.optim.base_learning_rate = 0.2  # 0.1 at batch 128
  config.optim.weight_decay = 1e-4
  config.optim.nesterov = False
  config.optim.schedule = "step"
  config.optim.boundaries = (0.5, 0.75)
  config.train.epochs = 164.0
  config.train.eval_every_epochs = 4.0
  return base.variant(config, arg)
