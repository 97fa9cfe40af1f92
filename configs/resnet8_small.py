"""The network of most experiments: a ResNet-8 that trains in seconds.

Half width, a stem of stride 2 and no crop, on the 10,000 images of
Fashion-MNIST that the package holds. GroupNorm has 4 channels in a group: 2
groups in the first stage, which has 8 channels. With the 8 groups that are the
default elsewhere GroupNorm would be instance normalization there.

The experiments set the learning rate and the number of epochs themselves. No
checkpoint is written, because nothing in a sweep reads one.

Command (no download):

    python -m ws_jax.main \
      --config=configs/resnet8_small.py:epochs=2,learning_rate=0.2 \
      --workdir=workdirs/resnet8_small

Expect: test accuracy 83.40 ± 0.58 % with GN+WS, which is the default; 84.07 ±
0.49 % with BN, `:norm=batch,ws=false,...`; 74.53 ± 1.23 % with GN,
`:ws=false,...`. Mean and standard deviation of three seeds
(experiments/norm_batch/summary.md).
Time: a few seconds on two cores, after ten seconds to start and compile.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.default()
  config.task.crop_padding = 0
  config.model.name = "resnet8"
  config.model.stem = "half"
  config.model.width = 0.5
  config.model.channels_per_group = 4
  config.train.log_every_steps = 10
  config.train.keep_checkpoints = 0
  return base.variant(config, arg)
