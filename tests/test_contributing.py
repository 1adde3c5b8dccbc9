"""The loss that CONTRIBUTING shows is one: its program runs, and is right."""

import re
import types
from pathlib import Path

import pytest
import torch
from oracle import assert_close
from ranks import Ranks
from torch import Tensor

import hyperkern as hk

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example() -> types.ModuleType:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module = types.ModuleType("hyperkern.losses.margin_nce")
    module.__package__ = "hyperkern.losses"
    exec(compile(program, "CONTRIBUTING.md", "exec"), vars(module))
    return module


def dense(x: Tensor, y: Tensor, temperature: float | Tensor, margin: float) -> Tensor:
    cosines = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(y, dim=-1).T
    logits = cosines / temperature - margin * torch.eye(len(x), dtype=x.dtype)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(x)))


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 7, 4, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), y.requires_grad_()


def test_it_is_right() -> None:
    shown, (x, y) = example(), rows()
    found, truth = shown.margin_nce(x, y, temperature=0.3), dense(x, y, 0.3, 0.2)
    assert_close(found, truth)
    for grad, expected in zip(*(torch.autograd.grad(loss, (x, y)) for loss in (found, truth)), strict=True):
        assert_close(grad, expected)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(shown.margin_nce(x, y, temperature=temperature), temperature)
    assert_close(slope, torch.autograd.grad(dense(x, y, temperature, 0.2), temperature)[0])
    module = shown.MarginNCELoss(temperature=0.3, margin=0.5)
    assert_close(module(x, y), dense(x, y, 0.3, 0.5))
    assert "margin=0.5" in repr(module)
    assert "margin: of the positive, > 0." in shown.MarginNCELoss.__doc__
    assert shown.MarginNCELoss(learnable=True)(x, y).requires_grad
    with pytest.raises(ValueError, match="margin must be a finite number > 0, got 0"):
        shown.MarginNCELoss(margin=0)


def on_a_rank(rank: int) -> tuple[Tensor, Tensor]:
    x, y = (side.detach()[rank * 3 : rank * 4 + 3].requires_grad_() for side in rows())
    loss = example().margin_nce(x, y, group=hk.Group())
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def test_it_is_right_across_ranks(ranks: Ranks) -> None:
    x, y = rows()
    truth = dense(x, y, 0.1, 0.2)
    runs = ranks(2).run(on_a_rank)
    for found, _ in runs:
        assert_close(found, truth)
    assert_close(torch.cat([grad for _, grad in runs]), 2 * torch.autograd.grad(truth, x)[0])
