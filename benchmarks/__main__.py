"""``python -m benchmarks``: the same as ``hyperkern bench``, from a source tree."""

import sys

from hyperkern.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]]))
