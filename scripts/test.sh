#!/usr/bin/env bash
# Sets up, then runs the linter, the type checker and the fast tests, each even
# if the one before it complains. Arguments go to pytest:
#
#   bash scripts/test.sh                              # everything but the slow
#   bash scripts/test.sh tests/test_layout.py -n 0    # one file, one process
#   bash scripts/test.sh -m slow                      # the slow ones
#
# Exits with the code of pytest, plus 16 if the linter or the type checker
# complained: 16 if that is all, 17 if tests failed too.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
readonly python=".venv/bin/python"
readonly complaint=16

say() { printf '[test] %s\n' "$*"; }

# Among configs and experiments people keep files of their own: there only what
# git tracks is held to our style.
programs=()
while IFS= read -r -d '' file; do
  if [ -e "$file" ]; then programs+=("$file"); fi
done < <(git ls-files -z 'configs/*.py' 'experiments/*.py' 2>/dev/null \
  || printf 'configs\0experiments\0')
readonly typed=(scripts ws_jax "${programs[@]}")
readonly styled=(tests "${typed[@]}")

complained=""
check() {  # check NAME ARGUMENTS...: runs a tool of the venv
  say "$1 $2"
  "$python" -m "$@" || complained="$complained, $1 $2"
}
check ruff check "${styled[@]}"
check ruff format --check "${styled[@]}"
check pyrefly check --python-interpreter-path "$python" "${typed[@]}"

say "pytest"
code=0
# A file stays on one worker, so that what it compiles is compiled once.
"$python" -m pytest -n 2 --dist=loadfile "$@" || code=$?
if [ -n "$complained" ]; then
  say "not satisfied, see above: ${complained#, }"
  code=$((code + complaint))
fi
exit "$code"
