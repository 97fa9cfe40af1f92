"""The speech network of most experiments: TC-ResNet8 for eight epochs.

Arabic Speech Commands with its usual features; SpecAugment masks half as much
as in configs/arabic_speech_commands.py, since so short a run does not overfit.
It evaluates at its end, on the six speakers of `val`; the six of `test` are for
`experiments/speech_test.py`, which reads the checkpoint of the last step.

Command, after `python scripts/prepare_data.py` as in
configs/arabic_speech_commands.py:

    python -m ws_jax.main --config=configs/speech_small.py \
      --workdir=workdirs/speech_small

Arms: `:norm=batch,ws=false` is BN, `:ws=false` is GN.

Expect: 93.6 % on val and 95.8 % on test with GN+WS at `:learning_rate=0.3`,
91.2 % on val with GN at `:ws=false,learning_rate=0.1`, in pilots of one seed.
Time: 40 seconds of processor time, of which 12 are start and compiling.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.load("configs/arabic_speech_commands.py")
  base.apply(
    config,
    {
      "data.eval_split": "val",
      "task.time_mask_ms": 125.0,
      "task.band_mask": 4,
      "train.epochs": 8.0,
      "train.eval_every_epochs": None,
      "train.checkpoint_every_epochs": None,
      "train.log_every_steps": 100,
    },
  )
  return base.variant(config, arg)
