"""How a process that runs jobs starts; imports nothing that reads the environment."""

import multiprocessing
import os
import signal
import threading


def start() -> None:
    """One thread, since there are as many processes as there are cores; Ctrl-C is for the process that started it.

    If that one is killed, this one ends as well: it would wait for jobs for ever.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
