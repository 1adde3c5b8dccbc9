"""Whole losses by the kernels of a backend: how many launches, and everything the compositions do as well."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import oracle
import pytest
import test_step
import torch
from conftest import DEVICE
from oracle import assert_close
from test_step import Launches
from torch import Tensor

import hyperkern as hk

backend, float32_alone = test_step.backend, test_step.float32_alone  # the fixtures
FLOAT32_ALONE = pytest.mark.usefixtures("float32_alone")


class Whole(NamedTuple):
    """A loss that kernels compute as a whole.

    Attributes:
        ours: ``(*tensors, backend=) -> loss``.
        truth: the same by its textbook formula.
        roles: what its tensors are, see `tensors`.
        launches: the most, forward and backward.
    """

    ours: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    roles: str
    launches: int = 5


def _named(name: str, roles: str, launches: int = 5, **options: Any) -> Whole:
    """A loss whose function here and in `oracle` has one name; learnable numbers are arguments by name."""
    numbers = roles.split("+")[1:]

    def call(module: Any, tensors: Sequence[Tensor], **further: Any) -> Tensor:
        split = len(tensors) - len(numbers)
        named = dict(zip(numbers, tensors[split:], strict=True))
        features = tensors[:split]
        if name == "info_nce" and len(features) == 3:
            *features, named["negatives"] = features
        return getattr(module, name)(*features, **named, **options, **further)

    return Whole(lambda *t, **k: call(hk, t, **k), lambda *t: call(oracle, t), roles, launches)


@functools.cache
def labels_of(shape: tuple[int, ...], last: int = 2**40 + 3) -> Tensor:
    """Classes of several rows, others in each problem of a batch; the last row's has the low word of one of them."""
    labels = torch.arange(math.prod(shape)).view(shape) ** 2 % 5 + 3
    labels[..., -1] = last
    return labels.to(DEVICE)


def _sup_con(roles: str, **options: Any) -> Whole:
    """Other candidates know some of the classes, and have some that are theirs alone."""

    def call(module: Any, tensors: Sequence[Tensor], **further: Any) -> Tensor:
        x, *rest = tensors
        named: dict[str, Any] = {"temperature": rest.pop()} if "temperature" in roles else {}
        if rest:
            named |= {"y": rest[0], "y_labels": labels_of(rest[0].shape[:-1], 2**41 + 3)}
        return module.sup_con(x, labels=labels_of(x.shape[:-1]), **named, **options, **further)

    return Whole(lambda *t, **k: call(hk, t, **k), lambda *t: call(oracle, t), roles, 5)


LOSSES = {
    "clip_loss": _named("clip_loss", "xy", logit_scale=10.0),
    "clip_loss-large": _named("clip_loss", "xy", logit_scale=300.0, reduction="sum"),
    "clip_loss-learnable": _named("clip_loss", "xy+logit_scale"),
    "info_nce": _named("info_nce", "xy", temperature=0.2),
    "info_nce-queue": _named("info_nce", "xyq"),
    "info_nce-small": _named("info_nce", "xyq", temperature=0.005, reduction="sum"),
    "info_nce-queue_alone": _named("info_nce", "xyq", in_batch=False),
    "info_nce-queue_alone-learnable": _named("info_nce", "xyq+temperature", in_batch=False),
    "info_nce-learnable": _named("info_nce", "xyq+temperature"),
    "nt_xent": _named("nt_xent", "xy"),
    "nt_xent-small": _named("nt_xent", "xy", temperature=0.005, reduction="sum"),
    "nt_xent-learnable": _named("nt_xent", "xy+temperature"),
    "dcl": _named("dcl", "xy"),
    "dcl-learnable": _named("dcl", "xy+temperature", reduction="sum"),
    "dclw": _named("dclw", "xy", sigma=0.3),
    "dclw-learnable": _named("dclw", "xy+temperature"),
    "siglip": _named("siglip", "xy", logit_scale=10.0, logit_bias=-10.0),
    "siglip-learnable": _named("siglip", "xy+logit_scale+logit_bias", reduction="sum"),
    "sup_con": _sup_con("x"),
    "sup_con-small": _sup_con("x", temperature=0.005, reduction="sum"),
    "sup_con-learnable": _sup_con("x+temperature", reduction="sum"),
    "sup_con-queue": _sup_con("xq"),
    "sup_con-queue-small": _sup_con("xq", temperature=0.005),
    "sup_con-queue-learnable": _sup_con("xq+temperature"),
    "uniformity": _named("uniformity", "x", 4),
    "uniformity-queue": _named("uniformity", "xq", 4, t=1.5),
    "uniformity-intra": _named("uniformity", "xq", 5, intra=True),
}
FIRST = [name for name in LOSSES if "-" not in name]
EACH = pytest.mark.parametrize("name", LOSSES)

