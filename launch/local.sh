#!/usr/bin/env bash
# Runs a mode on this machine and all its GPUs, in the background, with a log.
#
#   launch/local.sh MODE CONFIG [OPTION...]
#   launch/local.sh train configs/cifar10.py --config.data_dir=DATA_DIR
#
# PYTHON chooses the interpreter (default .venv/bin/python, or python3 where there is
# none). A run that was stopped
# (kill PROCESS) or killed continues when the same command is given again.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 MODE CONFIG [OPTION...]" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
mode=$1
config=$2
shift 2
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
if ! command -v "$python" >/dev/null; then
  echo "$0: there is no $python; make .venv (README.md) or set PYTHON" >&2
  exit 2
fi
# Here, for in the background nobody would see it fail.
if ! "$python" -c 'from importlib.util import find_spec as find
raise SystemExit(not all(map(find, ("absl", "jax", "ml_collections"))))'; then
  echo "$0: $python lacks packages of requirements.txt; make .venv (README.md) or" \
    "set PYTHON" >&2
  exit 2
fi
mkdir -p runs
log=runs/$mode-$(date +%Y%m%d-%H%M%S).log
nohup nice "$python" main.py \
  --mode="$mode" --config="$config" "$@" >"$log" 2>&1 &
echo "process $!, log $log"
