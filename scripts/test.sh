#!/usr/bin/env bash
# Sets up, then runs the linter, the type checker and the fast tests. Arguments
# go to pytest:
#
#   bash scripts/test.sh                              # everything but the slow
#   bash scripts/test.sh tests/test_layout.py -n 0    # one file, one process
#   bash scripts/test.sh -m slow                      # the slow ones
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
readonly python=".venv/bin/python"

say() { printf '[test] %s\n' "$*"; }
say "ruff check";    "$python" -m ruff check .
say "ruff format";   "$python" -m ruff format --check .
say "pyrefly check"
"$python" -m pyrefly check --python-interpreter-path "$python"
say "pytest"
# A file stays on one worker, so that what it compiles is compiled once.
exec "$python" -m pytest -n 2 --dist=loadfile "$@"
