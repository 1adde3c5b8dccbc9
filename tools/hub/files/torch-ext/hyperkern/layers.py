"""The losses as layers that have no state: each takes the place of the ``forward`` of a module that has it.

What a layer reads of that module is annotated. Rows are scaled to unit length first, and the mean is returned; for
other options, or for a scale that is learned, take the functions, or the modules of ``nn``.
"""

from torch import Tensor
from torch.nn import Module

from . import losses


class AlignmentLoss(Module):
    """Mean distance of the partners ``(x_i, y_i)``, both ``(N, D)``, to the power of ``alpha``."""

    can_torch_compile: bool = True
    alpha: float

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return losses.alignment(x, y, alpha=self.alpha)


class UniformityLoss(Module):
    """Logarithm of the mean Gaussian potential of the pairs of rows of ``x``, ``(N, D)``."""

    can_torch_compile: bool = True
    t: float

    def forward(self, x: Tensor) -> Tensor:
        """A scalar."""
        return losses.uniformity(x, t=self.t)


class AlignUniformLoss(Module):
    """Alignment and uniformity of two views, both ``(N, D)``, with weights of 1."""

    can_torch_compile: bool = True
    alpha: float
    t: float

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return losses.align_uniform(x, y, alpha=self.alpha, t=self.t).loss


class InfoNCELoss(Module):
    """InfoNCE of the queries ``x`` with the keys ``y``, both ``(N, D)``, one way."""

    can_torch_compile: bool = True
    temperature: float

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return losses.info_nce(x, y, temperature=self.temperature)


class NTXentLoss(Module):
    """NT-Xent of two views, both ``(N, D)``."""

    can_torch_compile: bool = True
    temperature: float

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return losses.nt_xent(x, y, temperature=self.temperature)


class DCLLoss(Module):
    """The decoupled contrastive loss of two views, both ``(N, D)``."""

    can_torch_compile: bool = True
    temperature: float

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return losses.dcl(x, y, temperature=self.temperature)


class DCLWLoss(Module):
    """The same with weights of the positives, of width ``sigma``."""

    can_torch_compile: bool = True
    temperature: float
    sigma: float

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return losses.dclw(x, y, temperature=self.temperature, sigma=self.sigma)


class SupConLoss(Module):
    """The supervised contrastive loss of features ``(N, D)`` with classes ``(N,)``."""

    can_torch_compile: bool = True
    temperature: float

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """A scalar."""
        return losses.sup_con(x, labels, temperature=self.temperature)


class CLIPLoss(Module):
    """CLIP's loss of images and texts, both ``(N, D)``, both ways; the scale is ``model.logit_scale.exp()``."""

    can_torch_compile: bool = True

    def forward(self, x: Tensor, y: Tensor, logit_scale: Tensor) -> Tensor:
        """A scalar."""
        return losses.clip_loss(x, y, logit_scale=logit_scale)


class SigLIPLoss(Module):
    """SigLIP's loss of images and texts, both ``(N, D)``."""

    can_torch_compile: bool = True

    def forward(self, x: Tensor, y: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
        """A scalar."""
        return losses.siglip(x, y, logit_scale=logit_scale, logit_bias=logit_bias)
