"""Which learning rates can a language model be trained with, with WS?

Question: over three and a half decades of the learning rate, where does a small
decoder with LN or RMSNorm learn, plain, with WS and with scaled WS? How do
z-loss and QK-norm compare, which are known to make high rates usable? Does WS
make the range of usable rates wider? The measure is the learning-rate
sensitivity of Wortsman et al. (2023, 2309.14322): the mean over the rates of
the loss, at most that at initialization, less the best loss.

Scientific parameters: the norm; no WS, WS (`bit`), or scaled WS (`timm_scaled`,
  with gains that are learned); the learning rate; the width. At width 32 also
  z-loss with the factor 1e-4, and QK-norm, for LN without WS.
Nuisance parameters: none; the learning rate is the axis of the figures, and
  arms are compared at their own best rates. Seeds: 3.
Fixed parameters: configs/austen_small.py: two blocks with four heads, rows of
  128 bytes, 200 steps of 16 rows, AdamW with b2 0.95 and weight decay 0.1 times
  the rate, a gradient clipped to norm 1, 20 steps of warm-up and a cosine to 0.

  python scripts/sweep.py --experiment=experiments/lm_rates.py --workers=2
  python scripts/sweep.py --experiment=experiments/lm_rates.py --stack=24

The second is for a GPU, where a program trains all runs of an arm.

Plan: 336 runs, 46 minutes on two cores by the processor time of one run each: 8
seconds at width 32 (13 minutes in all, `--filter=dim=32`), 27 at width 128.
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = "configs/austen_small.py"

NORMS = ({"model.norm": "layer"}, {"model.norm": "rms"})
PLAIN = {"model.ws": False}
WS = (
  {"model.ws": True, "model.ws_convention": "bit", "model.ws_gains": False},
  {"model.ws": True},
)
REMEDIES = (
  {"model.norm": "layer", "task.z_loss": 1e-4},
  {"model.norm": "layer", "model.qk_norm": True},
)
RATES = log_grid(3e-4, 0.949, 8)


def sweep():
  """Yields six arms at two widths, and two remedies at the smaller width."""
  rest = {"optim.learning_rate": RATES, "seed": range(3)}
  arms = list(product(NORMS, (PLAIN, *WS)))
  return itertools.chain(
    product(arms, **{"model.dim": [32]}, **rest),
    product(REMEDIES, **{"model.dim": [32]}, **rest),
    product(arms, **{"model.dim": [128]}, **rest),
  )
