"""Whole losses by kernels: which rows meet which, what the kernels are told, and what is left to the composition.

The rows of all features of a batch element stand in one operand, ``(B, T, D')`` in the dtype of the product: anchors
``x``, their partners ``y``, further candidates. The views of a symmetric loss alternate, row 2i is ``x_i`` and row
2i + 1 is ``y_i``.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...spec import LossInputs, LossSpec, is_bounded
from .precision import product_of

# What the weights of a softmax are multiplied by in float16: each is at most 1, and their sum of two below its range.
FLOAT16_WEIGHTS = 4096.0

_TWO_WAY = ("clip_loss", "siglip")
_VIEWS = ("nt_xent", "dcl", "dclw")
_HEADS = {
    "clip_loss": "softmax",
    "info_nce": "softmax",
    "nt_xent": "softmax",
    "dcl": "decoupled",
    "dclw": "weighted",
    "siglip": "sigmoid",
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

    def loss(
        self, inputs: LossInputs, spec: LossSpec, need: Collection[str]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
        """Both sides with their gradients, or neither; a common bound of the exponents."""
        x = inputs.x
        if ("x" in need) != ("y" in need) or not is_bounded(spec.scale, x.shape[-2] ** 2, x.dtype):
            return None
        return self.values(x, inputs.y, _options(spec), spec.precision, need_grad=bool(need))

    def loss_grad(
        self,
        inputs: LossInputs,
        spec: LossSpec,
        need: Collection[str],
        state: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> dict[str, Tensor]:
        """The gradients of both sides."""
        grads = self.grads(inputs.x, inputs.y, state, _options(spec), cotangents)
        return dict(zip(("x", "y"), grads, strict=True))


def _options(spec: LossSpec) -> AlignUniformOptions:
    return AlignUniformOptions(spec.alpha, spec.scale / 2, spec.align_weight, spec.uniform_weight)


class Job(NamedTuple):
    """Some rows of the operand against others, in each batch element.

    Attributes:
        row: the first row.
        rows: how many.
        col: the first column, likewise a row of the operand.
        cols: how many.
        own: whether the columns with a row's own index, counted from the first of each, are left out; with two views
            those of its pair.
    """

    row: int
    rows: int
    col: int
    cols: int
    own: bool


class Plan(NamedTuple):
    """What the kernels of a loss are told.

    Attributes:
        spec: the loss.
        need: the names of the inputs whose gradient is wanted.
        x: ``(B, N, D)`` features of the anchors.
        y: ``(B, N, D)`` those of their partners, if they have some.
        queue: ``(B, K, D)`` further candidates, without a partner; those of uniformity are ``inputs.y``.
        scale: one number on the device of ``x``, the factor of the inner products or its reciprocal
            (``spec.temperature``). It is multiplied into the rows: its root into all where they are views, else into
            ``x``. None where ``spec.scale`` is the factor.
        bias: one number on the device of ``x``, or None, where ``spec.bias`` is the bias.
        head: ``softmax``, ``decoupled``, ``weighted`` (decoupled, with the weights of DCLW), ``sigmoid``, ``energy``.
        views: 2 where the rows of the operand alternate, else 1.
        two_way: whether rows pick among columns and columns among rows.
        sums: the mode of the sums, ``exp``, ``running`` or ``softplus``.
        weights: the mode of the contraction, as in the backend's tile: ``bounded`` or ``running``; ``single``, running
            where a pair has one weight; ``exp``, ``softplus``.
        share: what a sum over anchors is multiplied by.
        range: what the weights of a softmax are multiplied by, to suit the dtype of the product.
        dtype: that of the operand.
        product: ``tf32`` or ``tf32x3`` for float32 operands.
        kind: ``bfloat16``, ``float16``, ``tf32`` or ``float32``.
    """

    spec: LossSpec
    need: Collection[str]
    x: Tensor
    y: Tensor | None
    queue: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
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
    def batch(self) -> int:
        """Problems in one call."""
        return self.x.shape[0]

    @property
    def pairs(self) -> int:
        """Anchors ``x``."""
        return self.x.shape[1]

    @property
    def further(self) -> int:
        """Rows of the queue."""
        return 0 if self.queue is None else self.queue.shape[1]

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
    def factor(self) -> float:
        """That of the logits in the kernels of pairs."""
        return 1.0 if self.scale is not None else self.spec.scale

    def of_sums(self) -> list[Job]:
        """Which sums are taken; with two ways of the columns too."""
        n, further = self.pairs, self.further
        if self.head == "energy":
            return self._energy()
        if self.views == 2:
            return [Job(0, 2 * n, 0, 2 * n, True)]
        return [Job(0, n, n, n + further, True)]

    def of_weights(self) -> list[Job]:
        """Which sides are contracted: first that of the anchors, if it is needed, then that of the others."""
        n, further, need = self.pairs, self.further, self.need
        if self.head == "energy":
            return self._energy() + ([Job(n, further, 0, n, False)] if "y" in need else [])
        if self.views == 2:
            return self.of_sums()
        jobs = self.of_sums() if self.needs_anchors else []
        if "queue" in need:
            jobs.append(Job(n, n + further, 0, n, True))
        elif "y" in need:
            jobs.append(Job(n, n, 0, n, True))
        return jobs

    def _energy(self) -> list[Job]:
        """The queue first, then the distinct pairs of ``x`` in both orders."""
        n, jobs = self.pairs, []
        if self.queue is not None:
            jobs.append(Job(0, n, n, self.further, False))
        if self.distinct:
            jobs.append(Job(0, n, 0, n, True))
        return jobs

    @property
    def distinct(self) -> bool:
        """Whether the distinct pairs of ``x`` count in an energy."""
        return self.queue is None or (self.spec.in_batch and self.pairs > 1)

    @property
    def needs_anchors(self) -> bool:
        """Whether the contraction of the anchors' side is needed."""
        return any(name in self.need for name in ("x", "scale", "bias"))


