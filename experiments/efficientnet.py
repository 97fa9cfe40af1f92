"""Does WS help an EfficientNet, and what should it do to depthwise kernels?

Question: which learning rates are usable with BN, GN and no norm, each with
plain weights, WS and scaled WS (1 / sqrt(fan-in), as norm-free nets have it)?
And is WS better where it spares the depthwise kernels, whose fan-in of 9 or 25
leaves no blur once the mean is gone (Brock et al. 2021, 2101.08692)? They are
standardized as all others, or only scaled, or left alone.

Scientific parameters: the norm; what WS does to the kernels, and to the
  depthwise ones.
Nuisance parameters: the learning rate, on one grid for all arms; arms are
  compared at their own best rates. Seeds: 3. One seed checks what is known
  beforehand: a norm undoes the scale of the kernels, so that BN and GN with
  scaled WS are the same functions as with WS; and without a norm WS that is not
  scaled does not learn.
Fixed parameters: EfficientNet-B0 at a quarter of its width, for images of 28
  pixels that its stem halves; no dropout and no stochastic depth, which take
  longer to pay; SGD with Nesterov momentum 0.9, weight decay 5e-4, a cosine
  schedule, batch 64; two epochs of 5,000 images.

Plan: 179 runs, 13 compiles. About 40 minutes of two cores, by the processor
time of a pilot of three runs on a busy machine: 22 s a run, 45 s a compile.

  python scripts/sweep.py --experiment=experiments/efficientnet.py --workers=2
"""

import itertools

from ws_jax.sweep import log_grid, product

CONFIG = (
  "configs/resnet8_small.py:model=efficientnet_cifar,stem_stride=2,width=0.25,"
  "dropout=0,stochastic_depth=0,train_split=train[:5000],batch_size=64,epochs=2"
)

PLAIN = {"model.ws": False}
WS = {"model.ws": True, "model.ws_convention": "bit"}
SCALED = {"model.ws": True, "model.ws_convention": "timm_scaled"}
ALL_KERNELS = {"model.ws_depthwise": ["standardize"]}
NORMS = {"model.norm": ["batch", "group"]}
RATES = {"optim.learning_rate": log_grid(0.03, 3, 5)}
SEEDS = {"seed": range(3)}


def sweep():
  """Yields the norms, then no norm, then the depthwise kernels, then the check.

  Without a norm the best rates are lower: its grid goes further down.
  """
  low = {"optim.learning_rate": log_grid(0.003, 3, 7)}
  spared = {"model.ws_depthwise": ["scale", "leave"]}
  no_norm = {"model.norm": ["none"]}
  return itertools.chain(
    product([PLAIN], **NORMS, **RATES, **SEEDS),
    product([WS], **NORMS, **ALL_KERNELS, **RATES, **SEEDS),
    product([PLAIN], **no_norm, **low, **SEEDS),
    product([SCALED], **no_norm, **ALL_KERNELS, **low, **SEEDS),
    product([WS], **NORMS, **spared, **RATES, **SEEDS),
    product([SCALED], **NORMS, **ALL_KERNELS, **RATES, seed=[0]),
    product([WS], **no_norm, **ALL_KERNELS, **low, seed=[0]),
  )
