"""The options of the contrastive losses all at once: value and every gradient against the dense formula in float64."""

from collections.abc import Callable

import oracle
import pytest
import torch
from cases import values_and_grads
from oracle import assert_close
from torch import Tensor

import hyperkern as hk

N, K, D = 6, 7, 5
IDS = torch.tensor([0, 0, 1, 1, 2, 2])
QUEUE_IDS = torch.tensor([0, 1, 5, 5, 9, 2, 2])
# Of one problem, and of a batch whose elements differ in what is a false negative.
ALL_IDS = {
    (): (IDS, QUEUE_IDS),
    (3,): (
        torch.stack([IDS, IDS.flip(0), torch.arange(N)]),
        torch.stack([QUEUE_IDS, QUEUE_IDS.flip(0), QUEUE_IDS + 50]),
    ),
}
ROWS = {"x": (N, D), "y": (N, D), "third": (N, D), "fourth": (N, D), "queue": (K, D), "hard": (N, 2, D)}
VECTORS = {"u": (N,), "v": (K,), "weights": (N,)}
SCALARS = {"temperature": 0.3, "scale": 4.0, "bias": -1.5}


def both(function: Callable) -> tuple[Callable, Callable]:
    """A call of the package, and the same of the oracle."""
    return (lambda *args, **k: function(hk, *args, **k)), (lambda *args, **k: function(oracle, *args, **k))


# What a loss is called with, and the call; each tensor gets a gradient.
CALLS = {
    "info_nce": (
        "x y queue hard u v temperature",
        lambda module, x, y, q, h, u, v, t, ids, queue_ids, **k: module.info_nce(
            x,
            y,
            negatives=q,
            hard_negatives=h,
            y_log_weights=u,
            negative_log_weights=v,
            temperature=t,
            ids=ids,
            negative_ids=queue_ids,
            **k,
        ),
    ),
    "info_nce, queue alone": (
        "x y queue v temperature",
        lambda module, x, y, q, v, t, ids, queue_ids, **k: module.info_nce(
            *(x, y),
            negatives=q,
            negative_log_weights=v,
            temperature=t,
            ids=ids,
            negative_ids=queue_ids,
            in_batch=False,
            **k,
        ),
    ),
    "clip_loss": (
        "x y scale",
        lambda module, x, y, s, ids, queue_ids, **k: module.clip_loss(x, y, logit_scale=s, ids=ids, **k),
    ),
    "nt_xent": (
        "x y third fourth queue temperature",
        lambda module, *args, ids, queue_ids, **k: module.nt_xent(
            *args[:4], negatives=args[4], temperature=args[5], **k
        ),
    ),
    "dclw": (
        "x y temperature",
        lambda module, x, y, t, ids, queue_ids, **k: module.dclw(x, y, temperature=t, sigma=0.8, **k),
    ),
    "sup_con": (
        "x queue temperature",
        lambda module, x, q, t, ids, queue_ids, **k: module.sup_con(
            x, labels=ids, y=q, y_labels=queue_ids, temperature=t, **k
        ),
    ),
    "siglip": (
        "x y scale bias",
        lambda module, x, y, s, b, ids, queue_ids, **k: module.siglip(x, y, logit_scale=s, logit_bias=b, **k),
    ),
}


def drawn(roles: str, lead: tuple[int, ...]) -> list[Tensor]:
    shapes = ROWS | VECTORS
    return [
        torch.tensor(SCALARS[role], dtype=torch.float64)
        if role in SCALARS
        else torch.randn(*lead, *shapes[role], dtype=torch.float64)
        for role in roles.split()
    ]


def check(function: Callable, args: list[Tensor]) -> None:
    """Value and gradients of a call of the package against those of the oracle."""
    found, truth = (values_and_grads(lambda *a, call=call: (call(*a),), args) for call in both(function))
    for actual, expected in zip([*found[0], *found[1]], [*truth[0], *truth[1]], strict=True):
        assert_close(actual, expected, 1e-11)


# SigLIP does not keep the pairs of a row apart.
REDUCED = [(name, how) for name in CALLS for how in ("mean", "sum", "none") if (name, how) != ("siglip", "none")]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lead", ALL_IDS, ids=str)
@pytest.mark.parametrize(("name", "reduction"), REDUCED)
def test_all_options_at_once(name: str, reduction: str, lead: tuple[int, ...], normalize: bool) -> None:
    roles, function = CALLS[name]
    options = dict(zip(("ids", "queue_ids"), ALL_IDS[lead], strict=True), reduction=reduction, normalize=normalize)
    check(lambda module, *args: function(module, *args, **options), drawn(roles, lead))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("lead", ALL_IDS, ids=str)
def test_weights_of_dcl_have_a_gradient(lead: tuple[int, ...], reduction: str) -> None:
    def function(module: object, x: Tensor, y: Tensor, w: Tensor, t: Tensor) -> Tensor:
        weights = (w, w) if module is hk else w
        return module.dcl(x, y, weights=weights, temperature=t, reduction=reduction)

    check(function, drawn("x y weights temperature", lead))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_a_learned_scalar_of_any_shape_and_dtype(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    roles, function = CALLS[name]
    args, call = drawn(roles, ()), both(function)[0]
    names = roles.split()
    # Their values in a dtype that holds them exactly, so that only the route differs.
    exact = {"temperature": 0.25, "scale": 4.0, "bias": -1.5}
    leaves = {role: torch.full(shape, exact[role], dtype=dtype, requires_grad=True) for role in names if role in exact}
    numbers = [exact.get(role, arg) for role, arg in zip(names, args, strict=True)]
    learned = [1 * leaves.get(role, arg) for role, arg in zip(names, args, strict=True)]
    value = call(*learned, ids=IDS, queue_ids=QUEUE_IDS)
    assert value.shape == ()
    assert_close(value, call(*numbers, ids=IDS, queue_ids=QUEUE_IDS))
    value.backward()
    for leaf in leaves.values():
        assert leaf.grad.shape == shape
        assert leaf.grad.dtype == dtype
        assert leaf.grad.abs().all()
