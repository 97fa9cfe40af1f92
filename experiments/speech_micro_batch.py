"""Are micro-batches of clips free for GN+WS, and what do they cost BN?

Question: an optimizer batch of 64 clips is cut into micro-batches of 2 to 64
clips, whose gradients are added up. With GN+WS the sum is the same however the
batch is cut; BN takes its statistics from one micro-batch, and so computes
something else. What happens to the accuracy?

Scientific parameters: BN or GN+WS; the size of the micro-batch.
Nuisance parameters: the learning rate, the one of experiments/speech_lr.py that
  is nearest to the best of both; the accuracy is that of `test`. Seeds: 3.
Fixed parameters: configs/speech_small.py, batch 64.

  python scripts/sweep.py --experiment=experiments/speech_micro_batch.py \
    --workers=2
  python experiments/speech_test.py --runs=workdirs/speech_micro_batch \
    --out=workdirs/speech_micro_batch_test
"""

from ws_jax.sweep import product

CONFIG = "configs/speech_small.py"

ARMS = tuple(
  {
    "model.norm": norm,
    "model.ws": norm == "group",
    "optim.micro_batch_size": size,
  }
  for norm in ("batch", "group")
  for size in (2, 4, 8, 16, 64)
)


def sweep():
  """Returns the runs: ten arms, one rate, three seeds."""
  rates = [0.316]
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
