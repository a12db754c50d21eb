#!/usr/bin/env bash
# Runs a mode on all workers of a Cloud TPU VM slice.
#
#   TPU=SLICE ZONE=us-central2-b launch/tpu_vm.sh MODE CONFIG --workdir=gs://... [OPTION...]
#   TPU=SLICE ZONE=us-central2-b launch/tpu_vm.sh train \
#     configs/cifar10.py:paper --workdir=gs://BUCKET/cifar10 --config.data_dir=gs://BUCKET/data
#
# Copies the last commit, installs what is missing, and waits. The same command goes on
# after a preemption, once the slice is there again, and after exit code 75, which means
# that a worker was asked to stop: pkill -TERM -f main.py, by `gcloud compute tpus tpu-vm
# ssh`. PROJECT is optional.
set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
if [ $# -lt 3 ] || ! printf '%s\n' "${@:3}" | grep -q '^--workdir=gs://'; then
  echo "usage: TPU=... ZONE=... $0 MODE CONFIG --workdir=gs://... [OPTION...]" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
mode=$1
config=$2
shift 2
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all)
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU:pixeldefend.tar.gz" "${where[@]}"
# uv, for the images of TPU VMs bring a Python that is too old. Paths of gs:// need
# gcsfs, TPUs their own build of JAX.
# shellcheck disable=SC2016  # for the workers' shells
setup='mkdir -p pixeldefend && tar -xzf pixeldefend.tar.gz -C pixeldefend && cd pixeldefend
python3 -m pip install -q --user uv
[ -x .venv/bin/python ] || python3 -m uv venv -q --python 3.12 .venv
python3 -m uv pip install -q --python .venv/bin/python -r requirements.txt \
  "jax[tpu]==$(sed -n "s/^jax==//p" requirements.txt)" gcsfs'
run=$(printf '%q ' .venv/bin/python main.py --distributed \
  --mode="$mode" --config="$config" "$@")
gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="set -e
$setup
exec $run"
