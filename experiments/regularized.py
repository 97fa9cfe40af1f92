"""Does WS go together with dropout, stochastic depth and weight decay?

Question: WS makes the scale of a kernel irrelevant, so that weight decay only
sets the speed at which kernels turn; dropout and stochastic depth change the
mean and the variance that reach the next layer. Does WS help BN, LN and IN as
much with each of them as without?

Scientific parameters: the norm (BN, LN, IN), WS (a 2x2 each); what is added to
  the recipe or taken from it: dropout 0.2 in each block, stochastic depth up to
  0.2, no weight decay.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 64, two epochs.

Plan: 360 runs, 18 compiles. About 11 minutes of two cores, by the processor
time of a pilot of three runs: 3 s a run, 6 s a compile.

  python scripts/sweep.py --experiment=experiments/regularized.py --workers=2
"""

from ws_jax.sweep import log_grid, product

CONFIG = "configs/resnet8_small.py:batch_size=64,epochs=2"

ARMS = tuple(
  {"model.norm": norm, "model.ws": ws}
  for norm in ("batch", "layer", "instance")
  for ws in (False, True)
)
RATES = (0.0158, *log_grid(0.05, 1.6, 4))
RECIPES = (
  {"model.dropout": 0.0, "model.stochastic_depth": 0.0},
  {"model.dropout": 0.2, "model.stochastic_depth": 0.0},
  {"model.dropout": 0.0, "model.stochastic_depth": 0.2},
)


def sweep():
  """Yields six arms with four recipes, five rates, three seeds."""
  rates = {"optim.learning_rate": RATES}
  decays = {"optim.weight_decay": [5e-4]}
  yield from product(ARMS, RECIPES, **decays, **rates, seed=range(3))
  decays = {"optim.weight_decay": [0.0]}
  yield from product(ARMS, RECIPES[:1], **decays, **rates, seed=range(3))
