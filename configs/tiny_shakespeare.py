"""The transformer of nanoGPT's first example, on Tiny Shakespeare.

The settings for a CPU in the README of nanoGPT: four blocks of 128 channels
with four heads, learned positions, no dropout, rows of 64 characters, batch 12,
2,000 steps of AdamW at 1e-3. The data are those of TFDS: the first 90 % of the
text are for training, 5 % each for validation and test.

Command, with the text in a file:

    python -m ws_jax.main --config=configs/tiny_shakespeare.py \
      --config.data.name=./input.txt --workdir=workdirs/tiny_shakespeare

or, after `python scripts/prepare_data.py tiny_shakespeare`, without data.name.

Expect: not measured. nanoGPT reports a validation loss of 1.88 nats a
character, 2.71 bits per byte, for its own split and a mean over 20 batches.
Time: about three minutes on two cores, by the number of tokens.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.apply(
    base.default(),
    {
      "data.name": "tiny_shakespeare",
      "data.eval_split": "validation",
      "data.batch_size": 12,
      "data.eval_batch_size": 96,
      "task.name": "language_model",
      "task.length": 64,
      "model.name": "transformer_lm",
      "model.norm": "layer",
      "model.positions": "learned",
      "model.ws": False,
      "model.ws_convention": "timm_scaled",
      "optim.name": "adamw",
      "optim.nesterov": False,
      "optim.learning_rate": 1e-3,
      "optim.weight_decay": 0.1,
      "optim.clip_norm": 1.0,
      "optim.warmup_steps": 100,
      "train.steps": 2000,
      "train.eval_every_steps": 500,
      "train.checkpoint_every_steps": 500,
    },
  )
  return base.variant(config, arg)
