"""The second order over many blocks, in value and in memory."""

import os
import subprocess
import sys

import oracle
import pytest
import torch

import hyperkern as hk
from hyperkern import second_order


def penalty(loss, *leaves: torch.Tensor) -> list[torch.Tensor]:
    grads = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))


@pytest.mark.parametrize(
    "loss",
    [
        hk.uniformity,
        lambda x: hk.uniformity(x, x.flip(0) + 1, intra=True),
        lambda x: hk.clip_loss(x, x.flip(0) + 1, logit_scale=3.0),
        lambda x: hk.pairwise_logsumexp(x, logit_scale=3.0, exclude="self")[0].sum(),
    ],
    ids=["uniformity", "queue", "clip_loss", "logsumexp"],
)
def test_blocks_do_not_change_the_result(loss, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(23, 4, dtype=torch.float64, requires_grad=True)
    whole = penalty(loss, x)
    monkeypatch.setattr(second_order, "_BLOCK_ELEMENTS", 23 * 5)
    for in_blocks, expected in zip(penalty(loss, x), whole, strict=True):
        torch.testing.assert_close(in_blocks, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("loss", "truth"),
    [
        (hk.clip_loss, oracle.clip_loss),
        (
            lambda x, y, logit_scale: hk.info_nce(x, y, negatives=y[:5].neg(), temperature=1 / logit_scale),
            lambda x, y, logit_scale: oracle.info_nce(x, y, negatives=y[:5].neg(), temperature=1 / logit_scale),
        ),
        (
            lambda x, y, logit_scale: hk.nt_xent(x, y, temperature=1 / logit_scale),
            lambda x, y, logit_scale: oracle.nt_xent(x, y, temperature=1 / logit_scale),
        ),
        (
            lambda x, y, logit_scale: hk.siglip(x, y, logit_scale=logit_scale, logit_bias=-10.0),
            lambda x, y, logit_scale: oracle.siglip(x, y, logit_scale=logit_scale, logit_bias=-10.0),
        ),
    ],
    ids=["clip_loss", "info_nce", "nt_xent", "siglip"],
)
def test_a_confident_model_has_a_second_derivative(loss, truth, dtype: torch.dtype) -> None:
    # Of some rows the positive is far above all other candidates: beyond e^88 in float32, e^709 in float64.
    scale = 150.0 if dtype == torch.float32 else 1200.0
    x = torch.randn(8, 64, dtype=torch.float64)
    y = (x + torch.tensor([0.1] * 4 + [3.0] * 4)[:, None] * torch.randn(8, 64)).to(dtype)
    leaves = [t.to(dtype).requires_grad_() for t in (x, y)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = penalty(lambda x, y: truth(x, y, logit_scale=scale), *exact)
    assert all(t.any() for t in expected)
    for found, want in zip(penalty(lambda x, y: loss(x, y, logit_scale=scale), *leaves), expected, strict=True):
        error = (found.double() - want).abs().max() / want.abs().max()
        assert error < (1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.slow
def test_a_gradient_penalty_takes_memory_of_the_features_not_of_the_blocks() -> None:
    # 64 blocks: were each to keep a gradient of the columns, 64 x 8 MB would pile up.
    program = """
import re, torch, hyperkern as hk
from hyperkern import second_order
second_order._BLOCK_ELEMENTS = 1024 * 16
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1e3
def step(n):
    x = torch.randn(n, 2048, requires_grad=True)
    (g,) = torch.autograd.grad(hk.uniformity(x), x, create_graph=True)
    g.square().sum().backward()
torch.set_num_threads(1)
step(64)
before = peak()
step(1024)
print(peak() - before)
"""
    # Each large tensor in a mapping of its own, given back when freed: the peak is of the tensors, not of the heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(result.stdout) < 200  # about a dozen tensors of the features' size
