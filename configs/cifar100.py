"""ResNet-18 with the CIFAR stem on CIFAR-100, with GN+WS.

The recipe of Gradient Centralization, Yong et al. 2020 (2004.01461): batch 128,
learning rate 0.1, divided by 10 after 60, 120 and 180 of 200 epochs, weight
decay 5e-4. `:centralize=true,ws=false` adds their method, and leaves WS out.

Command, after `python scripts/prepare_data.py cifar100`:

    python -m ws_jax.main --config=configs/cifar100.py \
      --workdir=workdirs/cifar100

Expect: unknown. This config was never run here, because no copy of CIFAR-100
was available, and we know of no published number for GN+WS.
Time: 23 hours on two cores, by the 1.04 s that a step takes
(experiments/benchmarks/resnet18.md).
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.default()
  config.data.name = "cifar100"
  config.task.crop_padding = 4
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
