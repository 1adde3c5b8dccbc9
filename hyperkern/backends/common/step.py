"""Whole losses by kernels: what the kernels are told, and what is left to the composition.

The rows of all features of a batch element stand in one operand, ``(B, T, D')`` in the dtype of the product: anchors
``x``, their partners ``y``, further candidates. The views of a symmetric loss alternate, row 2i is ``x_i`` and row
2i + 1 is ``y_i``.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...spec import LossInputs, LossSpec, is_bounded
from .. import WholeLoss
from . import jobs
from .jobs import Job, is_symmetric
from .precision import float32_setting, product_of

# What the weights of a softmax are multiplied by in float16: each is at most 1, and their sum of two below its range.
FLOAT16_WEIGHTS = 4096.0

KINDS = ("bfloat16", "float16", "tf32", "float32")

_TWO_WAY = ("clip_loss", "siglip")
_VIEWS = ("nt_xent", "dcl", "dclw")
# Their inputs.y are no partners of the anchors.
_UNPAIRED = ("uniformity", "sup_con")
_HEADS = {
    "clip_loss": "softmax",
    "info_nce": "softmax",
    "nt_xent": "softmax",
    "dcl": "decoupled",
    "dclw": "weighted",
    "siglip": "sigmoid",
    "sup_con": "classes",
    "uniformity": "energy",
}
LOSSES = frozenset({"align_uniform", *_HEADS})

State = tuple[Tensor, ...]


class AlignUniformOptions(NamedTuple):
    """The numbers of ``align_weight * alignment(alpha) + uniform_weight * uniformity(t)``."""

    alpha: float
    t: float
    align_weight: float
    uniform_weight: float


class AlignUniformStep(NamedTuple):
    """Alignment + uniformity by kernels that make both sides.

    Attributes:
        values: ``(x, y, options, precision, *, need_grad)``, the three numbers and what the gradient needs besides.
        grads: ``(x, y, state, options, cotangents)``, the gradients of ``x`` and ``y``.
    """

    values: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    grads: Callable[..., tuple[Tensor, Tensor]]

    def loss(self, inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> WholeLoss | None:
        """Both sides with their gradients, or neither; a common bound of the exponents."""
        x = inputs.x
        if ("x" in need) != ("y" in need) or not is_bounded(spec.scale, x.shape[-2] ** 2, x.dtype):
            return None
        values, state = self.values(x, inputs.y, _options(spec), spec.precision, need_grad=bool(need))
        return WholeLoss(values, state, {})

    def loss_grad(
        self,
        needed: dict[str, Tensor],
        spec: LossSpec,
        state: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> dict[str, Tensor]:
        """The gradients of both sides."""
        grads = self.grads(needed["x"], needed["y"], state, _options(spec), cotangents)
        return dict(zip(("x", "y"), grads, strict=True))


def _options(spec: LossSpec) -> AlignUniformOptions:
    return AlignUniformOptions(spec.alpha, spec.scale / 2, spec.align_weight, spec.uniform_weight)


class Plan(NamedTuple):
    """What the kernels of a loss are told.

    Attributes:
        spec: the loss.
        need: the names of the inputs whose gradient is wanted.
        x: ``(B, N, D)`` features of the anchors.
        y: ``(B, N, D)`` those of their partners, if they have some.
        queue: ``(B, K, D)`` further candidates, without a partner; those of uniformity and of classes are ``inputs.y``.
        scale: one number on the device of ``x``, the factor of the inner products or its reciprocal
            (``spec.temperature``). It is multiplied into the rows: its root into all where the problem is `symmetric`,
            else into ``x``. None where ``spec.scale`` is the factor.
        bias: one number on the device of ``x``, or None, where ``spec.bias`` is the bias.
        labels: ``(B, N)`` integers, contiguous, the classes of ``x``; what a gradient needs of them is in its state.
        queue_labels: ``(B, K)``, those of the queue, perhaps of another dtype.
        batch: B, problems in one call.
        pairs: N, the anchors ``x``.
        further: K, the rows of the queue.
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
    x: Tensor
    y: Tensor | None
    queue: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    labels: Tensor | None
    queue_labels: Tensor | None
    batch: int
    pairs: int
    further: int
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

    @property
    def partner(self) -> int:
        """The first row of the operand that is a partner's."""
        return 1 if self.views == 2 else self.pairs

    @property
    def paired(self) -> int:
        """The rows of the operand before the queue."""
        return self.pairs if self.y is None else 2 * self.pairs

    @property
    def rows(self) -> int:
        """Rows of the operand in each batch element."""
        return self.paired + self.further

    @property
    def symmetric(self) -> bool:
        """Whether anchors pick among each other, so that each row is an anchor and a candidate."""
        return is_symmetric(self.head, self.views, self.further)

    @property
    def factor(self) -> float:
        """That of the logits in the kernels of pairs."""
        return 1.0 if self.scale is not None else self.spec.scale

    @property
    def distinct(self) -> bool:
        """Whether the distinct pairs of ``x`` count in an energy."""
        return not self.further or (self.spec.in_batch and self.pairs > 1)

    def of_sums(self) -> tuple[Job, ...]:
        """Which sums are taken; with two ways of the columns too. Of an energy the queue comes first."""
        return jobs.of_sums(self.head, self.views, self.pairs, self.further, self.distinct, self.spec.in_batch)

    def of_weights(self) -> tuple[Job, ...]:
        """Which sides are contracted: first that of the anchors, if it is needed, then that of the others."""
        in_batch = self.spec.in_batch
        return jobs.of_weights(self.head, self.views, self.pairs, self.further, self.distinct, in_batch, self.need)


