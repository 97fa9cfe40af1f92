"""Are micro-batches free for GN+WS, and what do they cost BN?

Question: an optimizer batch of 128 as micro-batches of 1 to 128 examples: GN+WS
computes the same gradient however the batch is cut; BN normalizes over what is
left of it. What happens to the accuracy? (Qiao et al. 2019, section 1.)

Scientific parameters: BN, GN+WS; the micro-batch.
Nuisance parameters: the learning rate, one grid for all; each at its best.
  Seeds: 3.
Fixed parameters: as experiments/lr_batch_size.py, but two epochs of batch 128.

  python scripts/sweep.py --experiment=experiments/micro_batch.py --workers=2
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,"
  "channels_per_group=4,crop_padding=0,log_every_steps=10,keep_checkpoints=0,"
  "epochs=2"
)

ARMS = tuple(
  {
    "model.norm": norm,
    "model.ws": norm == "group",
    "optim.micro_batch_size": size,
  }
  for norm in ("batch", "group")
  for size in (1, 2, 8, 32, 128)
)


def sweep():
  """Ten arms, four rates, three seeds."""
  rates = [0.1, 0.2, 0.4, 0.8]
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
