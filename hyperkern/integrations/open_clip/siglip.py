"""SigLIP's loss."""

from typing import Any

import torch
from torch import Tensor

from ...arguments import check_choice, check_integer
from ...distributed import Group
from ...losses import siglip
from ...losses.clip import own_decisions
from .._options import DropIn
from .two_towers import check_processes, check_towers, of_one_batch


class SigLipLoss(DropIn):
    """SigLIP's sigmoid loss.

    In several processes the loss of one is that of its images with the texts of all, divided by its number of pairs (by
    the mean of these numbers, where they differ); the gradient of its features is that of the sum of all losses, and
    averaged by DDP the complete one.

    Args:
        cache_labels: without effect: there are no labels to keep.
        rank: index of the process.
        world_size: number of processes.
        dist_impl: how the original exchanges features, ``"bidir"`` (the default), ``"shift"``, ``"reduce"`` or
            ``"gather"``: all with the same result, and without effect here.
        chunk_size: of OpenCLIP 4: how many rows of logits the original makes at once, 0 for all, with the same result.
            Without effect: no logits are kept here in any case.

    Attributes:
        prev_num_logits: without effect.
        labels: likewise.

    Raises:
        TypeError: a ``chunk_size`` that is no integer.
        ValueError: an unknown ``dist_impl``, ``chunk_size < 0``.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, Section 3.2.
    """

    _not_here = ("get_logits", "get_ground_truth", "_loss", "_chunked_loss")

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl, self.chunk_size = dist_impl or "bidir", chunk_size
        self.prev_num_logits = 0
        self.labels: dict[torch.device | str, Tensor] = {}

    def _check_option(self, name: str, value: Any) -> None:
        if name == "dist_impl":
            check_choice(name, value, ("bidir", "shift", "reduce", "gather"))
        if name == "chunk_size":
            check_integer(name, value, least=0)

    def get_ground_truth(
        self, device: torch.device | str, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        """For each pair of `get_logits` whether they are partners, 1 or -1; with ``negative_only`` none is."""
        signs = -torch.ones(num_logits, num_logits, device=device, dtype=dtype)
        return signs if negative_only else signs.fill_diagonal_(1)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The matrix of the logits of the given pairs ``(N, M)``, which the loss does not make; for callers."""
        logits = logit_scale * image_features @ text_features.T
        if logit_bias is not None:
            logits += logit_bias
        return logits

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of all pairs; ``image_features[i]`` goes with ``text_features[i]``.

        Args:
            image_features: ``(N, D)`` features of this process, normalised by the caller.
            text_features: those of the texts, like them.
            logit_scale: factor of the inner products, > 0; the gradient of a tensor is computed too.
            logit_bias: added to all logits, ``None`` for 0; likewise.
            output_dict: whether the loss is returned as ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, or the dictionary.

        Raises:
            TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
            ValueError: wrong shapes, ``logit_scale <= 0`` or a bias that is not finite; a ``rank`` or ``world_size``
                other than those of `torch.distributed`, arguments that differ between processes.
        """
        bias = 0.0 if logit_bias is None else logit_bias
        if self.world_size == 1:
            check_towers(image_features, text_features)
            loss = siglip(image_features, text_features, logit_scale=logit_scale, logit_bias=bias, normalize=False)
        else:
            check_processes(self.rank, self.world_size)
            own, ranks = own_decisions(
                image_features,
                text_features,
                logit_scale=logit_scale,
                logit_bias=bias,
                normalize=False,
                group=Group(),
            )
            loss = own * (self.world_size / ranks.total)
        loss = of_one_batch(loss, image_features)
        return {"contrastive_loss": loss} if output_dict else loss
