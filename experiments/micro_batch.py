"""Are micro-batches free for GN+WS, and what do they cost BN?

Question: an optimizer batch of 128 is cut into micro-batches of 1 to 128
examples, whose gradients are added up. With GN+WS the sum is the same however
the batch is cut; BN takes its statistics from one micro-batch, and so computes
something else. What happens to the test accuracy? (Qiao et al. 2019,
1903.10520, section 1.)

Scientific parameters: BN or GN+WS; the size of the micro-batch.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 128, two epochs.

  python scripts/sweep.py --experiment=experiments/micro_batch.py --workers=2
"""

from ws_jax.sweep import product

CONFIG = "configs/resnet8_small.py:epochs=2"

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
  """Returns the runs: ten arms, four rates, three seeds."""
  rates = [0.1, 0.2, 0.4, 0.8]
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
