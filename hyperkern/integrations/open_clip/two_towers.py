"""What the losses of images and texts have in common."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from ...arguments import accurate_dtype, check_columns, check_rows
from ...distributed import Agreement, Group
from ...losses import clip_loss, info_nce
from .._distributed import all_rows, own_mean
from .._options import DropIn


class TwoTowers(DropIn):
    """The options of `ClipLoss`, its loss, and what its original shows of the logits.

    Args:
        local_loss: see `ClipLoss`; without effect in one process.
        gather_with_grad: likewise.
        cache_labels: whether what `get_ground_truth` made last is kept in ``labels``. No loss looks at it.
        rank: index of the process.
        world_size: number of processes.
        use_horovod: of OpenCLIP 3; for one process only, and without effect there.

    Attributes:
        prev_num_logits: how many labels were kept last.

    Raises:
        NotImplementedError: ``use_horovod`` with ``world_size > 1``.
    """

    _not_here: ClassVar[tuple[str, ...]] = ("get_logits", "get_ground_truth")

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
        self.prev_num_logits = 0
        self._labels: dict[torch.device | str, Tensor] = {}

    @property
    def labels(self) -> Mapping[torch.device | str, Tensor]:
        """What `get_ground_truth` made last on each device, if labels are kept; it can be emptied, by ``{}``."""
        return MappingProxyType(self._labels)

    @labels.setter
    def labels(self, value: Mapping[torch.device | str, Tensor]) -> None:
        self._labels = {}

    def get_ground_truth(self, device: torch.device | str, num_logits: int) -> Tensor:
        """For each of the ``(num_logits,)`` anchors of `get_logits` the index of its partner, int64; for callers."""
        labels = torch.arange(num_logits, device=device)
        if self.world_size > 1 and self.local_loss:
            labels = labels + num_logits * self.rank
        if self.cache_labels:
            self._labels[device], self.prev_num_logits = labels, num_logits
        return labels

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The matrices of logits, which no loss here makes; for callers.

        Args:
            image_features: ``(N, D)`` features of this process.
            text_features: those of the texts, like them.
            logit_scale: factor of the inner products.
            logit_bias: added to all logits, once; ``None`` for 0.

        Returns:
            Those of the images and those of the texts as anchors, ``(N, N)`` in the dtype of the features. With several
            processes there is a column for each pair of them all and, without ``local_loss``, a row too.
        """
        rows, columns = (image_features, text_features), (image_features, text_features)
        if self.world_size > 1:
            columns = self._of_all_processes(image_features, text_features)
            rows = rows if self.local_loss else columns
        of_images = logit_scale * rows[0] @ columns[1].T
        if logit_bias is not None:
            of_images += logit_bias
        if self.world_size > 1 and not self.local_loss:
            return of_images, of_images.T
        of_texts = logit_scale * rows[1] @ columns[0].T
        if logit_bias is not None:
            of_texts += logit_bias
        return of_images, of_texts

    def _of_all_processes(self, images: Tensor, texts: Tensor, student: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The images and the texts of all processes, with the gradient that the options ask for.

        With ``student``, the images of a student of the same pairs, they are those of its teacher.
        """
        prefix = "" if student is None else "dist_"
        options = {"local_loss": self.local_loss, "gather_with_grad": self.gather_with_grad}
        several = self.world_size > 1
        if several:
            check_processes(self.rank, self.world_size)
        with Agreement(Group() if several else None, type(self).__name__, **options) as agreed:
            check_towers(images, texts, prefix)
            if student is not None and len(student) != len(images):
                raise ValueError(
                    f"dist_image_features must have a row for each of image_features, {len(student)}, got {len(images)}"
                )
            agreed.shard(image_features=images, text_features=texts)
        if not several:
            return images, texts
        pairs = all_rows(torch.cat([images, texts], 1), agreed.ranks, travels=self.gather_with_grad)
        if self.local_loss and not self.gather_with_grad:
            pairs = [part.detach() for part in pairs]
        all_images, all_texts = torch.cat(pairs).chunk(2, dim=1)
        return all_images, all_texts

    def _check_option(self, name: str, value: Any) -> None:
        if name == "labels" and value != {}:
            raise NotImplementedError(f"labels are not read by this replacement, and can only be emptied, got {value}")
        processes, horovod = (
            value if name == option else getattr(self, option, None) for option in ("world_size", "use_horovod")
        )
        if horovod and processes is not None and processes > 1:
            raise NotImplementedError(
                f"use_horovod=True with world_size={processes}: features are gathered by torch.distributed here, "
                "use_horovod=False"
            )

    def _contrastive(self, images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
        return of_one_batch(self._unchecked(images, texts, scale), images)

    def _unchecked(self, images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
        if self.world_size == 1:
            check_towers(images, texts)
            return clip_loss(images, texts, logit_scale=scale, normalize=False)
        check_processes(self.rank, self.world_size)
        if not self.local_loss:
            group = Group(grad_scale="ddp" if self.gather_with_grad else "sum")
            if isinstance(scale, Tensor) and not self.gather_with_grad:
                # Every process of the original has the whole gradient of it; here each has a part. The value stays.
                scale = scale.detach() + self.world_size * (scale - scale.detach())
            return clip_loss(images, texts, logit_scale=scale, normalize=False, group=group)
        if self.gather_with_grad:
            return own_mean(
                clip_loss(images, texts, logit_scale=scale, normalize=False, reduction="none", group=Group())
            )
        temperature = 1 / (scale.to(accurate_dtype(images)) if isinstance(scale, Tensor) else scale)
        ways = [
            info_nce(
                anchors, candidates.detach(), temperature=temperature, normalize=False, reduction="none", group=Group()
            )
            for anchors, candidates in ((images, texts), (texts, images))
        ]
        return (own_mean(ways[0]) + own_mean(ways[1])) / 2


def check_towers(images: Tensor, texts: Tensor, prefix: str = "") -> None:
    """Of one process. Several have to agree on what is wrong, which the losses see to."""
    check_rows(f"{prefix}image_features", images, batched=False)
    check_columns(f"{prefix}text_features", texts, images, same_rows=True, of=f"{prefix}image_features")


def of_one_batch(loss: Tensor, images: Tensor) -> Tensor:
    """The loss, of features without a leading batch dimension: looked at when all processes have agreed on them."""
    if loss.dim():
        raise ValueError(f"image_features must have shape (N, D), got {tuple(images.shape)}")
    return loss


def check_processes(rank: int, world_size: int) -> None:
    """Raises unless a loss was made for this process of these."""
    if not distributed.is_initialized():
        raise ValueError(
            f"world_size={world_size} needs torch.distributed: call torch.distributed.init_process_group first"
        )
    here = distributed.get_rank(), distributed.get_world_size()
    if (rank, world_size) != here:
        raise ValueError(
            f"the loss was made with rank={rank}, world_size={world_size}, but this is rank {here[0]} of {here[1]}"
        )
