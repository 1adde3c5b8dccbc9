"""How a process that runs jobs starts; imports nothing that reads the environment."""

import os
import signal


def start() -> None:
    """One thread, since there are as many processes as there are cores; Ctrl-C is for the process that started it."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
