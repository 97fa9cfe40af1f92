"""Does WS help networks that tell what somebody wants?

Question: how many of the intents of CLINC150 does a text CNN tell, without a
norm, with BN or LN, and a small transformer with LN or RMSNorm, each with and
without WS? TF-IDF with logistic regression has 91.4 % in the test.

Scientific parameters: the network, the norm, WS.
Nuisance parameters: the learning rate, on one grid for each network; arms are
  compared in the test at the rates that are best in the validation. Seeds: 3.
Fixed parameters: configs/clinc150.py, where WS is `timm_scaled` with gains.
  Eight epochs of the text CNN; five of a transformer with two blocks of 64
  channels, dropout 0.3.

  python scripts/sweep.py --experiment=experiments/clinc150.py --workers=2

and then, for the test,

  python scripts/evaluate_best.py workdirs/clinc150 --split=test \
    --to=experiments/clinc150

The data are in `data_full.json`, in the working folder. Plan: 54 runs of the CNN
and 36 of the transformer, on two cores about 25 minutes.
"""

from ws_jax.sweep import product

CONFIG = "configs/clinc150.py:ws_convention=timm_scaled,ws_gains=true"

CNN = {"model.name": "text_cnn", "train.epochs": 8.0}
TRANSFORMER = {
  "model.name": "transformer_classifier",
  "train.epochs": 5.0,
  "model.layers": 2,
  "model.dim": 64,
  "model.dropout": 0.3,
}


def sweep():
  """Yields ten arms, three rates, three seeds."""
  rest = {"model.ws": [False, True], "seed": range(3)}
  for network, norms, rates in (
    (CNN, ("none", "batch", "layer"), (1e-3, 3e-3, 1e-2)),
    (TRANSFORMER, ("layer", "rms"), (1e-3, 3e-3, 1e-2)),
  ):
    varied = {"model.norm": norms, "optim.learning_rate": rates}
    yield from product([network], **varied, **rest)
