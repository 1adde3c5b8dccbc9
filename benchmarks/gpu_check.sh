#!/usr/bin/env bash
# The one command on a machine with an NVIDIA GPU: the tests, memcheck where there is a sanitizer, then correctness,
# speed and memory, written to benchmarks/results/<gpu>/<commit>.json. Needs no network and no installation.
#   benchmarks/gpu_check.sh [--quick]        full: within 8 minutes; quick: within 2
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET HYPERKERN_BACKEND
PYTHON=${PYTHON:-python3}
mode=full tests=(tests/backends tests/losses)
if [[ ${1:-} == --quick ]]; then
  mode=quick tests=(tests/backends)
elif [[ $# -gt 0 ]]; then
  echo "usage: benchmarks/gpu_check.sh [--quick]" >&2
  exit 2
fi

"$PYTHON" - <<'PYTHON' || exit 2
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu_check.sh: no CUDA GPU found by PyTorch; without one, run `make test` (the kernels in Triton's interpreter)")
PYTHON
gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())')
commit=$(git describe --always --dirty 2>/dev/null || echo "${HYPERKERN_COMMIT:-unknown}")
out=${OUT_DIR:-benchmarks/results/$gpu}/$commit.json
status=0

"$PYTHON" -c 'from hyperkern.cli import main; main(["info"])'
echo "== tests on the device"
"$PYTHON" -m pytest -q -m gpu -k triton -p no:cacheprovider "${tests[@]}" || status=1
if [[ $mode == full ]] && command -v compute-sanitizer >/dev/null; then
  echo "== memcheck, small shapes"
  compute-sanitizer --tool memcheck --error-exitcode 1 --print-limit 5 \
    "$PYTHON" -m pytest -q -m gpu -k "triton and (shape or offsets)" -p no:cacheprovider tests/backends || status=1
fi
echo "== correctness, speed, memory"
"$PYTHON" -m benchmarks.gpu --mode "$mode" --out "$out" || status=1
exit $status
