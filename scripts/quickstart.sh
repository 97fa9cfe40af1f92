#!/usr/bin/env bash
# Sets up, then trains BN, GN and GN+WS at two learning rates on real images
# (which the package holds), in under five minutes on two cores, and shows what
# happened. Safe to run again: what is finished is not repeated.
#
#   bash scripts/quickstart.sh           # into workdirs/quickstart
#   bash scripts/quickstart.sh DIR       # into DIR
set -euo pipefail
unset CDPATH
out="${1:-}"
# Seen from where it was typed, before the folder changes.
case "$out" in "" | /*) ;; *) out="$PWD/$out" ;; esac
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
out="${out:-workdirs/quickstart}"
readonly out

bash scripts/setup.sh
readonly python=".venv/bin/python"
readonly experiment="experiments/quickstart.py"

say() { printf '[quickstart] %s\n' "$*"; }
say "training 6 small ResNets; Ctrl-C stops, the same command goes on"
code=0
"$python" scripts/sweep.py --experiment="$experiment" --out="$out" \
  --retry_failed || code=$?
# A run that failed is a line in the table; anything else ends this here.
[ "$code" = 0 ] || [ "$code" = 4 ] || exit "$code"
"$python" scripts/report.py "$out"
[ "$code" = 0 ] || exit "$code"

cat <<END

One seed and two rates show what happens, and prove nothing. Next:

  source .venv/bin/activate
  python -m ws_jax.main --config=configs/fashion_mnist_10k.py \\
      --workdir=workdirs/mine --config.model.norm=group \\
      --config.model.ws=true --config.optim.learning_rate=0.4
  python scripts/sweep.py --experiment=$experiment --plan
  cat experiments/README.md
END