class Kernels(NamedTuple):
    """What a backend launches. The state is what `values` hands to `grads`.

    Attributes:
        serves: ``(plan)``, whether rows are short enough for the contraction in one pass.
        values: ``(plan)``, the loss ``(B,)`` and the state. Prepares the rows; where there is a softmax, takes the sums
            and makes the factors of the weights of them; else contracts, if a gradient is needed, and adds the sums.
        grads: ``(plan, state, cotangent)``, the gradients that are needed, batched as the plan's features are, from
            that of the loss, ``()`` or ``(B,)``. Contracts, where that has not been done, adds partial results and the
            pairs of partners, and projects.
    """

    serves: Callable[[Plan], bool]
    values: Callable[[Plan], tuple[Tensor, State]]
    grads: Callable[[Plan, State, Tensor], dict[str, Tensor]]


class WholeLosses(NamedTuple):
    """`hyperkern.backends.Backend.loss` and its gradient by the kernels of a backend."""

    align_uniform: AlignUniformStep
    kernels: Kernels

    def loss(
        self, inputs: LossInputs, spec: LossSpec, need: Collection[str]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
        """A whole loss and the state of its gradient; ``None`` where it is left to the composition."""
        if spec.loss == "align_uniform":
            return self.align_uniform.loss(inputs, spec, need)
        plan = plan_of(inputs, spec, need)
        if plan is None or not self.kernels.serves(plan):
            return None
        value, state = self.kernels.values(plan)
        return (value.view(inputs.x.shape[:-2]),), state if need else ()

    def loss_grad(
        self,
        inputs: LossInputs,
        spec: LossSpec,
        need: Collection[str],
        state: State,
        cotangents: tuple[Tensor | None, ...],
    ) -> dict[str, Tensor]:
        """The gradients that are needed, by the name of the input."""
        if spec.loss == "align_uniform":
            return self.align_uniform.loss_grad(inputs, spec, need, state, cotangents)
        plan, cotangent = plan_of(inputs, spec, need), cotangents[0]
        assert plan is not None
        assert cotangent is not None
        grads = self.kernels.grads(plan, state, cotangent)
        return {name: grad.view(getattr(inputs, name).shape) for name, grad in grads.items()}


def plan_of(inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> Plan | None:
    """How a loss is computed in one piece; ``None`` where it is not."""
    x, head = inputs.x, _HEADS[spec.loss]
    y, queue = (None, inputs.y) if head == "energy" else (inputs.y, inputs.queue)
    on_device = all(t is None or t.device == x.device for t in (inputs.scale, inputs.bias))
    if not spec.normalize or not on_device or (spec.loss == "info_nce" and not spec.in_batch):
        return None
    two_way, views = spec.loss in _TWO_WAY, 2 if spec.loss in _VIEWS else 1
    bounded = inputs.scale is None and is_bounded(spec.scale, _terms(spec, x, queue), x.dtype)
    if head == "energy" and not bounded:
        return None
    of_energy = {"energy": "exp", "sigmoid": "softplus"}.get(head)
    dtype, product, kind = product_of(spec.precision, of_energy or "bounded", spec.scale, log_weights=False)
    plain = bounded and kind != "float32"
    if of_energy is None:
        sums = "exp" if plain else "running"
        weights = "bounded" if plain else "running" if two_way or views == 2 else "single"
    else:
        sums = weights = of_energy
    most = FLOAT16_WEIGHTS if of_energy is None and dtype == torch.float16 else 1.0
    return Plan(
        *(spec, need, _batched(x), _batched(y), _batched(queue), inputs.scale, inputs.bias, head, views, two_way),
        *(sums, weights, _share(spec, head, x.shape[-2]), most, dtype, product, kind),
    )


def _share(spec: LossSpec, head: str, pairs: int) -> float:
    """What a sum over anchors is multiplied by; of a softmax of two ways, or of views, there are two for each pair."""
    if head == "energy":
        return 1.0
    two = spec.loss != "siglip" and (spec.loss in _TWO_WAY or spec.loss in _VIEWS)
    if spec.mean:
        return 1 / (2 * pairs if two else pairs)
    return 0.5 if spec.loss == "clip_loss" else 1.0


def _terms(spec: LossSpec, x: Tensor, queue: Tensor | None) -> int:
    """The most terms of one sum of exponentials."""
    n, further = x.shape[-2], 0 if queue is None else queue.shape[-2]
    if spec.loss == "uniformity":
        return n * (n + further)
    return 2 * n if spec.loss in _VIEWS else n + further


def _batched(x: Any) -> Any:
    return x.unsqueeze(0) if x is not None and x.dim() == 2 else x
