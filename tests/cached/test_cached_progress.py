"""The step in chunks tells its progress, and has the graph of one chunk at a time."""

from typing import Any

import torch
from cached_models import encoder, views
from torch import Tensor

import hyperkern as hk


def test_progress() -> None:
    model, frozen, (x, y) = encoder(), encoder(seed=1).requires_grad_(False), views()
    seen: list[tuple[int, int]] = []
    hk.cached_step([model, frozen], [x, y], hk.info_nce, chunk_size=8, progress=lambda *of: seen.append(of))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 12]
    assert {total for _, total in seen} == {12}


def test_the_first_pass_has_one_graph_for_each_input() -> None:
    model, (x, y), modes = encoder(), views(), []

    def encode(rows: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return model(rows)

    hk.cached_step(encode, [x, y], hk.info_nce, chunk_size=8)
    assert modes == [True, False, False] * 2 + [True] * 6


def test_one_graph_at_a_time() -> None:
    """Counts the rows that are saved for a backward pass: those of a chunk, and the embeddings for the loss."""
    saved: dict[int, int] = {}
    most = 0

    class Saving(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.token = Token(len(x))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    class Token:
        def __init__(self, rows: int) -> None:
            nonlocal most
            saved[id(self)] = rows
            most = max(most, sum(saved.values()))

        def __del__(self) -> None:
            saved.pop(id(self), None)

    model, (x, y) = encoder(), views()
    hk.cached_step(lambda rows: Saving.apply(model(rows)), [x, y], hk.info_nce, chunk_size=4)
    assert most == 4
    assert not saved
