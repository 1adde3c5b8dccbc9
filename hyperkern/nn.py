"""The losses as modules: options at construction, features at the call. Each stands beside its function."""

from .losses.align_uniform import AlignUniformLoss
from .losses.alignment import AlignmentLoss
from .losses.clip import CLIPLoss, SigLIPLoss
from .losses.info_nce import InfoNCELoss
from .losses.nt_xent import DCLLoss, DCLWLoss, NTXentLoss
from .losses.sup_con import SupConLoss
from .losses.uniformity import UniformityLoss

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
