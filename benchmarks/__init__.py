"""Speed and memory of hyperkern, measured beside its peers by the harness in `hyperkern.bench`."""

from pathlib import Path

# A file for ``hyperkern bench --load``.
PEERS = Path(__file__).with_name("peers.py")
