#!/usr/bin/env bash
# Sets up, trains BN, GN and GN+WS at two learning rates on real images of the
# package, in under five minutes on two cores, and prints a table of results.
# Safe to run again: it does not repeat what is finished.
#
#   bash scripts/quickstart.sh           # into workdirs/quickstart
#   bash scripts/quickstart.sh DIR       # into DIR
set -euo pipefail
unset CDPATH
out="${1:-}"
# A relative path starts at the caller's folder.
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
# 4: some runs failed, and the table says which. Other codes end this script.
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
