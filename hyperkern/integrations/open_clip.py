"""Drop-in for OpenCLIP: ``from open_clip.loss import X`` becomes ``from hyperkern.integrations.open_clip import X``.

X is `ClipLoss` or `SigLipLoss`: the same constructors, calls and values, without the matrix of all logits. They
normalise nothing, since the models do. What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the features;
- a ``logit_scale`` that is a number must be > 0;
- ``get_logits`` and ``get_ground_truth`` cannot be replaced, nor ``labels`` given;
- the gradient of the bias in `ClipLoss` is exactly 0, where the original has rounding errors.

In several processes, all those of `torch.distributed`, a process has the value of the original and its gradient for the
features, as the options ask for it. What differs:

- no gradient travels, and no process has a matrix of logits;
- processes may have different numbers of pairs;
- the gradient of a ``logit_scale`` is another on each process, of the same mean over processes: that which
  `DistributedDataParallel` takes;
- processes must weigh their losses alike before they go backward;
- horovod is not supported.
"""

from typing import Any

from torch import Tensor, distributed

from .. import losses
from ..arguments import accurate_dtype, check_choice
from ..distributed import Group
from ..losses.clip import own_decisions
from ._distributed import own_mean
from ._options import DropIn


class ClipLoss(DropIn):
    """CLIP's two-way contrastive loss.

    In several processes, with the loss of all pairs ``L`` and the loss ``L_r`` of the pairs of process r, the mean over
    its images and its texts as anchors, among the candidates of all processes:

    ============== ==================== ======== =================================================================
    ``local_loss`` ``gather_with_grad`` value    gradient of the features of a process
    ============== ==================== ======== =================================================================
    no             no                   ``L``    of ``L``: averaged by DDP, ``1 / world_size`` of the complete one
    no             yes                  ``L``    of ``world_size L``: averaged, the complete one
    yes            yes                  ``L_r``  of the sum of all ``L_r``: averaged, the complete one
    yes            no                   ``L_r``  of ``L_r`` by its anchors alone, all candidates being constants
    ============== ==================== ======== =================================================================

    Args:
        local_loss: as above; without effect in one process.
        gather_with_grad: as above; without effect in one process.
        cache_labels: without effect: there are no labels to keep.
        rank: index of the process.
        world_size: number of processes.
        use_horovod: for one process only, and without effect there.

    Raises:
        NotImplementedError: ``use_horovod`` with ``world_size > 1``.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, Figure 3.
    """

    _not_here = ("get_logits", "get_ground_truth", "labels")

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of the pairs ``(image_features[i], text_features[i])``.

        Args:
            image_features: ``(N, D)`` features of this process, normalised by the caller.
            text_features: those of the texts, like them.
            logit_scale: factor of the inner products, > 0; the gradient of a tensor is computed too.
            logit_bias: a number added to all logits, which no softmax sees: a tensor gets the gradient 0.
            output_dict: whether the loss is returned as ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, or the dictionary.

        Raises:
            TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
            ValueError: wrong shapes or ``logit_scale <= 0``; a ``rank`` or ``world_size`` other than those of
                `torch.distributed`, arguments that differ between processes.
        """
        loss = _of_one_batch(self._loss(image_features, text_features, logit_scale), image_features)
        if isinstance(logit_bias, Tensor):
            loss = loss + (0 * logit_bias).sum().to(loss.dtype)  # under DDP a parameter without a gradient is an error
        return {"contrastive_loss": loss} if output_dict else loss

    def _check_option(self, name: str, value: Any) -> None:
        processes, horovod = (
            value if name == option else getattr(self, option, None) for option in ("world_size", "use_horovod")
        )
        if horovod and processes is not None and processes > 1:
            raise NotImplementedError(
                f"use_horovod=True with world_size={processes}: features are gathered by torch.distributed here, "
                "use_horovod=False"
            )

    def _loss(self, images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
        if self.world_size == 1:
            return losses.clip_loss(images, texts, logit_scale=scale, normalize=False)
        _check_processes(self.rank, self.world_size)
        if not self.local_loss:
            group = Group(grad_scale="ddp" if self.gather_with_grad else "sum")
            if isinstance(scale, Tensor) and not self.gather_with_grad:
                # Every process of the original has the whole gradient of it; here each has a part. The value stays.
                scale = scale.detach() + self.world_size * (scale - scale.detach())
            return losses.clip_loss(images, texts, logit_scale=scale, normalize=False, group=group)
        if self.gather_with_grad:
            return own_mean(
                losses.clip_loss(images, texts, logit_scale=scale, normalize=False, reduction="none", group=Group())
            )
        temperature = 1 / (scale.to(accurate_dtype(images)) if isinstance(scale, Tensor) else scale)
        ways = [
            losses.info_nce(
                anchors, candidates.detach(), temperature=temperature, normalize=False, reduction="none", group=Group()
            )
            for anchors, candidates in ((images, texts), (texts, images))
        ]
        return (own_mean(ways[0]) + own_mean(ways[1])) / 2


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

    Raises:
        ValueError: an unknown ``dist_impl``.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, Section 3.2.
    """

    _not_here = ("get_logits", "get_ground_truth")

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl = dist_impl or "bidir"

    def _check_option(self, name: str, value: Any) -> None:
        if name == "dist_impl":
            check_choice(name, value, ("bidir", "shift", "reduce", "gather"))

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
            loss = losses.siglip(
                image_features, text_features, logit_scale=logit_scale, logit_bias=bias, normalize=False
            )
        else:
            _check_processes(self.rank, self.world_size)
            own, ranks = own_decisions(
                image_features,
                text_features,
                logit_scale=logit_scale,
                logit_bias=bias,
                normalize=False,
                group=Group(),
            )
            loss = own * (self.world_size / ranks.total)
        loss = _of_one_batch(loss, image_features)
        return {"contrastive_loss": loss} if output_dict else loss


def _of_one_batch(loss: Tensor, images: Tensor) -> Tensor:
    """The loss, of features without a leading batch dimension: looked at when all processes have agreed on them."""
    if loss.dim():
        raise ValueError(f"image_features must have shape (N, D), got {tuple(images.shape)}")
    return loss


def _check_processes(rank: int, world_size: int) -> None:
    if not distributed.is_initialized():
        raise ValueError(
            f"world_size={world_size} needs torch.distributed: call torch.distributed.init_process_group first"
        )
    here = distributed.get_rank(), distributed.get_world_size()
    if (rank, world_size) != here:
        raise ValueError(
            f"the loss was made with rank={rank}, world_size={world_size}, but this is rank {here[0]} of {here[1]}"
        )
