"""Does a net without norm, with scaled WS and clipping, replace BN?

Question: at small and large batches, which learning rates does an NF-ResNet
learn at with plain weights, with WS, with scaled WS, and with scaled WS and
adaptive gradient clipping, and how close does it come to the ResNet with BN of
the same size? Brock et al. 2021 say that clipping is what makes large batches
and rates work without a norm (2102.06171, section 4), and that WS without the
scale 1 / sqrt(fan-in) does not (2101.08692).

Scientific parameters: the net (ResNet-8 with BN, NF-ResNet-8), what is done to
  its weights, the limit of the clipping; the batch.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, SGD with Nesterov momentum 0.9,
  weight decay 5e-4, cosine; three epochs at every batch size.

Plan: 291 runs, 16 compiles. About 10 minutes of two cores, by the processor
time of a pilot of three runs: 3 s a run, 8 s a compile.

  python scripts/sweep.py --experiment=experiments/norm_free.py --workers=2
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = "configs/resnet8_small.py:epochs=3"

BN = {"model.name": "resnet8", "model.norm": "batch", "model.ws": False}
FREE = {"model.name": "nf_resnet8"}
PLAIN = FREE | {"model.ws": False}
SCALED = FREE | {"model.ws": True, "model.ws_convention": "timm_scaled"}
UNSCALED = FREE | {"model.ws": True, "model.ws_convention": "bit"}
ARMS = (
  BN,
  PLAIN,
  SCALED,
  SCALED | {"optim.adaptive_clip": 0.02},
  SCALED | {"optim.adaptive_clip": 0.08},
)
RATES = {"optim.learning_rate": log_grid(0.02, 5, 6)}
SEEDS = {"seed": range(3)}


def sweep():
  """Yields five arms at three batches, and two more cases at one of them."""
  batches = {"data.batch_size": [32, 256, 1024]}
  return itertools.chain(
    product(ARMS, **batches, **RATES, **SEEDS),
    product([UNSCALED], **{"data.batch_size": [256]}, **RATES, **SEEDS),
    # Its best rate was the highest one.
    product(
      [SCALED | {"optim.adaptive_clip": 0.02}],
      **{"data.batch_size": [256], "optim.learning_rate": [15.1]},
      **SEEDS,
    ),
  )
