"""Losses of the build that is loaded, against the textbook formulas in float64."""

import kernels
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

hyperkern = kernels.get_kernel("$repo_id", version=0, trust_remote_code=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def info_nce(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / 0.1, torch.arange(len(x), device=DEVICE))


def uniformity(x: Tensor, y: Tensor) -> Tensor:
    return torch.pdist(F.normalize(x, dim=1)).square().mul(-2).exp().mean().log()


@pytest.mark.kernels_ci
@pytest.mark.parametrize("rows", [64, 500])
@pytest.mark.parametrize(
    ("loss", "truth"),
    [
        (lambda x, y: hyperkern.info_nce(x, y, temperature=0.1), info_nce),
        (lambda x, y: hyperkern.uniformity(x), uniformity),
    ],
)
def test_value_and_gradient(rows, loss, truth):
    x, y = torch.randn(2, rows, 100, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    value, expected = loss(found, y), truth(exact, y.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    gradient, wanted = torch.autograd.grad(value, found)[0], torch.autograd.grad(expected, exact)[0]
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=1e-5)
