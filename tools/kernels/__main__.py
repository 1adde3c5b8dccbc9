"""``python -m tools.kernels``; `make kernels-report`."""

from .table import main

if __name__ == "__main__":
    main()
