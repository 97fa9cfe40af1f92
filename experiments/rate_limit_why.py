"""Why does GN+WS stay at chance at the rate 3.0, and what lets it learn there?

Question: experiments/rate_limit.py finds GN+WS at chance at the rate 3.0. Is
that rate too high for the kernels, or for the head and the norms' scales and
biases? Which change to the step lets GN+WS learn?

Scientific parameters: the change to the step: a lower rate for all but the
  kernels, a warm-up, a clipped gradient, no momentum.
Nuisance parameters: none; the rate of the kernels is 3.0 throughout. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 128, three epochs, but with
  the 8 groups and the crop of rate_limit.py. Only the stem differs from there:
  it has stride 2 here.

  python scripts/sweep.py --experiment=experiments/rate_limit_why.py
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/resnet8_small.py:channels_per_group=none,crop_padding=2,epochs=3,"
  "log_every_steps=50"
)

BN = {"model.norm": "batch", "model.ws": False}
GN = {"model.norm": "group", "model.ws": False}
GN_WS = {"model.norm": "group", "model.ws": True}

SLOW_REST = {"optim.rest_factor": 1 / 30}  # 0.1 for the head and the norms
REMEDIES = (
  {"optim.warmup_epochs": 1.0},
  {"optim.clip_norm": 1.0},
  {"optim.clip_norm": 0.1},
  {"optim.momentum": 0.0},
)


def sweep():
  """Yields three arms, unchanged and with a slow rest, then more for GN+WS."""
  fixed = {"optim.learning_rate": [3.0], "seed": range(3)}
  yield from product((BN, GN, GN_WS), ({}, SLOW_REST), **fixed)
  yield from product((GN_WS,), REMEDIES, **fixed)
