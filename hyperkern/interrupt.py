"""Ctrl-C while the command is still importing PyTorch, before any code of the command can catch it.

Importing this module lets it end the process without a traceback, until `raise_again`, where the process is the command
and no program that imports the package.
"""

import signal
import sys
import threading
from pathlib import Path


def raise_again() -> None:
    """Lets Ctrl-C raise `KeyboardInterrupt` again."""
    if _handler_is(signal.SIG_DFL):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    name = sys.argv[0] if getattr(sys, "argv", None) else ""  # some programs that embed Python have no arguments
    if name == "-m":  # until the module has been found: the word behind the first "-m", or what it starts
        options = iter(sys.orig_argv[1:])
        module = next((word[2:] or next(options, "") for word in options if word.startswith("-m")), "")
        return module == "hyperkern"
    return Path(name).stem == "hyperkern" and Path(name).is_file()


def _handler_is(handler: object) -> bool:
    # Signals belong to the main thread.
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == handler


if _is_command() and _handler_is(signal.default_int_handler):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
