"""Benchmarks of losses: what is compared, measured so that the figures mean something.

A `Case` is a loss with its textbook formula and its least arithmetic; an `Implementation` is a way to compute it. Both
are registered by a decorator, so that a kernel of your own is measured beside all others by a few lines in a file of
your own (``hyperkern bench --load FILE.py``). No implementation is timed before it has passed against float64.
"""

from .load import load_file
from .registry import Case, Implementation, Setup, case, implementation

__all__ = ["Case", "Implementation", "Setup", "case", "implementation", "load_file"]
