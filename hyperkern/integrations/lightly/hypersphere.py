"""Alignment and uniformity."""

from typing import Any

from torch import Tensor

from ... import autograd, losses
from ...arguments import check_number, check_positive, check_scale
from .._options import DropIn
from .views import check_views


class HypersphereLoss(DropIn):
    """Alignment + uniformity: ``align(z_a, z_b) + lam (uniform(z_a) + uniform(z_b)) / 2``.

    Args:
        t: inverse width of the Gaussian potential, > 0; a scalar tensor is learnable, and its value is not checked.
        lam: weight of the uniformity, likewise.
        alpha: exponent of the distance of positive pairs, a number > 0.

    Raises:
        TypeError: an option that is no number, nor a tensor where it may be one.
        ValueError: ``t <= 0``, ``alpha <= 0``, ``lam`` not finite, or a tensor of several elements.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.2.
    """

    def __init__(self, t: float | Tensor = 1.0, lam: float | Tensor = 1.0, alpha: float = 2.0) -> None:
        super().__init__()
        self.t, self.lam, self.alpha = t, lam, alpha

    def _check_option(self, name: str, value: Any) -> None:
        if name == "t" or (name == "lam" and isinstance(value, Tensor)):
            check_scale(name, value)
        elif name == "lam":
            check_number(name, value)
        elif name == "alpha":
            check_positive(name, value)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of the positive pairs ``(z_a[i], z_b[i])``.

        Args:
            z_a: ``(N, D)`` features of one view, N >= 2; they are normalised here.
            z_b: those of the other.

        Returns:
            A scalar.

        Raises:
            TypeError: an input is no floating tensor, or the dtypes differ.
            ValueError: wrong shapes or fewer than two rows.
        """
        check_views(z_a, z_b, ("z_a", "z_b"))
        t, lam = self.t, self.lam
        if isinstance(t, Tensor):
            # In units of the width: rows on a sphere whose radius is its root.
            rows = (autograd.prepare(side, normalize=True) for side in (z_a, z_b))
            scaled = (unit * t.sqrt().to(unit.dtype).reshape(()) for unit in rows)
            aligned = losses.alignment(z_a, z_b, alpha=self.alpha)
            of_a, of_b = (losses.uniformity(side, t=1.0, normalize=False, max_norm=1.0) for side in scaled)
            uniform = (of_a + of_b) / 2
        elif isinstance(lam, Tensor):
            _, aligned, uniform = losses.align_uniform(z_a, z_b, alpha=self.alpha, t=t)
        else:
            return losses.align_uniform(z_a, z_b, alpha=self.alpha, t=t, uniform_weight=lam).loss
        return aligned + (lam.to(uniform.dtype).reshape(()) if isinstance(lam, Tensor) else lam) * uniform
