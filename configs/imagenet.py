"""ResNet-50 on ImageNet, by five published recipes.

`configs/imagenet.py:NAME`, where NAME is one of these; further keys follow it,
as `:gn,batch_size=512`.

- `ws_r50`, the default: GN+WS of Qiao et al. 2019 (1903.10520; their
  pytorch-classification). 90 epochs of batch 256, rate 0.1, divided by 10 after
  30 and 60, weight decay 1e-4 on all parameters. Expect 76.28 % top-1.
- `bn`: the same with BN and without WS, statistics over 64 images as on their
  four GPUs. Expect 75.70 %, read off the figure of their README.
- `gn`: GN of Wu and He 2018 (1803.08494): 100 epochs, divided by 10 after 30,
  60 and 90; the last scale of each block starts at 0. Expect 75.9 %.
- `bit_s_r50`: BiT-S R50x1 of Kolesnikov et al. 2019 (1912.11370), GN+WS before
  the activation. 90 epochs of batch 4096, rate 0.03 for each 256 images, 5000
  steps of warm-up, divided by 10 after 30, 60 and 80. Expect 76.0 %; the paper
  has 70.2 % for GN without WS (`:bit_s_r50,ws=false`), and 75.6 % for BN.
- `nf_r50`: NF-ResNet-50 of Brock et al. 2021 (2101.08692), Scaled WS and no
  normalization. 90 epochs of batch 1024, rate 0.1 for each 256 images, 5 epochs
  of warm-up, cosine, label smoothing 0.1, stochastic depth 0.1. Expect about
  76.8 %: a number from memory, for the paper's table could not be read.

Command, after `python scripts/prepare_data.py imagenet2012
--manual_dir=FOLDER_WITH_THE_TAR_FILES`, which takes 150 GB:

    python -m ws_jax.main --config=configs/imagenet.py:ws_r50 \
      --workdir=workdirs/imagenet

A folder of images or of tar files is streamed as well: `data.name=./FOLDER`.
Expect: the numbers above, which are those of the papers: none of the recipes was
  run here to the end.
Time: 90 epochs are 115 million images and 2.8e18 floating-point operations (4.1
billion multiplications and additions an image forward, three times that with
the gradient): 13 hours where 2,500 images are trained a second, 42 days at 32 a
second. Decoding them takes 2.4 ms of a core for an image
(experiments/benchmarks/stream.md): two cores would need 38 hours for that.
"""

from ws_jax import config as base
from ws_jax.base import names

_BASE = {
  "data.name": "imagenet2012",
  "data.source": "stream",
  "data.eval_split": "validation",
  "data.batch_size": 256,
  "data.eval_batch_size": 256,
  "task.crop_padding": 0,
  "optim.base_learning_rate": 0.1,
  "optim.weight_decay": 1e-4,
  "optim.decay": "all",
  "optim.nesterov": False,
  "optim.schedule": "step",
  "train.epochs": 90.0,
}
_WS_R50 = {
  "model.name": "resnet50",
  "model.num_groups": 32,
  "model.ws_convention": "qiao",
}
RECIPES = {
  "ws_r50": _WS_R50,
  "bn": {
    "model.name": "resnet50",
    "model.norm": "batch",
    "model.norm_batch_size": 64,
    "model.ws": False,
  },
  "gn": {
    "model.name": "resnet50_gn",
    "model.ws": False,
    "model.zero_init_last": True,
    "optim.boundaries": (0.3, 0.6, 0.9),
    "train.epochs": 100.0,
  },
  "bit_s_r50": {
    "data.batch_size": 4096,
    "model.name": "bit_r50x1",
    "model.ws_convention": "bit",
    "optim.base_learning_rate": 0.03,
    "optim.warmup_steps": 5000,
    "optim.boundaries": (30 / 90, 60 / 90, 80 / 90),
  },
  "nf_r50": {
    "data.batch_size": 1024,
    "task.label_smoothing": 0.1,
    "model.name": "nf_resnet50",
    "model.skip_init": True,
    "model.stochastic_depth": 0.1,
    "model.ws_convention": "nfnet",
    "optim.decay": "kernels",
    "optim.nesterov": True,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 5.0,
  },
}


def get_config(arg=""):
  """Returns the configuration; `arg` is what follows the colon."""
  name, _, rest = (arg or "").partition(",")
  if "=" in name or not name:
    name, rest = "ws_r50", arg
  try:
    recipe = names.lookup(RECIPES, name, "recipe")
  except ValueError as error:
    raise base.ConfigError(str(error)) from None
  config = base.apply(base.default(), _BASE | recipe)
  config.model.dtype = "bfloat16"
  return base.variant(config, rest)