NUMBERS = {"temperature": 0.3, "logit_scale": 7.0, "logit_bias": -6.0}


def tensors(
    name: str, n: int = 21, d: int = 8, *, batch: int | None = None, k: int = 37, seed: int = 0
) -> list[Tensor]:
    """The features of a loss, and its learnable numbers."""
    features, *numbers = LOSSES[name].roles.split("+")
    draw = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    found = [torch.randn(*lead, k if role == "q" else n, d, generator=draw) for role in features]
    return [t.to(DEVICE) for t in (*found, *(torch.tensor(NUMBERS[number]) for number in numbers))]


def leaves(given: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().to(dtype or t.dtype).requires_grad_() for t in given]


def value_and_grads(loss: Callable[..., Tensor], args: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """The loss, and the gradients of all tensors from one that differs from problem to problem."""
    value = loss(*args, **options)
    cotangent = torch.linspace(0.5, -1.5, max(2, value.numel()), device=value.device)[: value.numel()]
    grads = torch.autograd.grad(value, list(args), cotangent.to(value.dtype).view(value.shape))
    return [value.detach(), *grads]


def check(name: str, backend: str, given: Sequence[Tensor], tolerance: float) -> None:
    check_against(LOSSES[name].truth, LOSSES[name].ours, backend, given, tolerance)


def check_against(
    truth: Callable[..., Tensor], ours: Callable[..., Tensor], backend: str, given: Sequence[Tensor], tolerance: float
) -> None:
    found = value_and_grads(ours, leaves(given), backend=backend)
    expected = value_and_grads(truth, leaves(given, torch.float64))
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        size = want.abs().max().clamp_min(1e-3)
        assert (got.double() - want).abs().max() <= tolerance * size


@EACH
def test_launches(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args, loss = leaves(tensors(name)), LOSSES[name]
    cotangent = torch.ones((), device=DEVICE)
    loss.truth(*args)  # the labels are there
    with Launches(backend, monkeypatch) as launches:
        torch.autograd.grad(loss.ours(*args, backend=backend), args, cotangent)
    assert len(launches.found) <= loss.launches, launches.found
    # Once forward and once backward: it is no composition.
    assert sum("finish" in found for found in launches.found) == 1
    assert sum("prepare" in found for found in launches.found) == 1


@pytest.mark.parametrize("name", FIRST)
def test_values_alone_need_no_second_product(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Launches(backend, monkeypatch) as launches:
        value = LOSSES[name].ours(*tensors(name), backend=backend)
    assert not any("contract" in found for found in launches.found)
    expected = LOSSES[name].truth(*(t.double() for t in tensors(name)))
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


@FLOAT32_ALONE
@EACH
@pytest.mark.parametrize(("n", "k", "d", "batch"), [(2, 1, 1, None), (33, 5, 7, None), (19, 40, 50, 3)])
def test_values_and_gradients(backend: str, name: str, n: int, k: int, d: int, batch: int | None) -> None:
    scale = 300.0 if "small" in name or "large" in name else 10.0
    check(name, backend, tensors(name, n, d, batch=batch, k=k), 1e-6 * scale)


@FLOAT32_ALONE
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("n", [300] if DEVICE == "cpu" else [300, 5000])
def test_many_tiles(backend: str, name: str, n: int) -> None:
    check(name, backend, tensors(name, n, 16, k=n // 3), 2e-5)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(backend: str, name: str, dtype: torch.dtype, poisoned_allocations: None) -> None:
    given = [t.to(dtype) if t.dim() else t for t in tensors(name, 20, 24, batch=2)]
    eps = torch.finfo(dtype).eps
    # At a scale of 300 a logit of rounded rows is off by more than 1.
    tolerance = 8 * eps * (20 if "small" in name or "large" in name else 1)
    check(name, backend, given, tolerance)


@pytest.mark.parametrize("name", ["clip_loss", "info_nce", "nt_xent"])
def test_a_confident_model_in_half_precision(backend: str, name: str) -> None:
    # All weights are about e^-14, of which float16 has but a few binary digits.
    scale = {"logit_scale": 14.0} if name == "clip_loss" else {"temperature": 1 / 14}
    grads = []
    for module, dtype, options in ((hk, torch.float16, {"backend": backend}), (oracle, torch.float64, {})):
        x, y = leaves([torch.eye(16, device=DEVICE)] * 2, dtype)
        value = getattr(module, name)(x, y, **scale, **options)
        grads.append(torch.autograd.grad(value, (x, y), torch.full_like(value, 1e4)))
    for got, want in zip(*grads, strict=True):
        assert (got - want).abs().max() <= 3e-3 * want.abs().max()


@FLOAT32_ALONE
@EACH
def test_nothing_is_read_before_it_is_written(backend: str, name: str, poisoned_allocations: None) -> None:
    scale = 300.0 if "small" in name or "large" in name else 10.0
    check(name, backend, tensors(name, 45, 12, batch=2), 1e-6 * scale)


@pytest.mark.parametrize("name", FIRST)
def test_strides_and_repeats(backend: str, name: str) -> None:
    plain = tensors(name, 30, 7)
    other = [t.T.contiguous().T if i % 2 else t.repeat(2, 3)[::2, :7].detach() for i, t in enumerate(plain)]
    other = [t if torch.equal(t, p) else p.mT.contiguous().mT for t, p in zip(other, plain, strict=True)]
    first, second = leaves(plain), [t.requires_grad_() for t in other]
    values = [LOSSES[name].ours(*args, backend=backend) for args in (first, second)]
    assert torch.equal(*values)
    grads = [torch.autograd.grad(v, a, retain_graph=True) for v, a in zip(values, (first, second), strict=True)]
    again = torch.autograd.grad(2 * values[0], first)
    for once, strided, twice in zip(*grads, again, strict=True):
        assert torch.equal(once, strided)
        assert torch.equal(2 * once, twice)


@pytest.mark.parametrize(
    "name", ["clip_loss-learnable", "nt_xent-learnable", "siglip-learnable", "sup_con-queue-learnable"]
)
def test_a_second_backward_pass_gives_the_same(backend: str, name: str) -> None:
    args = leaves(tensors(name, 40, 9))
    value = LOSSES[name].ours(*args, backend=backend)
    first, second = (torch.autograd.grad(value, args, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@FLOAT32_ALONE
@pytest.mark.parametrize(
    "name",
    [
        *("clip_loss-learnable", "info_nce-learnable", "info_nce-queue_alone-learnable"),
        *("uniformity-intra", "dclw", "siglip", "sup_con-learnable", "sup_con-queue-learnable"),
    ],
)
def test_frozen_sides(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors(name, 20, 6)
    expected = value_and_grads(LOSSES[name].truth, leaves(given, torch.float64))
    for wanted in range(len(given)):
        args = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(given)]
        with Launches(backend, monkeypatch) as launches:
            value = LOSSES[name].ours(*args, backend=backend)
            (grad,) = torch.autograd.grad(value, args[wanted], torch.full_like(value, 0.5))
        assert sum("finish" in found for found in launches.found) == 1
        want = expected[1 + wanted]
        assert (grad - want).abs().max() <= 2e-5 * want.abs().max()


def test_one_pair_alone(backend: str) -> None:
    # Nothing to tell apart, whatever its logit: here one whose exponential is 0.
    x = torch.tensor([[1.0, 0.0]], device=DEVICE)
    for loss in (
        lambda a, b: hk.clip_loss(a, b, logit_scale=300.0, backend=backend),
        lambda a, b: hk.nt_xent(a, b, temperature=0.003, backend=backend),
        lambda a, b: hk.info_nce(a, b, temperature=0.003, backend=backend),
    ):
        value, *grads = value_and_grads(loss, leaves((x, -x)))
        assert value == 0
        assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("name", [*FIRST, "uniformity-queue", "uniformity-intra", "sup_con-queue"])
def test_zero_and_extreme_rows(backend: str, name: str) -> None:
    given = tensors(name, 12, 5)
    for t in given:
        t[3] = t[7] = 0
        t[8] = 1e30 * t[8]
        t[9] = 1e-30 * t[9]
    found = value_and_grads(LOSSES[name].ours, leaves(given), backend=backend)
    expected = value_and_grads(LOSSES[name].ours, leaves(given, torch.float64), backend="reference")
    assert_close(found[0].double(), expected[0], 2e-5)
    for got, want, t in zip(found[1:], expected[1:], given, strict=True):
        norm = t.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)  # a row of 0 has a gradient of 1e12
        assert_close(got.double() * norm, want * norm, 2e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("clip_loss-learnable", "info_nce-learnable", "nt_xent-learnable", "siglip-learnable", "uniformity-intra"),
        "sup_con-queue-learnable",
    ],
)
def test_what_has_no_gradient_may_change_before_it_is_asked_for(backend: str, name: str) -> None:
    given = tensors(name, 20, 6)
    for wanted in range(len(given)):
        args = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(given)]
        (expected,) = torch.autograd.grad(LOSSES[name].ours(*args, backend=backend), args[wanted])
        value = LOSSES[name].ours(*args, backend=backend)
        for i, t in enumerate(args):
            if i != wanted:
                t.fill_(torch.nan)
        assert torch.equal(torch.autograd.grad(value, args[wanted])[0], expected)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_seen(backend: str, name: str, bad: float) -> None:
    given = tensors(name, 9, 4)
    given[-1][4, 2] = bad
    assert LOSSES[name].ours(*given, backend=backend).isnan()


@pytest.mark.parametrize(
    "name", ["clip_loss-learnable", "info_nce-queue", "dclw", "siglip-learnable", "sup_con-queue", "uniformity-intra"]
)
def test_second_derivatives(backend: str, name: str) -> None:
    found = []
    for dtype, chosen in ((torch.float32, backend), (torch.float64, "reference")):
        args = leaves(tensors(name, 9, 4), dtype)
        first = torch.autograd.grad(LOSSES[name].ours(*args, backend=chosen), args, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), args)])
    for got, want in zip(*found, strict=True):
        assert_close(got.double(), want, 2e-4)


@pytest.mark.parametrize("name", FIRST)
def test_the_setting_of_products_may_change_before_the_gradient(backend: str, name: str) -> None:
    args, grads = leaves(tensors(name, 20, 8)), []
    before = torch.get_float32_matmul_precision()
    try:
        for later in ("medium", "highest", "high"):
            torch.set_float32_matmul_precision("medium")
            value = LOSSES[name].ours(*args, backend=backend)
            torch.set_float32_matmul_precision(later)
            grads.append(torch.autograd.grad(value, args))
    finally:
        torch.set_float32_matmul_precision(before)
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_rows_as_they_are_take_the_composition(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = leaves([torch.randn(9, 6, device=DEVICE) for _ in range(2)])
    with Launches(backend, monkeypatch) as launches:
        loss = hk.clip_loss(x, y, logit_scale=0.3, normalize=False, backend=backend)
        grads = torch.autograd.grad(loss, (x, y))
    assert len(launches.found) > 6
    a, b = leaves((x, y), torch.float64)
    expected = torch.autograd.grad(oracle.clip_loss(a, b, logit_scale=0.3, normalize=False), (a, b))
    for got, want in zip(grads, expected, strict=True):
        assert_close(got.double(), want, 1e-4)
