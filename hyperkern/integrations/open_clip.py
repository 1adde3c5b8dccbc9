"""Drop-in for OpenCLIP: ``from open_clip.loss import X`` becomes ``from hyperkern.integrations.open_clip import X``.

X is `ClipLoss` or `SigLipLoss`: the same constructors, calls and values, without the matrix of all logits. They
normalise nothing, since the models do. What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the features;
- ``world_size`` must be 1;
- a ``logit_scale`` that is a number must be > 0;
- the gradient of the bias in `ClipLoss` is exactly 0, where the original has rounding errors.
"""

from torch import Tensor, nn

from .. import losses
from ..losses._inputs import check_choice


class ClipLoss(nn.Module):
    """CLIP's two-way contrastive loss.

    Args:
        local_loss: how the logits are spread over processes; without effect in one.
        gather_with_grad: whether gathered features have a gradient; without effect in one process.
        cache_labels: without effect: there are no labels to keep.
        rank: index of the process.
        world_size: number of processes, 1.
        use_horovod: how features are gathered; without effect in one process.

    Raises:
        NotImplementedError: ``world_size > 1``.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, Figure 3.
    """

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
        _refuse_gathering(world_size)
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
            image_features: ``(N, D)`` features, normalised by the caller.
            text_features: those of the texts, like them.
            logit_scale: factor of the inner products, > 0; the gradient of a tensor is computed too.
            logit_bias: a number added to all logits, which no softmax sees: a tensor gets the gradient 0.
            output_dict: whether the loss is returned as ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, or the dictionary.

        Raises:
            TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
            ValueError: wrong shapes or ``logit_scale <= 0``.
        """
        loss = losses.clip_loss(image_features, text_features, logit_scale=logit_scale, normalize=False)
        if isinstance(logit_bias, Tensor):
            loss = loss + (0 * logit_bias).sum().to(loss.dtype)  # under DDP a parameter without a gradient is an error
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """SigLIP's sigmoid loss.

    Args:
        cache_labels: without effect: there are no labels to keep.
        rank: index of the process.
        world_size: number of processes, 1.
        dist_impl: how features are exchanged, ``"bidir"`` (the default), ``"shift"``, ``"reduce"`` or ``"gather"``;
            without effect in one process.

    Raises:
        NotImplementedError: ``world_size > 1``.
        ValueError: an unknown ``dist_impl``.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, Section 3.2.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        _refuse_gathering(world_size)
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl = dist_impl or "bidir"
        check_choice("dist_impl", self.dist_impl, ("bidir", "shift", "reduce", "gather"))

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
            image_features: ``(N, D)`` features, normalised by the caller.
            text_features: those of the texts, like them.
            logit_scale: factor of the inner products, > 0; the gradient of a tensor is computed too.
            logit_bias: added to all logits, ``None`` for 0; likewise.
            output_dict: whether the loss is returned as ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, or the dictionary.

        Raises:
            TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
            ValueError: wrong shapes, ``logit_scale <= 0`` or a bias that is not finite.
        """
        loss = losses.siglip(
            image_features,
            text_features,
            logit_scale=logit_scale,
            logit_bias=0.0 if logit_bias is None else logit_bias,
            normalize=False,
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _refuse_gathering(world_size: int) -> None:
    if world_size > 1:
        raise NotImplementedError(
            f"world_size={world_size}: the loss of several processes gathers their features, which hyperkern does not "
            "do yet"
        )
