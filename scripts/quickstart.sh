#!/usr/bin/env bash
# From a fresh clone to a trained, fine-tuned and evaluated model, on the embedded emoji set, on a laptop's CPU.
#   bash scripts/quickstart.sh [WORKDIR]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh .
workdir="${1:-workdirs/quickstart}"

echo "1/3  masked autoencoder: pre-training without labels, then linear probes of its encoder"
python scripts/train.py --config=configs/mae.py --workdir="$workdir/mae"
echo "2/3  ViT, fine-tuned from that checkpoint"
python scripts/train.py --config=configs/vit.py:init="$workdir/mae" --workdir="$workdir/finetuned"
echo "3/3  one table"
python scripts/evaluate.py --workdir="$workdir/mae,$workdir/finetuned"
echo "look at  $(ls -d "$workdir"/mae/evaluations/*/reconstruction/reconstruction.png | tail -n 1)  $workdir/mae/curves.png  $workdir/finetuned/curves.png"
