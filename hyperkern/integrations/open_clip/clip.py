"""CLIP's loss, alone and beside that of captions."""

import torch
from torch import Tensor, nn

from .two_towers import TwoTowers


class ClipLoss(TwoTowers):
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
        cache_labels: whether what ``get_ground_truth`` made last is kept in ``labels``; the loss has none.
        rank: index of the process.
        world_size: number of processes.
        use_horovod: of OpenCLIP 3; for one process only, and without effect there.

    Raises:
        NotImplementedError: ``use_horovod`` with ``world_size > 1``.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, Figure 3.
    """

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
        loss = self._contrastive(image_features, text_features, logit_scale)
        if isinstance(logit_bias, Tensor):
            loss = loss + (0 * logit_bias).sum().to(loss.dtype)  # under DDP a parameter without a gradient is an error
        return {"contrastive_loss": loss} if output_dict else loss


class CoCaLoss(TwoTowers):
    """CoCa's loss: `ClipLoss`, and the cross entropy of the tokens of a caption, which is PyTorch's.

    Args:
        caption_loss_weight: factor of the loss of the captions.
        clip_loss_weight: factor of the contrastive loss; 0 for none.
        pad_id: the token that counts for nothing.
        local_loss: as `ClipLoss`.
        gather_with_grad: likewise.
        cache_labels: likewise.
        rank: likewise.
        world_size: likewise.
        use_horovod: likewise.

    Attributes:
        caption_loss: the module that makes the loss of ``(N, vocabulary, length)`` logits and ``(N, length)`` tokens.

    Raises:
        NotImplementedError: ``use_horovod`` with ``world_size > 1``.

    Source:
        Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", TMLR 2022, Eq. 4.
    """

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod)
        self.clip_loss_weight, self.caption_loss_weight = clip_loss_weight, caption_loss_weight
        self.caption_loss: nn.Module = nn.CrossEntropyLoss(ignore_index=pad_id)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor,
        labels: Tensor,
        logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """The two losses, each times its weight.

        Args:
            image_features: ``(N, D)`` features of this process, normalised by the caller.
            text_features: those of the texts, like them.
            logits: ``(N, length, vocabulary)`` of the tokens of the captions.
            labels: ``(N, length)`` tokens.
            logit_scale: factor of the inner products, > 0; the gradient of a tensor is computed too.
            output_dict: whether they are returned as ``{"contrastive_loss": ..., "caption_loss": ...}``.

        Returns:
            Two scalars, the loss of the captions in the dtype of ``logits``, or the dictionary.

        Raises:
            TypeError: as `ClipLoss`.
            ValueError: as `ClipLoss`.
        """
        if self.clip_loss_weight:
            contrastive = self.clip_loss_weight * self._contrastive(image_features, text_features, logit_scale)
        else:
            contrastive = torch.tensor(0, device=logits.device)
        of_captions = self.caption_loss_weight * self.caption_loss(logits.permute(0, 2, 1), labels)
        if output_dict:
            return {"contrastive_loss": contrastive, "caption_loss": of_captions}
        return contrastive, of_captions
