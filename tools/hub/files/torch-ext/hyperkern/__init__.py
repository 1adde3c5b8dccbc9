"""Alignment, uniformity and contrastive losses, fused: loss and gradient without the N x N matrix."""

from . import layers, nn
from .backends import backend_info
from .distributed import Group
from .losses import (
    AlignUniform,
    align_uniform,
    alignment,
    clip_loss,
    dcl,
    dclw,
    info_nce,
    nt_xent,
    pairwise_logsumexp,
    siglip,
    sup_con,
    uniformity,
)
from .workspace import set_workspace_bytes, workspace_bytes

__all__ = [
    "AlignUniform",
    "Group",
    "align_uniform",
    "alignment",
    "backend_info",
    "clip_loss",
    "dcl",
    "dclw",
    "info_nce",
    "layers",
    "nn",
    "nt_xent",
    "pairwise_logsumexp",
    "set_workspace_bytes",
    "siglip",
    "sup_con",
    "uniformity",
    "workspace_bytes",
]
