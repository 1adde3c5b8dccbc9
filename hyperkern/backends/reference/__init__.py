"""Plain PyTorch: the fallback on every device, and the oracle of the kernels.

``primitives.py`` holds the primitives, block by block; ``losses.py`` whole losses in one visit of the pairs, for the
batches people train with, made of ``normalize.py``, ``pairs.py`` and ``softmax.py``.
"""

from . import losses, pairs, primitives
from .losses import LOSSES, loss, loss_grad
from .primitives import energy, evidence, normalize_backward, pair_grad, prepare, row_lse, unsupported, unverified

__all__ = [
    "LOSSES",
    "energy",
    "evidence",
    "loss",
    "loss_grad",
    "losses",
    "normalize_backward",
    "pair_grad",
    "pairs",
    "prepare",
    "primitives",
    "row_lse",
    "unsupported",
    "unverified",
]
