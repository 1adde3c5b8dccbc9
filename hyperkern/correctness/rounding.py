"""How far the truth of a loss moves where the operands of its products are rounded.

The weights of a few far pairs are e to the power of their similarities, and the error of a single number, as the
gradient of a temperature is one, may be small in PyTorch by chance: neither says what a right kernel may be off by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..bench import gate
from ..bench.gate import exactly
from ..bench.registry import Loss

# Half a unit in the last place of an operand; tensor cores cut tf32 off, by a whole one at most, all with one sign.
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-10, "float32": 2.0**-20}
# So many that of a single number the largest error is six times the root of their mean square.
_NUDGES = 8


def moves(truth: Loss, wanted: Sequence[Tensor], inputs: Sequence[Tensor], kind: str, dim: int) -> list[float]:
    """How far each result moves.

    Args:
        truth: the loss, in float64.
        wanted: its value and gradients.
        inputs: of what; features are ``(..., rows, dim)``.
        kind: the products.
        dim: the number of features.
    """
    generator = torch.Generator(inputs[0].device).manual_seed(dim)
    squares = [torch.zeros_like(want) for want in wanted]
    for _ in range(_NUDGES):
        nudged = gate.step(truth, [_nudged(x, UNIT[kind], generator) for x in inputs])
        for square, there, want in zip(squares, nudged, wanted, strict=True):
            square += (there - want).square() / _NUDGES
    found = [(6 if square.dim() < 2 else 3) * square.max().sqrt().item() for square in squares]
    if kind == "tf32":
        apart = gate.step(truth, _apart(inputs, 2 * UNIT[kind]))
        for i, (there, want) in enumerate(zip(apart, wanted, strict=True)):
            off = there[..., :dim] - want if want.dim() > 1 else there - want
            found[i] = max(found[i], off.abs().max().item())
    return [move if move < float("inf") else 0.0 for move in found]


def _nudged(x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """The input in float64, each element of features up or down by a share of it."""
    exact = exactly(x)
    if x.dim() < 2 or not x.is_floating_point():
        return exact
    up = torch.randint(2, x.shape, generator=generator, device=x.device)
    return (exact.detach() * (1 + unit * (2 * up - 1))).requires_grad_(x.requires_grad)


def _apart(inputs: Sequence[Tensor], error: float) -> list[Tensor]:
    """The inputs in float64, all similarities between two of them less by a share of them.

    Each tensor of features gets a direction of its own in further dimensions, the same for all of its rows, which are
    nearer each other by as much.
    """
    features = [i for i, x in enumerate(inputs) if x.is_floating_point() and x.dim() > 1]
    moved = [exactly(x) for x in inputs]
    for turn, i in enumerate(features if len(features) > 1 else []):
        x = moved[i].detach()
        further = x.new_zeros(*x.shape[:-1], len(features))
        further[..., turn] = error**0.5 * torch.linalg.vector_norm(x, dim=-1)
        moved[i] = torch.cat([x, further], -1).requires_grad_(inputs[i].requires_grad)
    return moved
