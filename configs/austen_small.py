"""The small transformer of the experiments on text, on the novels of Austen.

Two blocks of 32 channels, on rows of 128 bytes. It is trained for 200 steps of
16 rows, 0.4 million bytes, and evaluated on the first quarter of Northanger
Abbey, once, at the end. No checkpoint is written, because nothing in a sweep
reads one.

Command (no download):

    python -m ws_jax.main --config=configs/austen_small.py \
      --workdir=workdirs/austen_small

Expect: 3.6 bits per byte, from one seed. LN without WS is the default.
Time: ten seconds on one core, compiling included.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.apply(
    base.default(),
    {
      "data.name": "austen",
      "data.eval_split": "validation[:25%]",
      "data.batch_size": 16,
      "data.eval_batch_size": 64,
      "task.name": "language_model",
      "task.length": 128,
      "model.name": "transformer_lm",
      "model.norm": "layer",
      "model.layers": 2,
      "model.dim": 32,
      "model.ws": False,
      "model.ws_convention": "timm_scaled",
      "model.ws_gains": True,
      "optim.name": "adamw",
      "optim.nesterov": False,
      "optim.b2": 0.95,
      "optim.learning_rate": 3e-2,
      "optim.weight_decay": 0.1,
      "optim.clip_norm": 1.0,
      "optim.warmup_steps": 20,
      "train.steps": 200,
      "train.eval_every_epochs": None,
      "train.log_every_steps": 20,
      "train.keep_checkpoints": 0,
    },
  )
  return base.variant(config, arg)
