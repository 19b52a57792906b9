#!/usr/bin/env bash
# Train on one GPU and survive the end of the login session. Run it again to go on; stop it with kill PID.
#
#   launch/one-gpu.sh configs/tiny.yaml train.precision=bf16
set -euo pipefail

GPU=${GPU:-0}                       # which GPU of the machine
VENV=${VENV:-.venv}

CUDA_VISIBLE_DEVICES=$GPU nohup "$VENV/bin/internevo" train "$@" > "train-$GPU.out" 2>&1 &
echo "process $!, output in train-$GPU.out"
