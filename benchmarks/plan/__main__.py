"""``python -m benchmarks.plan``, as `benchmarks/gpu_check.sh` starts it."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
