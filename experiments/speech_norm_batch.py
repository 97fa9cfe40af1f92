"""Does a small normalization batch hurt BN on speech, too?

Question: with the optimizer batch fixed at 64, how does the accuracy of a
network for keywords depend on the number of clips over which BN computes its
statistics? A clip has a hundred frames, so a channel has some hundred values
even with two clips. GN and GN+WS normalize each clip by itself.

Scientific parameters: BN with normalization batches of 2, 4, 8, 16 and 64; GN;
  GN+WS.
Nuisance parameters: the learning rate, three of experiments/speech_lr.py; arms
  are compared at their own best, chosen on `val` and reported on `test`. Seeds:
  3.
Fixed parameters: configs/speech_small.py, batch 64.

  python scripts/sweep.py --experiment=experiments/speech_norm_batch.py \
    --workers=2
  python experiments/speech_test.py --runs=workdirs/speech_norm_batch \
    --out=workdirs/speech_norm_batch_test
"""

from ws_jax.sweep import product

CONFIG = "configs/speech_small.py"

ARMS = (
  *(
    {"model.norm": "batch", "model.ws": False, "model.norm_batch_size": size}
    for size in (2, 4, 8, 16, 64)
  ),
  {"model.norm": "group", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)


def sweep():
  """Returns the runs: seven arms, three rates, three seeds."""
  rates = [0.126, 0.316, 0.794]
  return product(ARMS, seed=range(3), **{"optim.learning_rate": rates})
