#!/usr/bin/env bash
# Makes .venv and installs the package with its tools into it, at the exact versions of constraints.txt.
# Called by make with the Python to use, when .venv/.complete is absent or older than the files that decide.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1

fail() { echo "$*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Kept: an environment that was complete here. Made anew: one that was moved (its scripts hold its path), was
# interrupted while it was filled, or belongs to an older Python.
is_usable() {
  [ -x .venv/bin/python ] && is_new_enough .venv/bin/python && [ ! -e .venv/.installing ] &&
    [ "$(cat .venv/.path 2>/dev/null)" = "$(pwd -P)" ]
}

decides=$(cat pyproject.toml constraints.txt em_assets_default_target.pth | cksum)
if is_usable && [ "$(cat .venv/.complete 2>/dev/null)" = "$decides" ]; then
  touch .venv/.complete # a checkout gave a file a new time, not a new content: nothing to do, also offline
  exit 0
fi

rm -f .venv/.complete
if ! is_usable; then
  command -v "$python" >/dev/null || fail "There is no $python here; install Python 3.11 or newer, or say: make PYTHON=/path/to/python3"
  is_new_enough "$python" || fail "$python is $("$python" -V 2>&1 | head -n 1), but 3.11 or newer is needed; say: make PYTHON=/path/to/python3.11"
  "$python" -m venv --clear .venv || fail "$python -m venv failed; on Debian and Ubuntu install python3-venv."
  pwd -P >.venv/.path
fi

trap 'exit 130' INT TERM # leaves .installing, so the half-filled environment is made anew
echo "Installing em_assets and its tools into .venv (once, a minute or two)"
touch .venv/.installing
if ! .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,sample,view]'; then
  rm -f .venv/.installing # pip stopped by itself and left what was there: the next call goes on from it
  fail "The installation into .venv failed for the reason above; the next make takes it up again."
fi
rm .venv/.installing
echo "$decides" >.venv/.complete
