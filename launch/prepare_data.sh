#!/usr/bin/env bash
# Downloads and prepares data sets with TFDS, as array_record, for --config.data_dir.
#
#   launch/prepare_data.sh DATA_DIR [cifar10] [fashion_mnist] [mnist]     (default: all)
#
# Needs a connection. Preparing needs TensorFlow, which nothing else here does, so it
# happens in a virtual environment of its own that is thrown away. PYTHON chooses the
# interpreter (default python3). Sets that are already there are left as they are.
set -euo pipefail

if [ $# -lt 1 ] || [[ "$1" == -* ]]; then
  echo "usage: $0 DATA_DIR [cifar10] [fashion_mnist] [mnist]" >&2
  exit 2
fi
data_dir=$1
shift
sets=("$@")
[ ${#sets[@]} -gt 0 ] || sets=(cifar10 fashion_mnist mnist)
for name in "${sets[@]}"; do
  case $name in
    cifar10 | fashion_mnist | mnist) ;;
    *)
      echo "$0: unknown data set '$name': one of cifar10, fashion_mnist, mnist" >&2
      exit 2
      ;;
  esac
done

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
tensorflow=tensorflow
[ "$(uname -sm)" = "Linux x86_64" ] && tensorflow="tensorflow-cpu"
echo "installing TensorFlow Datasets into a temporary environment"
"$venv/bin/pip" install --quiet "$tensorflow" tensorflow-datasets==4.9.10 \
  array_record importlib_resources pillow
for name in "${sets[@]}"; do
  TF_CPP_MIN_LOG_LEVEL=2 "$venv/bin/python" - "$name" "$data_dir" <<'PYTHON'
import sys

import tensorflow_datasets as tfds

name, data_dir = sys.argv[1:]
builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
builder.download_and_prepare()
sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
print(f"{name}: {sizes} in {builder.data_path}")
PYTHON
done
