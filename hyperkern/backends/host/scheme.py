"""What the kernels of a whole loss are told but for the tensors, worked out once for all calls of a kind."""

import functools
from dataclasses import dataclass

import torch

from ...spec import LossSpec, is_bounded
from .jobs import Job
from .panels import fits
from .precision import product_of

# What the weights of a softmax are multiplied by in float16: each is at most 1, and their sum of two below its range.
FLOAT16_WEIGHTS = 4096.0

_TWO_WAY = ("clip_loss", "siglip")
_VIEWS = ("nt_xent", "dcl", "dclw")
# Their inputs.y are no partners of the anchors.
UNPAIRED = ("uniformity", "sup_con")
HEADS = {
    "clip_loss": "softmax",
    "info_nce": "softmax",
    "nt_xent": "softmax",
    "dcl": "decoupled",
    "dclw": "weighted",
    "siglip": "sigmoid",
    "sup_con": "classes",
    "uniformity": "energy",
}


@dataclass(frozen=True, eq=False)
class Scheme:
    """How a loss of some shapes is computed.

    Calls of a kind share one, found by the arguments of `scheme_of`. It hashes by identity, so that what follows from
    it can be kept beside it.

    Attributes:
        spec: the loss.
        need: the names of the inputs whose gradient is wanted.
        input_dtype: that of the features; float32 of those that are kept.
        dim: D.
        batch: B, problems in one call.
        pairs: N, the anchors ``x``.
        further: K, the rows of the queue.
        learnable: whether the scale is a tensor.
        head: ``softmax``, ``decoupled``, ``weighted`` (decoupled, with the weights of DCLW), ``classes`` (those of an
            anchor's class are its positives), ``sigmoid``, ``energy``.
        views: 2 where the rows of the operand alternate, else 1.
        two_way: whether rows pick among columns and columns among rows.
        sums: the mode of the sums, ``exp``, ``running`` or ``softplus``.
        weights: the mode of the contraction, as in the backend's tile: ``bounded`` or ``running``; ``single``, running
            where a pair has one weight; ``exp``, ``softplus``.
        share: what a sum over anchors is multiplied by; of classes 1, a mean is over those that have a positive.
        range: what the weights of a softmax are multiplied by, to suit the dtype of the product.
        dtype: that of the operand.
        product: ``tf32`` or ``tf32x3`` for float32 operands.
        kind: ``bfloat16``, ``float16``, ``tf32`` or ``float32``.
    """

    spec: LossSpec
    need: tuple[str, ...]
    input_dtype: torch.dtype
    dim: int
    batch: int
    pairs: int
    further: int
    learnable: bool
    head: str
    views: int
    two_way: bool
    sums: str
    weights: str
    share: float
    range: float
    dtype: torch.dtype
    product: str
    kind: str

    @functools.cached_property
    def paired(self) -> int:
        """The rows of the operand before the queue."""
        return self.pairs if self.spec.loss in UNPAIRED else 2 * self.pairs

    @functools.cached_property
    def rows(self) -> int:
        """Rows of the operand in each batch element."""
        return self.paired + self.further

    @functools.cached_property
    def symmetric(self) -> bool:
        """Whether anchors pick among each other, so that each row is an anchor and a candidate."""
        return _is_symmetric(self.head, self.views, self.further)

    @functools.cached_property
    def factor(self) -> float:
        """That of the logits in the kernels of pairs."""
        return 1.0 if self.learnable else self.spec.scale

    @functools.cached_property
    def distinct(self) -> bool:
        """Whether the distinct pairs of ``x`` count in an energy."""
        return not self.further or (self.spec.in_batch and self.pairs > 1)

    @functools.cached_property
    def wants_x(self) -> bool:
        """Whether anybody needs the weighted sums of the anchors: their gradient, or that of the scale."""
        return "x" in self.need or "scale" in self.need or (self.views == 2 and "y" in self.need)

    @functools.cached_property
    def fits_panels(self) -> bool:
        """Whether all weights of each side find room in one panel."""
        size = self.dtype.itemsize
        return all(fits(self.batch, job.rows, job.cols, size) for job in self.of_weights)

    @functools.cached_property
    def of_sums(self) -> tuple[Job, ...]:
        """Which sums are taken; with two ways of the columns too. Of an energy the queue comes first."""
        n, further = self.pairs, self.further
        if self.head == "energy":
            with_queue = (Job(0, n, n, further, False),) if further else ()
            return (*with_queue, Job(0, n, 0, n, True)) if self.distinct else with_queue  # in both orders
        if self.symmetric:
            return (Job(0, self.views * n, 0, self.views * n, True),)
        if self.head == "classes":
            return (Job(0, n, n, further, False),)
        return (Job(0, n, n, n + further, True) if self.spec.in_batch else Job(0, n, 2 * n, further, False),)

    @functools.cached_property
    def of_weights(self) -> tuple[Job, ...]:
        """Which sides are contracted: first that of the anchors, if it is needed, then that of the others."""
        n, further, need = self.pairs, self.further, self.need
        of_anchors = self.of_sums
        if self.head == "energy":
            return (*of_anchors, Job(n, further, 0, n, False)) if "y" in need else of_anchors
        if self.symmetric:
            return of_anchors
        jobs = of_anchors if any(name in need for name in ("x", "scale", "bias")) else ()
        if self.head == "classes":
            return (*jobs, Job(n, further, 0, n, False)) if "y" in need else jobs
        if not self.spec.in_batch:  # the partners have their anchor and nothing else
            return (*jobs, Job(2 * n, further, 0, n, False)) if "queue" in need else jobs
        if "queue" in need:
            return (*jobs, Job(n, n + further, 0, n, True))
        return (*jobs, Job(n, n, 0, n, True)) if "y" in need else jobs


