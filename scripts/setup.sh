#!/usr/bin/env bash
# Makes .venv in this checkout, with ws_jax (editable) and all that
# scripts/quickstart.sh and scripts/test.sh need. Safe to run again: it does
# nothing when nothing has changed.
#
#   bash scripts/setup.sh                      # with the first Python that fits
#   PYTHON=python3.13 bash scripts/setup.sh    # with this one
set -euo pipefail
unset CDPATH
case "${PYTHON:-}" in  # a relative path starts at the caller's folder
  /*) ;;
  */*) PYTHON="$PWD/$PYTHON" ;;
esac
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

readonly extras="dev"
readonly venv=".venv"
readonly stamp="$venv/ws_jax-installed"  # hash of what the install depends on
readonly marker="$venv/ws_jax-unfinished"  # exists while an install runs
readonly log_prefix="[setup]"

say() { printf '%s %s\n' "$log_prefix" "$*"; }
die() { printf '%s error: %s\n' "$log_prefix" "$*" >&2; exit 1; }

# Versions are given in pyproject.toml alone.
wanted=$(sed -n 's/^requires-python = ">=\([0-9.]*\)".*/\1/p' pyproject.toml)
[ -n "$wanted" ] || die "pyproject.toml has no line: requires-python = \">=X.Y\""

# These settings would make pip install elsewhere than into the venv, or wait
# for an answer.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Checks that $1 is a Python that runs and is new enough.
new_enough() {
  "$1" -c '
import sys
wanted = tuple(map(int, sys.argv[1].split(".")))
raise SystemExit(sys.version_info[:2] < wanted)
' "$wanted" </dev/null >/dev/null 2>&1
}

# Prints the full version of the Python $1, or nothing.
version_of() {
  "$1" -c 'import sys; print(sys.version)' </dev/null 2>/dev/null || true
}

# Prints the Python that makes the venv: $PYTHON, or the first new enough.
find_python() {
  local candidate candidates=(python3 python3.14 python3.13 python3.12)
  candidates+=(python3.11 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if new_enough "$candidate"; then
      # If it is of a venv, maybe of the one to be replaced: the one behind it.
      "$candidate" -c 'import sys; print(sys._base_executable)' </dev/null
      return
    fi
  done
  [ -z "${PYTHON:-}" ] \
    || die "PYTHON=$PYTHON is not a Python of version $wanted or newer."
  die "found no Python of version $wanted or newer (python3 is:" \
    "$(python3 --version 2>/dev/null || echo missing)). Install one, or name it:" \
    "PYTHON=/path/to/python3 bash scripts/setup.sh"
}

# Checks that .venv can be used. It cannot if an install into it was cut off, if
# its Python is gone or too old, or if $PYTHON asks for another version.
usable() {
  [ ! -e "$marker" ] && new_enough "$venv/bin/python" \
    && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
  [ -z "${PYTHON:-}" ] \
    || [ "$(version_of "$PYTHON")" = "$(version_of "$venv/bin/python")" ]
}

# Prints a hash of what the install depends on.
fingerprint() {
  "$venv/bin/python" -c '
import hashlib, os, sys
parts = [sys.version, os.getcwd(), sys.argv[1]]
parts += [open(name, encoding="utf-8").read() for name in sys.argv[2:]]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
' "$extras" pyproject.toml
}

make_venv() {
  local python
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 \
    || die "$python has no venv module. On Debian or Ubuntu:" \
      "apt-get install python3-venv"
  [ ! -e "$venv" ] || say "$venv cannot be used as it is: replacing it"
  say "making $venv with $("$python" --version 2>&1)"
  rm -rf "$venv"
  mkdir "$venv"
  touch "$marker"
  "$python" -m venv "$venv"
}

install() {
  rm -f "$stamp"
  touch "$marker"
  say "installing ws_jax[$extras] and its dependencies (1.2 GB, about a minute)"
  local bar=on
  [ -t 1 ] || bar=off
  if ! "$venv/bin/python" -m pip install --progress-bar="$bar" \
    --editable ".[$extras]" </dev/null; then
    # pip itself undoes an install that fails; only one that was cut off leaves
    # a venv that cannot be trusted.
    rm -f "$marker"
    die "pip could not install the dependencies; its message is above."
  fi
  fingerprint >"$stamp"
  rm -f "$marker"
  # Compiles the C++ for CPUs now; otherwise the first program would.
  "$venv/bin/python" -c 'from ws_jax import native; native.enable()' </dev/null
  say "done: $venv is ready"
}

# The story: find a venv that can be used or make one, then install into it.
trap 'say "interrupted; run it again to go on" >&2; exit 130' INT TERM HUP

if [ -n "${PYTHON:-}" ]; then find_python >/dev/null; fi
usable || make_venv
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
  say "$venv is up to date"
else
  install
fi