class Kept(NamedTuple):
    """Copies of what a gradient needs besides the inputs that get one: those may have changed since.

    Attributes:
        x: ``(B, N, D)`` float32 unit rows, where the anchors get none.
        y: ``(B, N, D)`` those of the partners, likewise.
        scale: float32, where it is a tensor, whether or not it gets one.
    """

    x: Tensor | None = None
    y: Tensor | None = None
    scale: Tensor | None = None


class Kernels(NamedTuple):
    """What a backend launches. The state is what `values` hands to `grads`.

    Attributes:
        serves: ``(plan)``, whether rows are short enough for the contraction in one pass.
        values: ``(plan)``, the loss ``(B,)``, what is `Kept` if any gradient is needed, and the state. Prepares the
            rows; where there is a softmax, takes the sums and makes the factors of the weights of them; else contracts,
            if a gradient is needed, and adds the sums.
        grads: ``(plan, needed, state, cotangent)``, the gradients of the inputs ``needed``, by name, from that of the
            loss, ``()`` or ``(B,)``. In the plan what is kept stands for inputs that get none, and there is no queue if
            it gets none. Contracts, where that has not been done, adds partial results and the pairs of partners, and
            projects.
    """

    serves: Callable[[Plan], bool]
    values: Callable[[Plan], tuple[Tensor, Kept, State]]
    grads: Callable[[Plan, dict[str, Tensor], State, Tensor], dict[str, Tensor]]


