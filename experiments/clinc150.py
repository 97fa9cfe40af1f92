"""Does WS help networks that tell what somebody wants?

Question: how many of the intents of CLINC150 does a text CNN tell, without a
norm and with BN, and a small transformer with LN, each with and without WS?
TF-IDF with logistic regression has 91.4 % in the test.

Scientific parameters: the network, the norm, WS.
Nuisance parameters: the learning rate, on one grid for all arms, which are
  compared in the test at the rates that are best in the validation. Seeds: 3.
Fixed parameters: configs/clinc150.py, where WS is `timm_scaled` with gains, and
  five epochs. The transformer has one block of 64 channels, dropout 0.3.

  python scripts/sweep.py --experiment=experiments/clinc150.py --workers=2

and then, for the test,

  python scripts/evaluate_best.py workdirs/clinc150 --split=test \
    --to=experiments/clinc150

The data are in `data_full.json`, in the working folder. Plan: 48 runs of the
CNN and 24 of the transformer, about 30 minutes on two cores. The first three
rates left five arms best at the highest; the fourth was added for that.
"""

from ws_jax.sweep import product

CONFIG = (
  "configs/clinc150.py:ws_convention=timm_scaled,ws_gains=true,epochs=5,"
  "eval_every_epochs=none,checkpoint_every_epochs=none"
)

CNN = {"model.name": "text_cnn"}
TRANSFORMER = {
  "model.name": "transformer_classifier",
  "model.layers": 1,
  "model.dim": 64,
  "model.dropout": 0.3,
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def sweep():
  """Yields six arms, four rates, three seeds."""
  for network, norms in ((CNN, ("none", "batch")), (TRANSFORMER, ("layer",))):
    yield from product(
      [network],
      **{"model.norm": norms, "model.ws": [False, True]},
      **{"optim.learning_rate": RATES, "seed": range(3)},
    )
