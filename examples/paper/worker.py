"""How a process that runs jobs starts; imports nothing that reads the environment."""

import os
import signal
import threading
from multiprocessing.connection import Connection


def start(alive: Connection) -> None:
    """One thread, since there are as many processes as there are cores; Ctrl-C is for the process that started it.

    Args:
        alive: of a pipe whose other end is closed when nobody waits for jobs any more, also because the process that
            started this one was killed. This one then ends as well, whatever it computes.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    alive.poll(None)
    os._exit(1)
