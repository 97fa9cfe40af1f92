"""Fine-tuning of Big Transfer by its rule: no hyperparameter is searched.

BiT-HyperRule, Kolesnikov et al. 2020 (1912.11370), section 3.3: the number of
examples decides how long to train and whether to use MixUp, the size of the
images decides the resolution. SGD with momentum 0.9, rate 0.003 at batch 512,
divided by 10 after 30, 60 and 90 % of the steps, no weight decay, a head that
starts at zero. The warm-up is that of the authors' code.

`examples` and `side`, behind the colon, are the number of training examples and
the height of an image in pixels. Without them they are those of the data that
are named there, too: `:data=./pets`. Fewer than 20,000 examples take 500 steps.

Command, with a folder of images and published weights in our layout, as the
verb `import` of ws_jax.weights writes them:

    python -m ws_jax.main --workdir=workdirs/pets \
      --config=configs/bit_hyperrule.py:examples=3680,side=300 \
      --config.data.name=./pets --config.init_from=./bit_s_r50x1.safetensors

Expect: unknown. Neither the published weights nor the data sets of the paper
could be had here; the rule is tested, and a net pretrained here is fine-tuned
by experiments/transfer.py.
Time: too long for two cores at the resolution of 384; it is meant for
accelerators. Where the batch does not fit, `--config.optim.micro_batch_size=64`
gives the same result.
"""

import math

from ws_jax import config as base
from ws_jax import data
from ws_jax.train import build

_SMALL, _MEDIUM = 20_000, 500_000  # examples
_LOW = 96  # pixels


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  items = [item for item in arg.split(",") if item]
  own = [x for x in items if x.partition("=")[0] in ("examples", "side")]
  given = {x.partition("=")[0]: int(x.partition("=")[2]) for x in own}
  rest = ",".join(x for x in items if x not in own)
  config = base.apply(
    base.default(),
    {
      "data.batch_size": 512,
      "model.name": "bit_r50x1",
      "init_zero": ("head/*",),
      "task.crop_padding": 0,
      "optim.learning_rate": 0.003,
      "optim.weight_decay": 0.0,
      "optim.nesterov": False,
      "optim.schedule": "step",
      "optim.boundaries": (0.3, 0.6, 0.9),
    },
  )
  base.variant(config, rest)
  if len(given) < 2:
    info = data.read_info(build.request(config))
    side = math.isqrt(math.prod(info.input_shape[:2]))
    given = {"examples": info.train_size, "side": side} | given
  base.apply(config, rule(**given))
  return base.variant(config, rest)


def rule(examples, side):
  """Returns what the rule says, by the keys that it sets.

  Args:
    examples: Number of training examples.
    side: Height or width of an image in pixels.
  """
  small = examples < _SMALL
  steps = 500 if small else 10_000 if examples < _MEDIUM else 20_000
  low = side < _LOW
  return {
    "train.steps": steps,
    "optim.warmup_steps": 100 if small else 500,
    "task.mixup": 0.0 if small else 0.1,
    "task.resize": 160 if low else 448,
    "task.size": 128 if low else 384,
  }
