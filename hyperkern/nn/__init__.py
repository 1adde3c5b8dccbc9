"""The losses as modules: options at construction, features at the call."""

from .alignment_uniformity import AlignmentLoss, AlignUniformLoss, UniformityLoss
from .contrastive import CLIPLoss, DCLLoss, DCLWLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SupConLoss

__all__ = [
    "AlignUniformLoss",
    "AlignmentLoss",
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCELoss",
    "NTXentLoss",
    "SigLIPLoss",
    "SupConLoss",
    "UniformityLoss",
]
