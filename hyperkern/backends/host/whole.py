"""Whole losses by kernels: what the kernels are told, and what is left to the composition.

The rows of all features of a batch element stand in one operand, ``(B, T, D')`` in the dtype of the product: anchors
``x``, their partners ``y``, further candidates. The views of a symmetric loss alternate, row 2i is ``x_i`` and row
2i + 1 is ``y_i``.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import LossInputs, LossSpec, is_bounded
from .. import WholeLoss
from .precision import float32_setting
from .scheme import HEADS, UNPAIRED, Scheme, scheme_of

KINDS = ("bfloat16", "float16", "tf32", "float32")
LOSSES = frozenset({"align_uniform", *HEADS})

State = tuple[Tensor, ...]


class Plan(NamedTuple):
    """What the kernels of a loss are told.

    Attributes:
        scheme: all but the tensors.
        x: ``(N, D)`` or ``(B, N, D)`` features of the anchors.
        y: those of their partners, if they have some.
        queue: ``(K, D)`` or ``(B, K, D)`` further candidates, without a partner; those of uniformity and of classes are
            ``inputs.y``.
        scale: one number on the device of ``x``, the factor of the inner products or its reciprocal
            (``spec.temperature``). It is multiplied into the rows: its root into all where the problem is symmetric,
            else into ``x``. None where ``spec.scale`` is the factor.
        bias: one number on the device of ``x``, or None, where ``spec.bias`` is the bias.
        labels: ``(B, N)`` integers, contiguous, the classes of ``x``; what a gradient needs of them is in its state.
        queue_labels: ``(B, K)``, those of the queue, perhaps of another dtype.
    """

    scheme: Scheme
    x: Tensor
    y: Tensor | None
    queue: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    labels: Tensor | None
    queue_labels: Tensor | None


class Kept(NamedTuple):
    """Copies of what a gradient needs besides the inputs that get one: those may have changed since.

    Attributes:
        x: float32 unit rows, where the anchors get none.
        y: those of the partners, likewise.
        scale: float32, where it is a tensor, whether or not it gets one.
    """

    x: Tensor | None = None
    y: Tensor | None = None
    scale: Tensor | None = None


def kept_of(plan: Plan) -> Kept:
    """Room for what is kept."""
    need, x = plan.scheme.need, plan.x
    if not need:
        return Kept()
    of_x = None if "x" in need else x.new_empty(x.shape, dtype=torch.float32)
    of_y = None if plan.y is None or "y" in need else x.new_empty(plan.y.shape, dtype=torch.float32)
    return Kept(of_x, of_y, None if plan.scale is None else x.new_empty((), dtype=torch.float32))


class WholeLosses(NamedTuple):
    """`hyperkern.backends.Backend.loss` and its gradient by what a backend launches.

    Attributes:
        values: ``(plan)``, the loss ``(B,)``, what is `Kept` if any gradient is needed, and the state for `grads`;
            None, before anything is launched, if rows are too long for the row-wise kernels, or for the contraction in
            one pass where the weights find no room in a panel either. Prepares the rows; where there is a softmax,
            takes the sums and makes the factors of the weights of them; else contracts, if a gradient is needed, and
            adds the sums.
        grads: ``(plan, needed, state, cotangent)``, the gradients of the inputs ``needed``, by name, from that of the
            loss, ``()`` or ``(B,)``. In the plan what is kept stands for inputs that get none, and there is no queue if
            it gets none. Contracts, where that has not been done, adds partial results and the pairs of partners, and
            projects.
        align_uniform: ``(x, y, spec, *, need_grad)``, the three numbers of alignment + uniformity, whose kernels make
            both sides, and what the gradient needs besides.
        align_uniform_grad: ``(x, y, state, spec, cotangents)``, the gradients of ``x`` and ``y``.
    """

    values: Callable[[Plan], tuple[Tensor, Kept, State] | None]
    grads: Callable[[Plan, dict[str, Tensor], State, Tensor], dict[str, Tensor]]
    align_uniform: Callable[..., tuple[tuple[Tensor, ...], State]]
    align_uniform_grad: Callable[..., tuple[Tensor, Tensor]]

    def loss(self, inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> WholeLoss | None:
        """A whole loss and the state of its gradient; ``None`` where it is left to the composition."""
        x = inputs.x
        if spec.loss == "align_uniform":
            # Both sides with their gradients, or neither; a common bound of the exponents.
            if ("x" in need) != ("y" in need) or not is_bounded(spec.scale, x.shape[-2] ** 2, x.dtype):
                return None
            return WholeLoss(*self.align_uniform(x, inputs.y, spec, need_grad=bool(need)), {})
        plan = plan_of(inputs, spec, need)
        found = None if plan is None else self.values(plan)
        if plan is None or found is None:
            return None
        value, kept, state = found
        values = (value.view(x.shape[:-2]),)
        if not need:
            return WholeLoss(values, (), {})
        # The numbers of a plan, as sizes of nothing: the queue will be gone, the setting of products may be another.
        scheme = plan.scheme
        sizes = (scheme.batch, scheme.pairs, scheme.further, scheme.learnable)
        numbers = value.new_empty((0, KINDS.index(scheme.kind), *sizes))
        return WholeLoss(values, (numbers, *(t for t in kept if t is not None), *state), {})

    def loss_grad(
        self, needed: dict[str, Tensor], spec: LossSpec, state: State, cotangents: tuple[Tensor | None, ...]
    ) -> dict[str, Tensor]:
        """The gradients that are needed, by the name of the input."""
        if spec.loss == "align_uniform":
            dx, dy = self.align_uniform_grad(needed["x"], needed["y"], state, spec, cotangents)
            return {"x": dx, "y": dy}
        (plan, rest), cotangent = _plan_of_state(needed, spec, state), cotangents[0]
        assert cotangent is not None
        return self.grads(plan, needed, rest, cotangent)


def plan_of(inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> Plan | None:
    """How a loss is computed in one piece; ``None`` where it is not."""
    x, (y, queue) = inputs.x, (None, inputs.y) if spec.loss in UNPAIRED else (inputs.y, inputs.queue)
    for number in (inputs.scale, inputs.bias):
        if number is not None and number.device != x.device:
            return None
    batch, pairs = 1 if x.dim() == 2 else x.shape[0], x.shape[-2]
    further = 0 if queue is None else queue.shape[-2]
    # A kind is exact, of the precision of an input float32 is a matter of the setting.
    kind = float32_setting() if spec.precision == "float32" else spec.precision
    shape = (x.shape[-1], batch, pairs, further, inputs.scale is not None, kind)
    scheme = scheme_of(spec, tuple(need), x.dtype, *shape)
    if scheme is None:
        return None
    labels = (_contiguous(inputs.labels, batch), _contiguous(inputs.y_labels, batch))
    return Plan(scheme, x, y, queue, inputs.scale, inputs.bias, *labels)


def _plan_of_state(needed: dict[str, Tensor], spec: LossSpec, state: State) -> tuple[Plan, State]:
    """The plan that the state was made by, with what is kept, and the rest of the state."""
    _, kind, batch, pairs, further, learnable = state[0].shape
    rest = list(state[1:])
    x = needed["x"] if "x" in needed else rest.pop(0)
    y, queue = needed.get("y"), needed.get("queue")
    if spec.loss in UNPAIRED:
        y, queue = None, y
    elif y is None:
        y = rest.pop(0)
    scale = rest.pop(0) if learnable else None
    # What is kept is float32, and has no gradient.
    dtype = next((needed[name].dtype for name in ("x", "y", "queue") if name in needed), torch.float32)
    shape = (x.shape[-1], batch, pairs, further, bool(learnable), KINDS[kind])
    scheme = scheme_of(spec, tuple(needed), dtype, *shape)
    assert scheme is not None
    return Plan(scheme, x, y, queue, scale, None, None, None), tuple(rest)


def _contiguous(labels: Tensor | None, batch: int) -> Tensor | None:
    return None if labels is None else labels.contiguous().view(batch, -1)
