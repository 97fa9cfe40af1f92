"""A small transformer that writes like Jane Austen, byte by byte.

Four novels are for training (3.1 MB); the run is evaluated on Northanger Abbey.
The novels are in the package.

Command (no download):

    python -m ws_jax.main --config=configs/austen.py --workdir=workdirs/austen

and then, on Persuasion, which decided nothing:

    python -m ws_jax.main --evaluate=workdirs/austen \
      --config.data.eval_split=test

Arms: `:ws=true` standardizes the kernels of attention and MLP, scaled by
1/sqrt(fan-in), with `ws_gains=true` times a number that is learned for each
filter; `:ws=true,ws_convention=bit` without that scale. A filter of `out` has
inputs of all heads, or with `ws_axes=per_head` of one head. `:norm=rms`,
`:qk_norm=true`, `:z_loss=1e-4` and `:tokenizer=pieces` (the extra `text`).

Expect: 1.76 bits per byte on the validation, 1.79 on the test; a byte 5-gram has
2.18 on the beginning of Persuasion.
Time: about 15 minutes on two cores, by the 1.1 seconds of processor time that a
step takes; 1,500 steps at 40 to 80 a second on an H200, where that was measured.
"""

from ws_jax import config as base


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  config = base.apply(
    base.default(),
    {
      "data.name": "austen",
      "data.eval_split": "validation",
      "data.batch_size": 32,
      "data.eval_batch_size": 32,
      "task.name": "language_model",
      "model.name": "transformer_lm",
      "model.norm": "layer",
      "model.ws": False,
      "model.ws_convention": "timm_scaled",
      "optim.name": "adamw",
      "optim.nesterov": False,
      "optim.learning_rate": 3e-3,
      "optim.weight_decay": 0.1,
      "optim.clip_norm": 1.0,
      "optim.warmup_steps": 100,
      "train.steps": 1500,
      "train.eval_every_steps": 500,
      "train.checkpoint_every_steps": 500,
    },
  )
  return base.variant(config, arg)
