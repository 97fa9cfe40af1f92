"""Does WS smooth the loss, and what does it do to channels and gradients?

Question: at equal relative steps, how much do the loss and its gradient change
along the gradient, and how sharp is the loss, with BN and GN, with WS and
without? What part of the gradient does WS remove, and would it remove from the
same network without it? How many channels are dead?

Scientific parameters: the norm, WS.
Nuisance parameters: none; each arm trains at its best rate of lr_batch_size.
Fixed parameters: as experiments/lr_batch_size.py at a batch of 256 and three
  epochs, 117 steps. Seeds: 3.

  python scripts/sweep.py --experiment=experiments/smoothness.py
  python scripts/diagnose.py workdirs/smoothness --to=experiments/smoothness
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/fashion_mnist_10k.py:model=resnet8,stem=half,width=0.5,"
  "channels_per_group=4,crop_padding=0,log_every_steps=13,batch_size=256,"
  "epochs=3,checkpoint_every_steps=13,keep_checkpoints=9"
)

ARMS = (
  {"model.norm": "batch", "model.ws": False, "optim.learning_rate": 0.464},
  {"model.norm": "batch", "model.ws": True, "optim.learning_rate": 0.464},
  {"model.norm": "group", "model.ws": False, "optim.learning_rate": 0.215},
  {"model.norm": "group", "model.ws": True, "optim.learning_rate": 0.464},
)


def sweep():
  """Four arms, each at its rate, three seeds."""
  return product(ARMS, seed=range(3))
