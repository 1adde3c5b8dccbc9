"""Alignment, uniformity and contrastive losses, fused: loss and gradient without the N x N matrix."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from . import interrupt, metrics  # noqa: F401, interrupt is the first: it acts while PyTorch is being imported
from .backends import backend_info
from .cached import cached_step
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
from .nn import (
    AlignmentLoss,
    AlignUniformLoss,
    CLIPLoss,
    DCLLoss,
    DCLWLoss,
    InfoNCELoss,
    NTXentLoss,
    SigLIPLoss,
    SupConLoss,
    UniformityLoss,
)
from .queue import FeatureQueue
from .workspace import set_workspace_bytes, workspace_bytes

if TYPE_CHECKING:
    from . import evaluation as evaluation
    from .evaluation.evaluate import evaluate
    from .evaluation.result import Evaluation

try:
    __version__ = version("hyperkern")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

__all__ = [
    "AlignUniform",
    "AlignUniformLoss",
    "AlignmentLoss",
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "Evaluation",
    "FeatureQueue",
    "Group",
    "InfoNCELoss",
    "NTXentLoss",
    "SigLIPLoss",
    "SupConLoss",
    "UniformityLoss",
    "align_uniform",
    "alignment",
    "backend_info",
    "cached_step",
    "clip_loss",
    "dcl",
    "dclw",
    "evaluate",
    "info_nce",
    "metrics",
    "nt_xent",
    "pairwise_logsumexp",
    "set_workspace_bytes",
    "siglip",
    "sup_con",
    "uniformity",
    "workspace_bytes",
]


if not TYPE_CHECKING:  # a type checker knows these names, and that there are no others

    def __getattr__(name: str) -> object:
        """What no training step needs is imported when it is asked for first."""
        if name not in ("Evaluation", "evaluate", "evaluation"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(".evaluation", __name__)
        return module if name == "evaluation" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "evaluation"})
