"""Which half of WS does the work: the mean, the deviation, or neither?

Question: GN with kernels that are only centred, only scaled, both (WS), or
with centred gradients instead (Gradient Centralization): which helps, at each
one's best rate and away from it? (Qiao et al. 2019; Yong et al. 2020.)

Scientific parameters: GN, GN+mean, GN+std, GN+WS, GN+GC.
Nuisance parameters: the learning rate, one grid for all arms. Seeds: 3.
Fixed parameters: as experiments/lr_batch_size.py, but two epochs of batch 128.

  python scripts/sweep.py --experiment=experiments/ablation.py --workers=2
"""

from ws_jax.sweep import log_grid, product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,"
  "channels_per_group=4,crop_padding=0,log_every_steps=10,keep_checkpoints=0,"
  "epochs=2"
)

ARMS = (
  {"model.ws": False},
  {"model.ws": True, "model.ws_convention": "center"},
  {"model.ws": True, "model.ws_convention": "scale"},
  {"model.ws": True, "model.ws_convention": "bit"},
  {"model.ws": False, "optim.centralize": True},
)


def sweep():
  """Five arms, seven rates, three seeds."""
  rates = log_grid(0.02, 5, 7)
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
