"""``python -m benchmarks``: ``hyperkern bench`` with the peers, from a source tree."""

import sys

from hyperkern.cli import main

from . import PEERS

if __name__ == "__main__":
    raise SystemExit(main(["bench", "--load", str(PEERS), *sys.argv[1:]]))
