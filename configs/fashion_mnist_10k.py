"""ResNet-20 with GN+WS on the 10,000 images that the package holds.

All settings are the defaults of `ws_jax/config.py`. The images are a part of
Fashion-MNIST, with 2,000 more to test on. `:norm=batch,ws=false` is BN,
`:ws=false` is GN.

Command (no download):

    python -m ws_jax.main --config=configs/fashion_mnist_10k.py \
      --workdir=workdirs/fashion_mnist_10k

Expect: test accuracy 87.1 ± 0.1 % with GN+WS: mean and standard deviation of
this command with the seeds 0, 1 and 2 (`:seed=1`), on 2026-11-26.
Time: a minute on two cores, by the 99 ms that a step takes
(experiments/benchmarks/step.md).
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  return base.variant(base.default(), arg)
