#!/usr/bin/env bash
# The one command on a machine with an NVIDIA GPU: a plan of steps (benchmarks/plan/steps.py), each a process with a
# time limit. Needs no network and no installation.
#   [PYTHON=python3] [OUT_DIR=folder] benchmarks/gpu_check.sh [--smoke | --cpu] [STEP...]
# All within 9 minutes, --smoke within one; --cpu walks through the plan without a GPU. A STEP is a name or a pattern.
# Results: result.json, rows.jsonl and log.txt in $OUT_DIR, or in benchmarks/results/<gpu>/<commit>.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # tests ask PyTorch for deterministic algorithms
export HYPERKERN_CHECK=off  # a backend that is named needs no check of its own, and steps have their own
unset TRITON_INTERPRET HYPERKERN_BACKEND
exec "${PYTHON:-python3}" -m benchmarks.plan "$@"
