"""The step in chunks in mixed precision: autocast, a gradient scaler, a scale of one's own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cached_models import Temperature, assert_same, encoder, gradients, in_chunks, views
from torch import Tensor

import hyperkern as hk


@pytest.fixture
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.usefixtures("autocast")
def test_autocast() -> None:
    model, loss, (x, y) = encoder(torch.float32), Temperature(torch.float32), views(torch.float32)
    seen = []

    def checked(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.dtype, torch.is_autocast_enabled("cpu")))
        return loss(a, b)

    value = checked(in_chunks(model, x, 5), in_chunks(model, y, 5))
    with torch.autocast("cpu", enabled=False):
        value.backward()
    expected = gradients(model, loss)
    with torch.no_grad():
        model(x)  # what autocast casts here has no graph, and is kept
    found = hk.cached_step(model, [x, y], checked, chunk_size=5)
    assert torch.equal(found, value.detach())
    # The ordinary step adds the gradients of all chunks in bfloat16, this one in float32.
    assert_same(gradients(model, loss), expected, 0.02)
    assert seen == [(torch.bfloat16, True)] * 2


@pytest.mark.usefixtures("autocast")
def test_backward_passes_are_outside_of_autocast() -> None:
    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            assert torch.is_autocast_enabled("cpu")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            assert not torch.is_autocast_enabled("cpu")
            return gradient

    model, (x, y) = encoder(torch.float32), views(torch.float32)
    hk.cached_step(
        lambda rows: Watched.apply(model(rows)), [x, y], lambda a, b: hk.info_nce(Watched.apply(a), b), chunk_size=5
    )
    assert torch.is_autocast_enabled("cpu")


def test_grad_scaler() -> None:
    models = [encoder(torch.float32), encoder(torch.float32)]
    x, y = views(torch.float32)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in models]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000) for _ in models]
    for step in range(4):
        factor = float("inf") if step == 1 else 1.0
        for optimizer in optimizers:
            optimizer.zero_grad()
        scalers[0].scale(hk.info_nce(models[0](x), models[0](y)) * factor).backward()
        value = hk.cached_step(
            models[1],
            [x, y],
            lambda a, b, factor=factor: hk.info_nce(a, b) * factor,
            chunk_size=5,
            scale=scalers[1].scale,
        )
        assert value.isfinite() == (step != 1)
        before = [p.detach().clone() for p in models[1].parameters()]
        for scaler, optimizer in zip(scalers, optimizers, strict=True):
            scaler.step(optimizer)
            scaler.update()
        skipped = all(torch.equal(a, b) for a, b in zip(before, models[1].parameters(), strict=True))
        assert skipped == (step == 1)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**9
    assert_same(*([p.detach() for p in model.parameters()] for model in reversed(models)), 1e-5)


def test_accumulation_with_a_scale() -> None:
    model, (x, y) = encoder(), views()
    value = hk.info_nce(model(x), model(y))
    value.backward()
    expected = gradients(model)
    for _ in range(4):
        found = hk.cached_step(model, [x, y], hk.info_nce, chunk_size=5, scale=lambda loss: loss / 4)
    assert_same([found], [value.detach()])
    assert_same(gradients(model), expected)