@functools.lru_cache(maxsize=1024)
def scheme_of(
    spec: LossSpec,
    need: tuple[str, ...],
    dtype: torch.dtype,
    dim: int,
    batch: int,
    pairs: int,
    further: int,
    learnable: bool,
    kind: str,
) -> Scheme | None:
    """The scheme of a loss, see the attributes; ``None`` where it is left to the composition.

    ``kind`` is that of the features; the operands may be of another.
    """
    if not spec.normalize:
        return None
    head, two_way, views = HEADS[spec.loss], spec.loss in _TWO_WAY, 2 if spec.loss in _VIEWS else 1
    # The most terms of one sum of exponentials.
    terms = pairs * (pairs + further) if head == "energy" else 2 * pairs if views == 2 else pairs + further
    bounded = not learnable and is_bounded(spec.scale, terms, dtype)
    if head == "energy" and not bounded:
        return None
    of_operand, product = torch.float32, "tf32x3"
    of_energy = {"energy": "exp", "sigmoid": "softplus"}.get(head)
    if kind != "float32":
        of_operand, product, kind = product_of(kind, of_energy or "bounded", spec.scale)
    if of_energy is not None:
        modes, most = (of_energy, of_energy), 1.0
    else:
        modes, most = ("exp", "bounded"), FLOAT16_WEIGHTS if of_operand == torch.float16 else 1.0
        if not bounded or kind == "float32":
            modes = ("running", "running" if two_way or _is_symmetric(head, views, further) else "single")
    given = (spec, need, dtype, dim, batch, pairs, further, learnable)
    return Scheme(*given, head, views, two_way, *modes, _share(spec, pairs), most, of_operand, product, kind)


def _share(spec: LossSpec, pairs: int) -> float:
    """What a sum over anchors is multiplied by; of a softmax of two ways, or of views, there are two for each pair."""
    if spec.loss in UNPAIRED:
        return 1.0
    if spec.mean:
        return 1 / (2 * pairs if spec.loss == "clip_loss" or spec.loss in _VIEWS else pairs)
    return 0.5 if spec.loss == "clip_loss" else 1.0


def _is_symmetric(head: str, views: int, further: int) -> bool:
    return views == 2 or (head == "classes" and not further)
