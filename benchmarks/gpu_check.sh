#!/usr/bin/env bash
# The one command on a machine with an NVIDIA GPU: correctness, speed and memory, written to
# benchmarks/results/<gpu>/<commit>.json, then the tests, and memcheck where there is a sanitizer. Needs no network and
# no installation.
#   benchmarks/gpu_check.sh [--quick]        full: within 8 minutes; quick: within 2
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # tests ask PyTorch for deterministic algorithms
unset TRITON_INTERPRET HYPERKERN_BACKEND
PYTHON=${PYTHON:-python3}
mode=full budget=240 tests=(tests/backends tests/losses)
if [[ ${1:-} == --quick ]]; then
  mode=quick budget=60 tests=(tests/backends/test_triton_schedule.py tests/backends/test_triton_step.py)
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
commit=${HYPERKERN_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
out=${OUT_DIR:-benchmarks/results/$gpu}/$commit.json
status=0

"$PYTHON" -c 'from hyperkern.cli import main; main(["info"])'
# First what is lost if the time runs out: the figures are written after every stage.
echo "== correctness, speed, memory"
timeout "$budget" "$PYTHON" -m benchmarks.gpu --mode "$mode" --out "$out" || status=1
echo "== tests on the device"
parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n 4 --dist worksteal)
timeout "$budget" "$PYTHON" -m pytest -q -m gpu -k triton -p no:cacheprovider "${parallel[@]}" "${tests[@]}" || status=1
if [[ $mode == full ]]; then
  echo "== memcheck, small shapes"
  probe='import torch; torch.ones(1, device="cuda").sum().item()'
  if compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" -c "$probe" >/dev/null 2>&1; then
    timeout 120 compute-sanitizer --tool memcheck --error-exitcode 9 --print-limit 5 \
      "$PYTHON" -m pytest -q -m gpu -k "triton and offsets" -p no:cacheprovider tests/backends || status=1
  else
    echo "not run: compute-sanitizer is not here, or does not work on this machine"
  fi
fi
exit $status
