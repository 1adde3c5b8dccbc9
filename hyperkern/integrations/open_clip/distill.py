"""CLIP's loss beside that of a student which learns from a teacher."""

from torch import Tensor

from ... import autograd
from ...arguments import check_scale
from .._soft_targets import Way, cross_entropy, of_logits
from .two_towers import TwoTowers


class DistillClipLoss(TwoTowers):
    r"""`ClipLoss` of a student, and how far its candidates' probabilities are from those of a teacher.

    The second loss is the cross entropy of the two softmaxes, averaged over the anchors of both directions,

    .. math::
        -\sum_j p^T_{ij} \log p^S_{ij}, \qquad p_{ij} = \frac{e^{s\, x_i \cdot y_j}}{\sum_k e^{s\, x_i \cdot y_k}}

    It is computed in blocks of rows, anew for the gradient: memory is ``O(N D)`` and one block. In several processes
    each of them has the features of all, and its gradient travels where ``gather_with_grad`` asks for it, as in the
    original.

    Args:
        local_loss: as `ClipLoss`.
        gather_with_grad: likewise.
        cache_labels: likewise.
        rank: likewise.
        world_size: likewise.
        use_horovod: likewise.

    Raises:
        NotImplementedError: ``use_horovod`` with ``world_size > 1``.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, Section 2, of the softmaxes of `ClipLoss`.
    """

    _not_here = (*TwoTowers._not_here, "dist_loss")

    def dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """The cross entropy of two matrices of logits ``(N, M)``, a scalar; for callers."""
        return of_logits(teacher_logits, student_logits).mean()

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """The loss of the student's pairs, and that of the teacher's probabilities.

        Args:
            image_features: ``(N, D)`` features of the student on this process, normalised by the caller.
            text_features: those of the texts, like them.
            logit_scale: factor of the inner products, > 0; the gradient of a tensor is computed too.
            dist_image_features: ``(N, E)`` features of the teacher.
            dist_text_features: those of the texts, like them.
            dist_logit_scale: the teacher's factor, likewise.
            output_dict: whether they are returned as ``{"contrastive_loss": ..., "distill_loss": ...}``.

        Returns:
            Two scalars, or the dictionary.

        Raises:
            TypeError: as `ClipLoss`.
            ValueError: as `ClipLoss`, and features of the teacher of another number of pairs.
        """
        contrastive = self._contrastive(image_features, text_features, logit_scale)
        student = self._ways(image_features, text_features, logit_scale)
        teacher = self._ways(dist_image_features, dist_text_features, dist_logit_scale, image_features)
        ways = [cross_entropy(*of_both) for of_both in zip(teacher, student, strict=True)]
        distilled = (ways[0].mean() + ways[1].mean()) / 2
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distilled}
        return contrastive, distilled

    def _ways(
        self, images: Tensor, texts: Tensor, scale: float | Tensor, student: Tensor | None = None
    ) -> tuple[Way, Way]:
        """The images among the texts, and the texts among the images; of the teacher, if ``student`` is given."""
        columns = self._of_all_processes(images, texts, student)
        rows = (images, texts) if self.local_loss else columns
        x, y, all_x, all_y = (autograd.prepare(side, normalize=False) for side in (*rows, *columns))
        factor = check_scale("logit_scale" if student is None else "dist_logit_scale", scale, images)
        if isinstance(factor, Tensor):
            factor = factor.to(x.dtype).reshape(())
        return Way(factor * x, all_y), Way(factor * y, all_x)
