"""What the tests of the step in chunks share: small encoders, their batches, how gradients are compared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hyperkern as hk

ROWS, WIDTH, DIM = 22, 7, 5


def encoder(dtype: torch.dtype = torch.float64, seed: int = 0, *extra: nn.Module, hidden: int = 16) -> nn.Sequential:
    """A small encoder; further layers go before the last one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(WIDTH, hidden), nn.Tanh(), *extra, nn.Linear(hidden, DIM)).to(dtype)


def views(dtype: torch.dtype = torch.float64, rows: int = ROWS, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return x, y


def gradients(*modules: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, which are then cleared."""
    found = []
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            found.append(parameter.grad)
        module.zero_grad()
    return found


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-3)


def in_chunks(encode: Callable[[Any], Tensor], x: Tensor, size: int) -> Tensor:
    """The embeddings of an ordinary step whose encoder meets the same chunks."""
    return torch.cat([encode(part) for part in x.split(size)])


class Temperature(nn.Module):
    """A two-way contrastive loss whose temperature is learned."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return hk.clip_loss(x, y, logit_scale=self.log_scale.exp())


class Stop(RuntimeError):
    """What a test raises in the midst of a step."""
