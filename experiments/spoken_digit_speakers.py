"""Which arm recognizes digits of a speaker that it has never heard?

Question: five speakers say each digit fifty times. Trained on four of them, how
many digits of the fifth does BN recognize, and how many GN+WS? How far do the
speakers differ?

Scientific parameters: BN or GN+WS; the speaker who is left out.
Nuisance parameters: the learning rate, two for all; each arm has its better one
  for each speaker, chosen on that speaker, for both arms alike. Seeds: 2.
Fixed parameters: configs/spoken_digit.py for twenty epochs: TC-ResNet8, clips
  of one second at 8 kHz, batch 64, one-cycle schedule.

  python scripts/sweep.py --experiment=experiments/spoken_digit_speakers.py \
    --workers=2
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/spoken_digit.py:epochs=20,eval_every_epochs=none,"
  "checkpoint_every_epochs=none,keep_checkpoints=0"
)

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)
SPEAKERS = tuple(
  {"data.train_split": f"without-{name}", "data.eval_split": f"only-{name}"}
  for name in ("george", "jackson", "nicolas", "theo", "yweweler")
)


def sweep():
  """Returns the runs: two arms, five speakers, two rates, two seeds."""
  rates = [0.05, 0.2]
  return product(
    ARMS, SPEAKERS, seed=range(2), **{"optim.learning_rate": rates}
  )
