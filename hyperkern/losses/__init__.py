"""The losses: short compositions over the primitives of `hyperkern.autograd`."""

from .align_uniform import AlignUniform, align_uniform
from .alignment import alignment
from .contrastive import clip_loss, info_nce
from .logsumexp import pairwise_logsumexp
from .uniformity import uniformity

__all__ = [
    "AlignUniform",
    "align_uniform",
    "alignment",
    "clip_loss",
    "info_nce",
    "pairwise_logsumexp",
    "uniformity",
]
