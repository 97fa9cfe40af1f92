"""ResNet-20 on CIFAR-10, with the recipe of He et al. 2015 (1512.03385).

Section 4.2 of the paper: batch 128, learning rate 0.1, divided by 10 after 32k
and 48k of 64k steps, weight decay 1e-4, random crops from 4 pixels of padding,
and flips.

Command, after `python scripts/prepare_data.py cifar10`:

    python -m ws_jax.main --config=configs/cifar10.py:norm=batch,ws=false \
      --workdir=workdirs/cifar10

Expect: test accuracy 91.25 % with BN. That is the published number; this config
was never run here, because no copy of CIFAR-10 was available.
Time: two hours on two cores, by the 99 ms that a step takes
(experiments/benchmarks/step.md).
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.default()
  config.data.name = "cifar10"
  config.task.crop_padding = 4
  config.optim.base_learning_rate = 0.2  # 0.1 at batch 128
  config.optim.weight_decay = 1e-4
  config.optim.nesterov = False
  config.optim.schedule = "step"
  config.optim.boundaries = (0.5, 0.75)
  config.train.epochs = 164.0
  config.train.eval_every_epochs = 4.0
  return base.variant(config, arg)
