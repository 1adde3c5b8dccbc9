#!/usr/bin/env bash
# The one command on a machine with an NVIDIA GPU: for each backend correctness, speed and memory, written to
# benchmarks/results/<gpu>/<commit>-<backend>.json, then the tests, and memcheck where there is a sanitizer. Builds the
# CUDA extension where nvcc is and it is missing. Needs no network and no installation.
#   benchmarks/gpu_check.sh [--quick] [cuda|triton]     for one backend: full within 8 minutes, quick within 2
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # tests ask PyTorch for deterministic algorithms
unset TRITON_INTERPRET HYPERKERN_BACKEND
PYTHON=${PYTHON:-python3}
mode=full budget=240 tests=(tests/backends tests/losses) backends=(cuda triton)
for argument in "$@"; do
  case $argument in
    --quick) mode=quick budget=60 tests=(tests/backends/test_step.py tests/backends/test_primitives.py) ;;
    cuda | triton) backends=("$argument") ;;
    *)
      echo "usage: benchmarks/gpu_check.sh [--quick] [cuda|triton]" >&2
      exit 2
      ;;
  esac
done

"$PYTHON" - <<'PYTHON' || exit 2
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu_check.sh: no CUDA GPU found by PyTorch; without one, run `make test` (the kernels emulated)")
PYTHON
gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())')
commit=${HYPERKERN_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
out=${OUT_DIR:-benchmarks/results/$gpu}/$commit
status=0

library=hyperkern/backends/cuda/kernels.so
if [[ " ${backends[*]} " == *" cuda "* && ! -e $library ]] && command -v nvcc >/dev/null; then
  echo "== building $library"
  HYPERKERN_BUILD_CUDA=1 "$PYTHON" setup.py build_ext --inplace >/dev/null || status=1
fi
"$PYTHON" -c 'from hyperkern.cli import main; main(["info"])'
parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n 4 --dist worksteal)
sanitizer=no
probe='import torch; torch.ones(1, device="cuda").sum().item()'
if [[ $mode == full ]] &&
  compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" -c "$probe" >/dev/null 2>&1; then
  sanitizer=yes
fi
for backend in "${backends[@]}"; do
  # First what is lost if the time runs out: the figures are written after every stage.
  echo "== $backend: correctness, speed, memory"
  timeout "$budget" "$PYTHON" -m benchmarks.gpu --backend "$backend" --mode "$mode" --out "$out-$backend.json" || status=1
  echo "== $backend: tests on the device"
  keyword=$backend
  [[ $backend == cuda ]] && keyword="cuda-cuda or test_cuda"  # the device has the same name
  timeout "$budget" "$PYTHON" -m pytest -q -m gpu -k "$keyword" -p no:cacheprovider "${parallel[@]}" "${tests[@]}" ||
    status=1
  if [[ $sanitizer == yes ]]; then
    echo "== $backend: memcheck, initcheck and synccheck, small shapes"
    for tool in memcheck initcheck synccheck; do
      timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
        "$PYTHON" -m pytest -q -m gpu -k "($keyword) and (offsets or wraps)" -p no:cacheprovider tests/backends || status=1
    done
  elif [[ $mode == full ]]; then
    echo "not run: compute-sanitizer is not here, or does not work on this machine"
  fi
done
exit $status
