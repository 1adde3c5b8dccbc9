"""Alignment and uniformity of a whole data set, streamed in blocks from memory or from a file.

A loss needs its features on the device. Here they stay where they are, and a block at a time is brought to the device,
so that a data set larger than its memory is evaluated too: exactly, every pair once, or from a sample of columns with a
confidence interval.
"""

from .evaluate import evaluate
from .result import Evaluation, Side
from .sources import Source, open_features

__all__ = ["Evaluation", "Side", "Source", "evaluate", "open_features"]
