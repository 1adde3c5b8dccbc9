"""The losses of Tevatron's retrievers, where it computes them: in the model, and in its trainer with a gradient cache.

`InBatchLossMixin` stands before a model, which is trained as before::

    from tevatron.retriever.modeling import DenseModel
    from hyperkern.integrations.tevatron import InBatchLossMixin

    class FusedDenseModel(InBatchLossMixin, DenseModel):
        pass

It stands one call earlier than ``compute_loss``, which is given all scores. With ``GradCacheTrainer`` the model has no
loss: `SimpleContrastiveLoss` and `DistributedContrastiveLoss` are those that the trainer takes from its own module, for
`hyperkern.integrations.grad_cache.GradCache` or the original. Values and gradients are those of the originals, without
the matrix of all scores. What differs:

- the output of a model in training has no ``scores``: ``DistilTevatronTrainer``, which needs them, takes the original;
- the loss is float32 (float64 for float64) and computed in it;
- passages that cannot be shared out evenly to the queries raise a `ValueError`;
- no process computes what is another's, and processes may have different numbers of queries, as long as nothing is read
  of the output but the loss.

This module does not import Tevatron.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, distributed, nn

from ..distributed import Group
from ._options import PlainDropIn
from ._passages import passage_loss


class InBatchLossMixin(nn.Module):
    r"""The ``forward`` of an ``EncoderModel``: in training each query picks its passage among those of all queries.

    .. math::
        -\frac1N \sum_i \log \frac{e^{q_i \cdot p_{iG} / \tau}}{\sum_j e^{q_i \cdot p_j / \tau}}

    with G passages for each query, its own first (``train_group_size``), and the temperature of the model. In several
    processes (``is_ddp``) the N queries are those of all of them, and value and gradient are multiplied by their
    number, by which the averaging of `DistributedDataParallel` and the trainer divide.

    What the original calls and this does not (``compute_similarity``, ``compute_loss``) must be that of
    ``EncoderModel``, ``_dist_gather_tensor`` too, and its ``cross_entropy`` the plain one.

    Raises:
        NotImplementedError: a class that overrides one of these, or when it is called, another ``cross_entropy``.
        TypeError: a class that has it behind its model.
        ValueError: when it is called, passages that cannot be shared out evenly to the queries.

    Source:
        Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", EMNLP 2020, Section 3.2.
    """

    temperature: float
    is_ddp: bool
    world_size: int
    cross_entropy: nn.Module
    _dist_gather_tensor: Callable[[Tensor], Tensor]
    _replaced = ("forward", "compute_similarity", "compute_loss", "_dist_gather_tensor")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a model whose scores or loss are its own."""
        super().__init_subclass__(**kwargs)
        place = cls.__mro__.index(InBatchLossMixin)
        for base in cls.__mro__[:place]:
            if "compute_similarity" in vars(base) and not issubclass(base, InBatchLossMixin):
                raise TypeError(f"{cls.__name__}: InBatchLossMixin must stand before {base.__name__}")
        behind = cls.__mro__[place + 1 :]
        model = next((base for base in reversed(behind) if "compute_similarity" in vars(base)), None)
        for name in cls._replaced:
            bases = behind if name == "forward" else (base for base in cls.__mro__ if base is not InBatchLossMixin)
            owner = next((base for base in bases if name in vars(base)), None)
            if model is not None and owner is not model:
                raise NotImplementedError(
                    f"{owner.__name__ if owner else cls.__name__} overrides {name}, which this replacement never calls"
                )

    def forward(self, query: Any = None, passage: Any = None) -> Any:
        """The output of the model, in training with ``loss`` and without ``scores``."""
        if not self.training or not query or not passage:
            return super().forward(query=query, passage=passage)
        self._check_cross_entropy()
        # Given one side alone the model encodes it, and no more.
        of_query, of_passage = super().forward(query=query), super().forward(passage=passage)
        q_reps, p_reps = of_query.q_reps, of_passage.p_reps
        group = Group(grad_scale="sum") if self.is_ddp else None
        loss = passage_loss("EncoderModel", q_reps, p_reps, temperature=self.temperature, group=group)
        if self.is_ddp:
            loss = self.world_size * loss
            # Those of all processes, of which a trainer may make more: a regulariser of sparse representations.
            q_reps, p_reps = self._dist_gather_tensor(q_reps), self._dist_gather_tensor(p_reps)
        return type(of_query)(loss=loss, q_reps=q_reps, p_reps=p_reps)

    def _check_cross_entropy(self) -> None:
        found, plain = self.cross_entropy, nn.CrossEntropyLoss()
        options = ("weight", "reduction", "label_smoothing")
        if type(found) is not type(plain) or any(getattr(found, name) != getattr(plain, name) for name in options):
            raise NotImplementedError(
                f"cross_entropy={found!r} is not supported here: its weight is None, its reduction 'mean', its "
                "label_smoothing 0"
            )


class SimpleContrastiveLoss(PlainDropIn):
    """Each query picks its passage among those of all queries: cross entropy of the inner products."""

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss.

        Args:
            x: ``(N, D)`` queries, as they come.
            y: ``(M, D)`` passages.
            target: ``(N,)`` integers, the passage of each query, -100 for one that does not count; without it as many
                for each query, in their order, each with its own one first.
            reduction: ``"mean"`` or ``"sum"`` over the queries, or ``"none"``.

        Raises:
            TypeError: an input is no tensor of a wanted dtype, or the dtypes differ.
            ValueError: wrong shapes, different devices, an unknown ``reduction``.
        """
        return passage_loss("SimpleContrastiveLoss", x, y, target, reduction=reduction)


class DistributedContrastiveLoss(SimpleContrastiveLoss):
    """The same over the queries and passages of all processes, the same number on each.

    Args:
        n_target: without effect, as in the original.
        scale_loss: whether value and gradient are multiplied by the number of processes, so that
            `DistributedDataParallel` leaves the gradient of the loss.

    Raises:
        ValueError: `torch.distributed` is not initialised.
    """

    _not_here = ("gather_tensor",)

    def __init__(self, n_target: int = 0, scale_loss: bool = True) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError("DistributedContrastiveLoss needs torch.distributed.init_process_group first")
        self.scale_loss = scale_loss

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The loss, of queries and passages of this process.

        Raises:
            NotImplementedError: a ``target``, which would be one for the queries of all processes, or
                ``reduction="none"``, their losses.
            TypeError: as there.
            ValueError: as there, or arguments that differ between processes.
        """
        group = Group(grad_scale="sum")
        loss = passage_loss("DistributedContrastiveLoss", x, y, target, reduction=reduction, group=group)
        return distributed.get_world_size() * loss if self.scale_loss else loss
