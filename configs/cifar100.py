"""ResNet-18 (CIFAR stem) on CIFAR-100, as in Gradient Centralization.

The recipe of Yong et al. 2020 (2004.01461): batch 128, learning rate 0.1
divided by 10 at epochs 60, 120 and 180 of 200, weight decay 5e-4. Not run
here: no copy of CIFAR-100 could be had.

    python scripts/prepare_data.py cifar100
    python -m ws_jax.main --config=configs/cifar100.py \
      --workdir=workdirs/cifar100
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  config.data.name = "cifar100"
  config.data.crop_padding = 4
  config.model.name = "resnet18"
  config.model.stem = "cifar"
  config.model.num_groups = 32
  config.optim.base_learning_rate = 0.2  # 0.1 at batch 128
  config.optim.nesterov = False
  config.optim.schedule = "step"
  config.optim.boundaries = (0.3, 0.6, 0.9)
  config.train.epochs = 200.0
  config.train.eval_every_epochs = 5.0
  return base.variant(config, arg)
