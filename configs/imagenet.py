"""ResNet-50 on ImageNet, with the recipe of the WS authors' code.

Qiao et al. 2019 (1903.10520; pytorch-classification, imagenet.py): batch 256,
learning rate 0.1, divided by 10 after 30 and 60 of 90 epochs, momentum 0.9,
weight decay 1e-4 on all parameters, GN with 32 groups.

It cannot be run yet as it stands: ImageNet does not fit in memory, and input
that streams from disk is not written yet. The config is complete except for the
data, which must be prepared at one size, as a TFDS data set of its own whose
name goes into `data.name`.

Command, once there is such a data set:

    python -m ws_jax.main --config=configs/imagenet.py \
      --workdir=workdirs/imagenet

Expect: top-1 accuracy 76.28 % with GN+WS. That is the published number; this
config was never run here.
Time: too long for two cores; it is meant for accelerators.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.default()
  config.data.name = "imagenet2012"
  config.data.batch_size = 256
  config.task.crop_padding = 0
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
