"""Which learning rates are usable for keywords, with and without WS?

Question: a network for keywords has 1-D convolutions over time and 65,000
parameters. Over two and a half decades of the learning rate, where does each of
BN, BN+WS, GN and GN+WS learn, how well at its best rate, and where does it
fail? Is the best arm above 93 % on the six speakers of `test`, where a linear
probe has 84 %?

Scientific parameters: the norm, WS (a 2x2), the learning rate.
Nuisance parameters: none; arms are compared at their own best rates, which are
  chosen on the six speakers of `val` and reported on those of `test`. Seeds: 3.
Fixed parameters: configs/speech_small.py: TC-ResNet8 on Arabic Speech Commands,
  batch 64, SGD with Nesterov momentum 0.9 and weight decay 5e-4, a one-cycle
  schedule, eight epochs.

  python scripts/sweep.py --experiment=experiments/speech_lr.py --workers=2
  python experiments/speech_test.py --runs=workdirs/speech_lr \
    --out=workdirs/speech_lr_test
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = "configs/speech_small.py"

ARMS = tuple(
  {"model.norm": norm, "model.ws": ws}
  for norm in ("batch", "group")
  for ws in (False, True)
)
RATES = log_grid(0.02, 5, 7)


def sweep():
  """Yields four arms, seven rates, three seeds; seed 0 first."""
  grids = (
    product(ARMS, seed=[seed], **{"optim.learning_rate": RATES})
    for seed in range(3)
  )
  return itertools.chain(*grids)
