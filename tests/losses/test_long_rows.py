"""Long rows and tiny temperatures: logits so large that their last bit is a factor of a weight.

Dense PyTorch is exact there, because its weights are made of the very numbers that its sums are made of. Where one
number stands for another, the row side for the column side, a logit for its mirror image, the gradient is lost first.
"""

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from conftest import DEVICE
from torch import Tensor

import hyperkern

LABELS = torch.arange(32) % 5
Loss = Callable[..., Tensor]


def views(module: object, name: str) -> Loss:
    return lambda z, t, **options: getattr(module, name)(*z.chunk(2), temperature=t, **options)


def scaled(module: object, name: str, **more: float) -> Loss:
    return lambda z, t, **options: getattr(module, name)(*z.chunk(2), logit_scale=1 / t, **more, **options)


def supervised(z: Tensor, t: float | Tensor, **options: object) -> Tensor:
    return hyperkern.sup_con(z, LABELS.to(z.device), temperature=t, **options)


def dense_supervised(z: Tensor, t: float | Tensor, normalize: bool, **_: object) -> Tensor:
    return oracle.sup_con(z, labels=LABELS.to(z.device), temperature=t, normalize=normalize)


LOSSES: dict[str, tuple[Loss, Loss]] = {
    **{
        name: (views(hyperkern, name), views(oracle, name)) for name in ("nt_xent", "dcl", "dclw", "info_nce")
    },
    "clip_loss": (scaled(hyperkern, "clip_loss"), scaled(oracle, "clip_loss")),
    "siglip": (scaled(hyperkern, "siglip", logit_bias=-10.0), scaled(oracle, "siglip", logit_bias=-10.0)),
    "sup_con": (supervised, dense_supervised),
}  # fmt: skip


def gradients(loss: Loss, z: Tensor, temperature: float, dtype: torch.dtype, learned: bool, **options: object) -> tuple:
    z = z.to(dtype, copy=True).requires_grad_()
    t = torch.tensor(temperature, dtype=dtype, device=z.device, requires_grad=True) if learned else temperature
    value = loss(z, t, **options)
    value.backward()
    return tuple(found.double() for found in (value.detach(), z.grad, *([t.grad] if learned else [])))


def check(name: str, rows: list[Tensor], temperature: float, backend: str, *, normalize: bool, learned: bool) -> None:
    """As accurate as dense float32 beside float64, by the median: of one input dense PyTorch may make no error."""
    compare(*LOSSES[name], rows, temperature, backend, normalize=normalize, learned=learned)


def compare(
    fused: Loss, dense: Loss, rows: list[Tensor], temperature: float, backend: str, *, normalize: bool, learned: bool
) -> None:
    allowed, errors = [], []
    for z in rows:
        problem = (z, temperature)
        truth = gradients(dense, *problem, torch.float64, learned, normalize=normalize)
        by_dense = gradients(dense, *problem, torch.float32, learned, normalize=normalize)
        found = gradients(fused, *problem, torch.float32, learned, normalize=normalize, backend=backend)
        for results, into in ((by_dense, allowed), (found, errors)):
            relative = [(r - t).abs().max() / t.abs().max() for r, t in zip(results, truth, strict=True)]
            into.append(torch.stack(relative))
    error, limit = torch.stack(errors).median(0)[0], 2 * torch.stack(allowed).median(0)[0] + 5e-7
    assert (error <= limit).all(), f"of loss and gradients: {error.tolist()} where {limit.tolist()} is allowed"


@pytest.mark.parametrize("name", LOSSES)
def test_long_rows(name: str) -> None:
    rows = [torch.randn(32, 64, device=DEVICE) / 8 for _ in range(31)]
    for norm in (1.0, 32.0, 1000.0, 10_000.0):
        check(name, [norm * z for z in rows], 0.07, "reference", normalize=False, learned=False)


def test_many_long_rows() -> None:
    """So many that a library multiplies them by a kernel whose product of rows by themselves is not symmetric."""
    rows = [125 * torch.randn(600, 64, device=DEVICE) for _ in range(3)]
    check("nt_xent", rows, 0.07, "reference", normalize=False, learned=False)


@pytest.mark.parametrize("name", LOSSES)
def test_tiny_temperatures(name: str) -> None:
    rows = [torch.randn(32, 64, device=DEVICE) for _ in range(31)]
    for temperature in (1e-3, 1e-5, 1e-8):
        check(name, rows, temperature, "reference", normalize=True, learned=True)


@pytest.mark.parametrize("name", LOSSES)
def test_every_backend_at_the_ends(name: str, device: torch.device, backend: str) -> None:
    """Where nothing but the last bit of a logit decides."""
    z = torch.randn(32, 64, device=device) / 8
    for norm in (1000.0, 10_000.0):
        check(name, [norm * z], 0.07, backend, normalize=False, learned=False)
    for norm in (1.0, 10.0, 10_000.0):
        check(name, [norm * z], 1e-8, backend, normalize=norm == 1.0, learned=False)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("kind", ["collapsed", "clustered"])
