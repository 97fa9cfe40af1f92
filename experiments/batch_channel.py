"""Does batch-channel normalization save micro-batches?

Question: an optimizer batch of 32 is cut into micro-batches of 2 to 32
examples. BN loses accuracy with the smallest ones, GN+WS does not. BCN
normalizes over the batch and then over groups of channels; in the form for
micro-batches its batch statistics are running averages. Which of them is the
best at which size? (Qiao et al. 2019, 1911.09738.)

Scientific parameters: BN, GN+WS, BCN+WS, and BCN+WS with estimated statistics;
  the size of the micro-batch.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 32, one epoch.

Plan: 240 runs, 16 compiles. About 12 minutes of two cores, by the processor
time of a pilot of two runs: 7 s a run with micro-batches of 2, less with larger
ones, and 6 s a compile.

  python scripts/sweep.py --experiment=experiments/batch_channel.py --workers=2
"""

from ws_jax.sweep import log_grid, product

CONFIG = "configs/resnet8_small.py:batch_size=32,epochs=1"

NORMS = ("batch", "group", "batch_channel", "batch_channel_estimated")
ARMS = tuple(
  {"model.norm": norm, "model.ws": norm != "batch"} for norm in NORMS
)


def sweep():
  """Returns the runs: four arms, four sizes, five rates, three seeds."""
  sizes = {"optim.micro_batch_size": [2, 4, 8, 32]}
  rates = {"optim.learning_rate": log_grid(0.03, 3, 5)}
  return product(ARMS, **sizes, **rates, seed=range(3))
