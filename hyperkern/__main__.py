"""``python -m hyperkern``: the command ``hyperkern``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
