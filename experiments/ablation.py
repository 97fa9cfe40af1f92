"""Which half of WS does the work: subtracting the mean, or dividing by the std?

Question: with GN, is it enough to only center the kernels (GN+mean), or to only
scale them to unit deviation (GN+std), or does it take both (GN+WS)? And does
it do as well to center the gradients instead (GN+GC, Gradient Centralization)?
Compared at the best rate of each arm and away from it. (Qiao et al. 2019,
1903.10520; Yong et al. 2020, 2004.01461.)

Scientific parameters: what is done to the kernels or their gradients: GN,
  GN+mean, GN+std, GN+WS, GN+GC.
Nuisance parameters: the learning rate, on one grid for all arms. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 128, two epochs.

  python scripts/sweep.py --experiment=experiments/ablation.py --workers=2
"""

from ws_jax.sweep import log_grid, product

CONFIG = "configs/resnet8_small.py:epochs=2"

ARMS = (
  {"model.ws": False},
  {"model.ws": True, "model.ws_convention": "center"},
  {"model.ws": True, "model.ws_convention": "scale"},
  {"model.ws": True, "model.ws_convention": "bit"},
  {"model.ws": False, "optim.centralize": True},
)


def sweep():
  """Returns the runs: five arms, seven rates, three seeds."""
  rates = log_grid(0.02, 5, 7)
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
