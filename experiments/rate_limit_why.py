"""Why does GN+WS stay at chance at the rate 3.0? What lets it learn there?

Question: in experiments/rate_limit.py, is it the kernels that cannot bear the
rate, or the head and the norms' scales and biases? Which remedy helps?

Scientific parameters: what is changed about the step.
Nuisance parameters: none; the rate of the kernels is 3.0 throughout. Seeds: 3.
Fixed parameters: as experiments/rate_limit.py, but for a stem of stride 2.

  python scripts/sweep.py --experiment=experiments/rate_limit_why.py
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,epochs=3,"
  "keep_checkpoints=0"
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
  """Three arms as they are and with a slow rest; more remedies for GN+WS."""
  fixed = {"optim.learning_rate": [3.0], "seed": range(3)}
  yield from product((BN, GN, GN_WS), ({}, SLOW_REST), **fixed)
  yield from product((GN_WS,), REMEDIES, **fixed)
