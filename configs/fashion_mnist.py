"""ResNet-20 with GN+WS on the 60,000 images of Fashion-MNIST.

The data set is that of Xiao et al. 2017 (1708.07747), the schedule one cycle
with its peak at 0.1. `:norm=batch,ws=false` is BN, `:ws=false` is GN.

Command, after `python scripts/prepare_data.py fashion_mnist` (on Debian and
Ubuntu with `--from_debian`, without internet):

    python -m ws_jax.main --config=configs/fashion_mnist.py \
      --workdir=workdirs/fashion_mnist

Expect: test accuracy 93.01 ± 0.11 % with GN+WS and 93.17 ± 0.04 % with BN: mean
and standard deviation of three seeds (experiments/fashion_mnist_resnet20).
Time: five minutes on two cores, by the 99 ms that a step takes
(experiments/benchmarks/step.md); those runs, older and on one core each, took
50 minutes.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.default()
  config.data.name = "fashion_mnist"
  config.optim.base_learning_rate = 0.2  # 0.1 at batch 128
  config.optim.schedule = "one_cycle"
  # In few epochs the net does not overfit: a crop only slows it.
  config.task.crop_padding = 0
  config.train.epochs = 6.0
  return base.variant(config, arg)
