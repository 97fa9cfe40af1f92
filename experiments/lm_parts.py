"""Which kernels of a transformer gain by WS?

Question: what does it do to standardize the kernels of the queries, the keys,
the values, the outputs of attention or the MLP alone, and all of them? Does it
matter whether a filter of the outputs has the inputs of all heads or of one?

Scientific parameters: the kernels with scaled WS; for the outputs of attention
  joint filters and filters for each head.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3.
Fixed parameters: configs/austen_small.py with LN, 32 channels; `timm_scaled`
  with gains.

  python scripts/sweep.py --experiment=experiments/lm_parts.py --workers=2

Plan: 120 runs of 8 seconds, 8 minutes on two cores. The first three rates left
every arm best at the highest; the fourth was added for that.
"""

import itertools

from ws_jax.sweep import product

CONFIG = "configs/austen_small.py"

ATTENTION = ("query", "key", "value", "out")
PARTS = (
  *((f"*/attention/{name}/kernel",) for name in ATTENTION),
  ("*/attention/*/kernel",),
  ("*/mlp/*/kernel",),
  ("*/attention/*/kernel", "*/mlp/*/kernel"),
)
PER_HEAD = (PARTS[3], PARTS[-1])
RATES = (3e-3, 1e-2, 3e-2, 9.5e-2)


def sweep():
  """Yields ten arms, four rates, three seeds."""
  rest = {"optim.learning_rate": RATES, "seed": range(3)}
  per_head = {"model.ws": [True], "model.ws_axes": ["per_head"]}
  return itertools.chain(
    product(**{"model.ws": [False]}, **rest),
    product(**{"model.ws": [True], "model.ws_where": PARTS}, **rest),
    product(**per_head, **{"model.ws_where": PER_HEAD}, **rest),
  )
