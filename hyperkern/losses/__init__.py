"""The losses: short compositions over the primitives of `hyperkern.autograd`."""

from . import _eager  # noqa: F401, registers how the losses below are called
from .align_uniform import AlignUniform, align_uniform
from .alignment import alignment
from .clip import clip_loss, siglip
from .info_nce import info_nce
from .logsumexp import pairwise_logsumexp
from .nt_xent import dcl, dclw, nt_xent
from .sup_con import sup_con
from .uniformity import uniformity

__all__ = [
    "AlignUniform",
    "align_uniform",
    "alignment",
    "clip_loss",
    "dcl",
    "dclw",
    "info_nce",
    "nt_xent",
    "pairwise_logsumexp",
    "siglip",
    "sup_con",
    "uniformity",
]
