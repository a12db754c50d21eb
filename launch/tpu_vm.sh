#!/usr/bin/env bash
# Runs a mode on all workers of a Cloud TPU VM slice.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_vm.sh MODE CONFIG --workdir=gs://... [OPTION...]
#   TPU=my-slice ZONE=us-central2-b launch/tpu_vm.sh train_pixelcnn \
#     configs/cifar10.py:paper --workdir=gs://my-bucket/cifar10 --config.data_dir=gs://my-bucket/data
#
# Copies the last commit, installs what is missing, and waits. Exits with 75 where the
# slice was asked to stop: the same command goes on. PROJECT is optional.
set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
if [ $# -lt 3 ] || ! printf '%s\n' "$@" | grep -q '^--workdir=gs://'; then
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
# Paths of gs:// need gcsfs; TPUs their own build of JAX.
# shellcheck disable=SC2016  # for the workers' shells
setup='mkdir -p pixeldefend && tar -xzf pixeldefend.tar.gz -C pixeldefend && cd pixeldefend
python3 -m venv .venv
.venv/bin/pip install -q -r requirements.txt "jax[tpu]==$(sed -n "s/^jax==//p" requirements.txt)" gcsfs'
run=$(printf '%q ' .venv/bin/python main.py --distributed \
  --mode="$mode" --config="$config" "$@")
gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="set -e
$setup
exec $run"
