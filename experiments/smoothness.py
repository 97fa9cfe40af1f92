r"""Does WS smooth the loss, and what does it do to channels and gradients?

Question: at equal relative steps, how much do the loss and its gradient change
along the gradient, and how sharp is the loss, with BN and GN, with and without
WS? Which part of the gradient does WS remove, and would it remove as much from
the same network without it? How many channels are dead?

Scientific parameters: the norm, WS.
Nuisance parameters: none; each arm trains at its best rate of
  experiments/lr_batch_size.py. Seeds: 3.
Fixed parameters: configs/resnet8_small.py, batch 256, three epochs: 117 steps.

  python scripts/sweep.py --experiment=experiments/smoothness.py
  python scripts/diagnose.py workdirs/smoothness --steps=0,39,117 \
      --to=experiments/smoothness
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/resnet8_small.py:batch_size=256,epochs=3,log_every_steps=13,"
  "checkpoint_every_steps=13,keep_checkpoints=9"
)

ARMS = (
  {"model.norm": "batch", "model.ws": False, "optim.learning_rate": 0.464},
  {"model.norm": "batch", "model.ws": True, "optim.learning_rate": 0.464},
  {"model.norm": "group", "model.ws": False, "optim.learning_rate": 0.215},
  {"model.norm": "group", "model.ws": True, "optim.learning_rate": 0.464},
)


def sweep():
  """Returns the runs: four arms, each at its own rate, three seeds."""
  return product(ARMS, seed=range(3))
