"""Supervised contrastive losses by kernels: which labels make a class, and what a row without a positive does."""

import oracle
import pytest
import test_step
import torch
from conftest import DEVICE
from test_step import Launches
from torch import Tensor

import hyperkern as hk

backend = test_step.backend  # the fixture


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def check(
    backend: str,
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    y_labels: Tensor | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Value and gradients, of either reduction, against the dense formula."""
    for reduction in ("mean", "sum"):
        found = []
        for module, dtype, options in ((hk, x.dtype, {"backend": backend}), (oracle, torch.float64, {})):
            args = [t.detach().to(dtype).requires_grad_() for t in (x, y) if t is not None]
            given = {"labels": labels, "y_labels": y_labels, "y": args[-1] if y is not None else None}
            value = module.sup_con(args[0], **given, temperature=0.2, reduction=reduction, **options)
            found.append([value, *torch.autograd.grad(value, args, torch.full_like(value, -0.7))])
        for got, want in zip(*found, strict=True):
            assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-3)


CLASSES = {
    "all distinct": lambda i: i - 2**63,
    "all equal": lambda i: torch.full_like(i, -1),
    "in pairs": lambda i: i // 2 + 2**53,
    "one class among singles": lambda i: torch.where(i % 3 == 0, 5, 2**32 * i + 5),  # alike in 32 bits
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("n", [1, 2, 37])
def test_classes(backend: str, n: int, classes: str) -> None:
    labels, y_labels = (CLASSES[classes](torch.arange(k, device=DEVICE)) for k in (n, n + 8))
    check(backend, features(n, 6), labels)
    check(backend, features(n, 6), labels, features(n + 8, 6), y_labels.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_without_a_positive(backend: str, dtype: torch.dtype) -> None:
    x, labels = features(7, 4).to(dtype), torch.tensor([3, 0, 3, 5, 0, 7, 3], device=DEVICE)
    check(backend, x, labels, tolerance=1e-5 if dtype == torch.float32 else 4e-3)
    for rows in (7, 1):  # each is alone
        leaf = x[:rows].clone().requires_grad_()
        value = hk.sup_con(leaf, torch.arange(rows, device=DEVICE), backend=backend)
        assert value == 0
        assert (torch.autograd.grad(value, leaf)[0] == 0).all()
    # Of several problems one may have none.
    batched = torch.stack([labels, torch.arange(7, device=DEVICE), torch.zeros_like(labels)])
    check(backend, features(3, 7, 4), batched)


def test_labels_that_the_queue_does_not_know(backend: str) -> None:
    x, y = features(9, 4), features(5, 4)
    labels, y_labels = (torch.arange(n, device=DEVICE) % 3 for n in (9, 5))
    check(backend, x, labels, y, y_labels)
    check(backend, x, labels + 2, y, y_labels)
    check(backend, x, labels + 100, y, y_labels)
    # No row is left out: a queue that holds the rows themselves has them as positives.
    check(backend, x, torch.arange(9, device=DEVICE), x, torch.arange(9, device=DEVICE))


def test_equal_labels_and_equal_rows(backend: str) -> None:
    check(backend, features(40, 4), torch.full((40,), -1, device=DEVICE))
    x = torch.ones(40, 4, device=DEVICE).requires_grad_()
    value = hk.sup_con(x, torch.arange(40, device=DEVICE) // 2, backend=backend)
    torch.testing.assert_close(value.double(), torch.tensor(39.0, dtype=torch.float64, device=DEVICE).log())
    assert torch.autograd.grad(value, x)[0].abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_integers_are_compared_as_numbers(backend: str, dtype: torch.dtype) -> None:
    x, y = features(7, 4), features(10, 4)
    labels = torch.tensor([3, 0, 3, 5, 0, 7, 3], device=DEVICE)
    y_labels = torch.tensor([0, 3, 3, 9, 5, 3, 9, 9, 0, 9], device=DEVICE)
    expected = hk.sup_con(x, labels, y, y_labels, backend=backend)
    assert hk.sup_con(x, labels.to(dtype), y, y_labels, backend=backend) == expected
    assert hk.sup_con(x, labels.to(dtype), y, y_labels.to(torch.int16), backend=backend) == expected
    assert hk.sup_con(x, labels.to(dtype), backend=backend) == hk.sup_con(x, labels, backend=backend)
    # 9 is of the queue alone; these have the low bits of 3, 0 and 5.
    for other in (256 + 3, 2**32, 5 - 2**63):
        others = y_labels.masked_fill(y_labels == 9, other)
        assert hk.sup_con(x, labels.to(dtype), y, others, backend=backend) == expected
    # In eight bits 255 is -1.
    all_255, none = torch.full((7,), 255, dtype=torch.uint8), torch.full((10,), -1, dtype=torch.int8)
    assert hk.sup_con(x, all_255.to(DEVICE), y, none.to(DEVICE), backend=backend) == 0


def test_labels_of_any_strides(backend: str) -> None:
    x, labels = features(3, 20, 6), torch.arange(60, device=DEVICE).view(20, 3).T % 4
    assert not labels.is_contiguous()
    expected = hk.sup_con(x, labels.contiguous(), backend=backend)
    assert torch.equal(hk.sup_con(x, labels, backend=backend), expected)
    shared = torch.arange(21, device=DEVICE)[1:] % 4  # not at an aligned address
    separate = torch.stack([hk.sup_con(x[i], shared, backend=backend) for i in range(3)])
    torch.testing.assert_close(hk.sup_con(x, shared.expand(3, 20), backend=backend), separate)


def test_labels_may_change_before_the_gradient_is_asked_for(backend: str) -> None:
    x, y = (t.requires_grad_() for t in (features(12, 5), features(8, 5)))
    grads = []
    for change in (False, True):
        labels, y_labels = (torch.arange(n, device=DEVICE) % 3 for n in (12, 8))
        value = hk.sup_con(x, labels, y, y_labels, backend=backend) + hk.sup_con(x, labels, backend=backend)
        if change:
            labels.fill_(1)
            y_labels.zero_()
        grads.append(torch.autograd.grad(value, (x, y)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_confident_model(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two views of each row, near each other and far from all others: what is left are small differences.
    x = torch.eye(16, device=DEVICE).repeat_interleave(2, 0)
    x[::2] += 0.02 * torch.eye(16, device=DEVICE).roll(1, 0)
    labels = torch.arange(32, device=DEVICE) // 2
    results = []
    for module, dtype, options in (
        (hk, torch.float16, {"backend": backend}),
        (hk, torch.float32, {"backend": backend}),
        (oracle, torch.float64, {}),
    ):
        leaf = x.half().to(dtype).requires_grad_()
        value = module.sup_con(leaf, labels=labels, temperature=1 / 12, **options)
        results.append((value, *torch.autograd.grad(value, leaf, torch.full_like(value, 1e4))))
    (half, half_grad), (single, single_grad), (exact, exact_grad) = results
    assert abs(single - exact) <= 1e-6
    assert abs(half - exact) <= 2e-5
    assert (single_grad - exact_grad).abs().max() <= 1e-3 * exact_grad.abs().max()
    assert (half_grad - exact_grad).abs().max() <= 1e-2 * exact_grad.abs().max()


def test_the_labels_take_no_launch(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (t.requires_grad_() for t in (features(2, 20, 6), features(2, 30, 6)))
    labels, y_labels = (torch.arange(2 * n, device=DEVICE).view(2, n) % 3 for n in (20, 30))
    cotangent = torch.ones(2, device=DEVICE)
    for given in ((labels,), (labels, y, y_labels), (labels.int(), y, y_labels.to(torch.uint8))):
        with Launches(backend, monkeypatch) as launches:
            value = hk.sup_con(x, *given, backend=backend)
            forward = len(launches.found)
            torch.autograd.grad(value, (x, y)[: len(given)][:2], cotangent, allow_unused=True)
        assert forward <= 3, launches.found
        assert len(launches.found) <= 5, launches.found
