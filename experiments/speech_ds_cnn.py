"""Does WS help where half of the kernels are depthwise?

Question: DS-CNN-S is four pairs of a depthwise 3x3 and a pointwise convolution.
A depthwise kernel has a fan-in of nine weights, so its mean and its deviation
are those of nine numbers. Does WS help there as it does in TC-ResNet8, and at
which learning rates?

Scientific parameters: the norm, WS (a 2x2).
Nuisance parameters: the learning rate, on one grid of five for all arms; arms
  are compared at their own best, chosen on the six speakers of `val` and
  reported on those of `test`. Seeds: 3.
Fixed parameters: configs/speech_small.py with DS-CNN-S and its features: ten
  mel bands in windows of 40 ms, every 20 ms.

  python scripts/sweep.py --experiment=experiments/speech_ds_cnn.py --workers=2
  python experiments/speech_test.py --runs=workdirs/speech_ds_cnn \
    --out=workdirs/speech_ds_cnn_test
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = (
  "configs/speech_small.py:model=ds_cnn_s,bands=10,window_ms=40,hop_ms=20,"
  "band_mask=2"
)

ARMS = tuple(
  {"model.norm": norm, "model.ws": ws}
  for norm in ("batch", "group")
  for ws in (False, True)
)


def sweep():
  """Yields four arms, five rates, three seeds; seed 0 first."""
  rates = log_grid(0.05, 5.08, 5)
  grids = (
    product(ARMS, seed=[seed], **{"optim.learning_rate": rates})
    for seed in range(3)
  )
  return itertools.chain(*grids)
