"""ResNet-50 on ImageNet, the recipe of the WS authors' code.

Qiao et al. 2019 (1903.10520; pytorch-classification, imagenet.py): batch 256,
learning rate 0.1 divided by 10 at epochs 30 and 60 of 90, momentum 0.9, weight
decay 1e-4 on all parameters, GN with 32 groups; published for GN+WS: 76.28 %.

ImageNet does not fit in memory, and its streaming input is not written yet:
the config is complete but for the data, which must be prepared at one size
as a TFDS set of its own (`--config.data.name=...`).
"""

from ws_jax import config as base


def get_config(arg=""):
  config = base.default()
  config.data.name = "imagenet2012"
  config.data.batch_size = 256
  config.data.crop_padding = 0
  config.model.name = "resnet50"
  config.model.num_groups = 32
  config.model.ws_convention = "qiao"
  config.model.dtype = "bfloat16"
  config.optim.weight_decay = 1e-4
  config.optim.decay = "all"
  config.optim.nesterov = False
  config.optim.schedule = "step"
  config.train.epochs = 90.0
  return base.variant(config, arg)
