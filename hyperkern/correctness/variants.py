"""Ways to call losses that no benchmark has, and that kernels have code of their own for."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import losses
from ..bench.registry import Loss


class Variant(NamedTuple):
    """A way to call a loss.

    Attributes:
        features: how many tensors of them.
        loss: ``(*features, *scalars, backend=None) -> value``.
        scalars: numbers that are learned.
        frozen: how many tensors of features, the last ones, have no gradient.
        batch: how many problems at once, ``None`` for one that is no batch.
    """

    features: int
    loss: Loss
    scalars: tuple[float, ...] = ()
    frozen: int = 0
    batch: int | None = None

    def draw(self, rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Random features, the same at every call, and the scalars, which a model keeps in float32."""
        generator = torch.Generator(device).manual_seed(1)
        shape = (rows, dim) if self.batch is None else (self.batch, rows, dim)
        drawn = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(self.features)]
        for features in drawn[: self.features - self.frozen]:
            features.requires_grad_()
        return drawn + [torch.tensor(number, device=device).requires_grad_() for number in self.scalars]


def _info_nce(x: Tensor, y: Tensor, queue: Tensor, temperature: Tensor, backend: str | None = None) -> Tensor:
    return losses.info_nce(x, y, temperature=temperature, negatives=queue, reduction="sum", backend=backend)


def _nt_xent(x: Tensor, y: Tensor, temperature: Tensor, backend: str | None = None) -> Tensor:
    return losses.nt_xent(x, y, temperature=temperature, backend=backend)


def _sup_con(x: Tensor, queue: Tensor, temperature: Tensor, backend: str | None = None) -> Tensor:
    labels = torch.arange(x.shape[0], device=x.device) % 5
    return losses.sup_con(x, labels, queue, labels.roll(2), temperature=temperature, backend=backend)


def _siglip(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, backend: str | None = None) -> Tensor:
    return losses.siglip(x, y, logit_scale=scale, logit_bias=bias, backend=backend)


VARIANTS = {
    "uniformity of a batch": Variant(1, losses.uniformity, batch=2),
    "clip of one side": Variant(2, functools.partial(losses.clip_loss, logit_scale=10.0), frozen=1),
    "info_nce, learned, sum": Variant(3, _info_nce, (0.1,), frozen=1),
    "nt_xent, learned": Variant(2, _nt_xent, (0.5,)),
    "sup_con, learned, queue": Variant(2, _sup_con, (0.1,), frozen=1),
    "siglip, learned": Variant(2, _siglip, (10.0, -5.0)),
}
# Those that are computed of many rows too.
MANY_ROWS = {
    "uniformity": Variant(1, losses.uniformity),
    "clip": Variant(2, functools.partial(losses.clip_loss, logit_scale=1 / 0.07)),
}