def test_a_learned_temperature_of_collapsed_features(kind: str) -> None:
    """All similarities are nearly 1, and the gradient of the temperature is what their differences leave."""
    allowed, errors = [], []
    for _ in range(12):
        labels = torch.randint(10, (513,), device=DEVICE)
        z = torch.randn(513, 8, device=DEVICE)
        z = z + 100 if kind == "collapsed" else torch.randn(10, 8, device=DEVICE)[labels] + 0.01 * z
        found = []
        for dtype, dense in ((torch.float64, True), (torch.float32, True), (torch.float32, False)):
            t = torch.tensor(0.02, dtype=dtype, device=DEVICE, requires_grad=True)
            options = {"temperature": t, "backend": "reference"}
            value = (
                oracle.sup_con(z.to(dtype), labels=labels, temperature=t)
                if dense
                else hyperkern.sup_con(z.to(dtype), labels, **options)
            )
            (grad,) = torch.autograd.grad(value, t)
            found.append(grad.double())
        truth, by_dense, ours = found
        allowed.append((by_dense - truth).square())
        errors.append((ours - truth).square())
    assert torch.stack(errors).mean().sqrt() <= torch.stack(allowed).mean().sqrt()


def test_the_weights_of_dclw_on_raw_rows() -> None:
    """A softmax of logits that are large and nearly equal, each close to a thirty-second."""
    first = [8 * torch.nn.functional.normalize(torch.randn(32, 64, device=DEVICE), dim=1) for _ in range(15)]
    rows = [torch.cat([x, x + 0.01 * torch.randn_like(x)]) for x in first]
    fused, dense = (
        lambda z, t, m=module, **options: m.dclw(*z.chunk(2), temperature=t, sigma=0.1, **options)
        for module in (hyperkern, oracle)
    )
    compare(fused, dense, rows, 0.1, "reference", normalize=False, learned=False)


def test_hard_negatives_of_long_rows() -> None:
    """Of three for each row one occurs twice: a half for each, though the logarithm of 2 is less than a last bit."""
    fused, dense = (
        lambda z, t, m=module, **options: m.info_nce(
            *z[:64].chunk(2), hard_negatives=z[64:].unflatten(0, (32, 3)), temperature=t, **options
        )
        for module in (hyperkern, oracle)
    )
    rows = [torch.randn(160, 64, device=DEVICE) / 8 for _ in range(9)]
    for z in rows:
        z[65::3] = z[64::3]
    for norm in (32.0, 10_000.0):
        compare(fused, dense, [norm * z for z in rows], 0.07, "reference", normalize=False, learned=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("queue", [False, True])
def test_uniformity_of_long_rows(queue: bool, dtype: torch.dtype) -> None:
    """Where the closest pair decides alone, its potential is `e^-t` to the power of a large number."""
    rows = torch.randn(33, 16, dtype=torch.float64, device=DEVICE) / 4
    for norm, t in ((1.0, 2.0), (32.0, 2.0), (1e3, 2.0), (1e4, 2.0), (1e3, 5e3), (1e4, 5e3)):
        z = (norm * rows).to(dtype)

        def fused(z: Tensor, t: float = t) -> Tensor:
            return hyperkern.uniformity(*(z[:20], z[20:]) if queue else (z,), t=t, normalize=False)

        def dense(z: Tensor, t: float = t) -> Tensor:
            distances = z[:20, None] - z[20:] if queue else (z[:, None] - z)[tuple(torch.triu_indices(33, 33, 1))]
            return (-t * distances.square().sum(-1)).flatten().logsumexp(0)

        wide = z.cpu().numpy().astype(np.longdouble)
        differences = wide[:20, None] - wide[20:] if queue else (wide[:, None] - wide)[np.triu_indices(33, 1)]
        exponents = -t * np.square(differences).sum(-1)
        weights = np.exp(exponents - exponents.max())
        pairs = -2 * t * (weights / weights.sum())[..., None] * differences
        truth = np.zeros_like(wide)
        i, j = np.indices((20, 13)).reshape(2, -1) if queue else np.triu_indices(33, 1)
        np.add.at(truth, i, pairs.reshape(-1, 16))
        np.add.at(truth, j + 20 * queue, -pairs.reshape(-1, 16))
        error, allowed = (
            np.linalg.norm(torch.func.grad(loss)(z).cpu().numpy() - truth) / np.linalg.norm(truth)
            for loss in (fused, dense)
        )
        assert error <= 2 * allowed + torch.finfo(dtype).eps, (norm, t, error, allowed)