class WholeLosses(NamedTuple):
    """`hyperkern.backends.Backend.loss` and its gradient by the kernels of a backend.

    Attributes:
        align_uniform: the kernels of that loss.
        kernels: those of all others.
    """

    align_uniform: AlignUniformStep
    kernels: Kernels

    def loss(self, inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> WholeLoss | None:
        """A whole loss and the state of its gradient; ``None`` where it is left to the composition."""
        if spec.loss == "align_uniform":
            return self.align_uniform.loss(inputs, spec, need)
        plan = plan_of(inputs, spec, need)
        if plan is None or not self.kernels.serves(plan):
            return None
        value, kept, state = self.kernels.values(plan)
        values = (value.view(inputs.x.shape[:-2]),)
        if not need:
            return WholeLoss(values, (), {})
        # The numbers of a plan, as sizes of nothing: the queue will be gone, the setting of products may be another.
        learnable = plan.scale is not None
        numbers = value.new_empty((0, KINDS.index(plan.kind), plan.batch, plan.pairs, plan.further, learnable))
        return WholeLoss(values, (numbers, *(t for t in kept if t is not None), *state), {})

    def loss_grad(
        self, needed: dict[str, Tensor], spec: LossSpec, state: State, cotangents: tuple[Tensor | None, ...]
    ) -> dict[str, Tensor]:
        """The gradients that are needed, by the name of the input."""
        if spec.loss == "align_uniform":
            return self.align_uniform.loss_grad(needed, spec, state, cotangents)
        (plan, rest), cotangent = _plan_of_state(needed, spec, state), cotangents[0]
        assert cotangent is not None
        return self.kernels.grads(plan, needed, rest, cotangent)


def plan_of(inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> Plan | None:
    """How a loss is computed in one piece; ``None`` where it is not."""
    x, (y, queue) = inputs.x, (None, inputs.y) if spec.loss in _UNPAIRED else (inputs.y, inputs.queue)
    for number in (inputs.scale, inputs.bias):
        if number is not None and number.device != x.device:
            return None
    batch, pairs = 1 if x.dim() == 2 else x.shape[0], x.shape[-2]
    further = 0 if queue is None else queue.shape[-2]
    # A kind is exact, of the precision of an input float32 is a matter of the setting.
    kind = float32_setting() if spec.precision == "float32" else spec.precision
    static = _static(spec, x.dtype, pairs, further, inputs.scale is not None, kind)
    if static is None:
        return None
    features = (_batched(x), _batched(y), _batched(queue))
    rest = (inputs.scale, inputs.bias, _contiguous(inputs.labels, batch), _contiguous(inputs.y_labels, batch))
    return Plan(spec, tuple(need), *features, *rest, batch, pairs, further, *static)


def _plan_of_state(needed: dict[str, Tensor], spec: LossSpec, state: State) -> tuple[Plan, State]:
    """The plan that the state was made by, with what is kept, and the rest of the state."""
    _, kind, batch, pairs, further, learnable = state[0].shape
    rest = list(state[1:])
    x = _batched(needed["x"]) if "x" in needed else rest.pop(0)
    of_y, queue = needed.get("y"), needed.get("queue")
    if spec.loss in _UNPAIRED:
        y, queue = None, _batched(of_y)
    else:
        y, queue = rest.pop(0) if of_y is None else _batched(of_y), _batched(queue)
    scale = rest.pop(0) if learnable else None
    static = _static(spec, torch.float32, pairs, further, bool(learnable), KINDS[kind])
    assert static is not None
    tensors = (x, y, queue, scale, None, None, None)
    return Plan(spec, tuple(needed), *tensors, batch, pairs, further, *static), tuple(rest)


@functools.lru_cache(maxsize=1024)
def _static(
    spec: LossSpec, dtype_of_x: torch.dtype, pairs: int, further: int, learnable: bool, kind: str
) -> tuple[Any, ...] | None:
    """The fields of a `Plan` from ``head`` on."""
    if not spec.normalize:
        return None
    head, two_way, views = _HEADS[spec.loss], spec.loss in _TWO_WAY, 2 if spec.loss in _VIEWS else 1
    # The most terms of one sum of exponentials.
    terms = pairs * (pairs + further) if head == "energy" else 2 * pairs if views == 2 else pairs + further
    bounded = not learnable and is_bounded(spec.scale, terms, dtype_of_x)
    if head == "energy" and not bounded:
        return None
    dtype, product = torch.float32, "tf32x3"
    of_energy = {"energy": "exp", "sigmoid": "softplus"}.get(head)
    if kind != "float32":
        dtype, product, kind = product_of(kind, of_energy or "bounded", spec.scale)
    if of_energy is not None:
        return head, views, two_way, of_energy, of_energy, _share(spec, pairs), 1.0, dtype, product, kind
    plain, most = bounded and kind != "float32", FLOAT16_WEIGHTS if dtype == torch.float16 else 1.0
    relative = "running" if two_way or is_symmetric(head, views, further) else "single"
    modes = ("exp", "bounded") if plain else ("running", relative)
    return head, views, two_way, *modes, _share(spec, pairs), most, dtype, product, kind


def _share(spec: LossSpec, pairs: int) -> float:
    """What a sum over anchors is multiplied by; of a softmax of two ways, or of views, there are two for each pair."""
    if spec.loss in _UNPAIRED:
        return 1.0
    if spec.mean:
        return 1 / (2 * pairs if spec.loss == "clip_loss" or spec.loss in _VIEWS else pairs)
    return 0.5 if spec.loss == "clip_loss" else 1.0


def _batched(x: Any) -> Any:
    return x.unsqueeze(0) if x is not None and x.dim() == 2 else x


def _contiguous(labels: Tensor | None, batch: int) -> Tensor | None:
    return None if labels is None else labels.contiguous().view(batch, -1)
