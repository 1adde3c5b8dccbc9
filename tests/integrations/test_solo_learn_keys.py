"""solo-learn's losses of queries and keys, which are not on PyPI: against their formulas, written densely."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, relative_error
from torch import Tensor

from hyperkern.integrations import _soft_targets
from hyperkern.integrations import solo_learn as ours


def nnclr(nn: Tensor, p: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    logits = F.normalize(nn, dim=1) @ F.normalize(p, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(nn)))


def mocov3(query: Tensor, key: Tensor, temperature: float | Tensor = 0.2) -> Tensor:
    return nnclr(query, key, temperature) * 2 * temperature


def mocov2plus(query: Tensor, key: Tensor, queue: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def ressl(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature_q: float | Tensor = 0.1,
    temperature_k: float | Tensor = 0.04,
) -> Tensor:
    target = ((k @ queue.T).detach() / temperature_k).softmax(1)
    return F.cross_entropy(q @ queue.T / temperature_q, target)


DENSE: dict[str, Callable[..., Tensor]] = {
    "nnclr_loss_func": nnclr,
    "mocov3_loss_func": mocov3,
    "mocov2plus_loss_func": mocov2plus,
    "ressl_loss_func": ressl,
}


def features(name: str, n: int = 9, d: int = 5, queue: int = 12) -> list[Tensor]:
    """Unit rows where the loss does not normalise."""
    query, noise = torch.randn(2, n, d, dtype=torch.float64)
    if name in ("nnclr_loss_func", "mocov3_loss_func"):
        return [3 * query, query + noise]
    bank = F.normalize(torch.randn(queue, d, dtype=torch.float64), dim=1)
    pair = [F.normalize(side, dim=1) for side in (query, query + noise)]
    return [*pair, bank.T if name == "mocov2plus_loss_func" else bank]


@pytest.mark.parametrize("name", DENSE)
def test_defaults(name: str) -> None:
    assert defaults(getattr(ours, name)) == defaults(DENSE[name])


@pytest.mark.parametrize(("n", "d", "queue"), [(1, 3, 1), (2, 3, 7), (9, 5, 12), (40, 33, 64)])
@pytest.mark.parametrize("temperatures", [(), (0.07,), (0.5,)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_dense_formula(name: str, temperatures: tuple[float, ...], n: int, d: int, queue: int) -> None:
    both = (lambda *rows, of=of: of(*rows, *temperatures) for of in (getattr(ours, name), DENSE[name]))
    assert_parity(*both, *features(name, n, d, queue), largest_logit=25.0)


@pytest.mark.parametrize("name", DENSE)
def test_learned_temperatures(name: str) -> None:
    temperatures = torch.tensor([0.3, 0.2], dtype=torch.float64)[: 2 if name == "ressl_loss_func" else 1]
    assert_parity(getattr(ours, name), DENSE[name], *features(name), *temperatures)


@pytest.mark.parametrize("block", [1, 30])
def test_blocks_of_queries(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(_soft_targets, "BLOCK", block)
    assert_parity(ours.ressl_loss_func, ressl, *features("ressl_loss_func"), largest_logit=25.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DENSE)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    rows = [side.to(dtype).requires_grad_() for side in features(name, 32, 16, 40)]
    found = getattr(ours, name)(*rows, 0.5)
    truth = DENSE[name](*(side.double() for side in rows), 0.5)
    assert found.dtype == torch.float32
    assert relative_error(found.detach(), truth.detach()) <= 2e-3
    for grad in torch.autograd.grad(found, rows, allow_unused=True):
        assert grad is None or (grad.dtype == dtype and grad.isfinite().all())


X, Q = torch.ones(3, 2), torch.ones(2, 4)
WRONG: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("nnclr_loss_func", (X[None], X[None]), ValueError, r"^nn must have shape \(N, D\)"),
    ("nnclr_loss_func", (X, X[:2]), ValueError, "^p must have the shape of nn"),
    ("nnclr_loss_func", (X, X, 0.0), ValueError, "^temperature must be a finite number > 0"),
    ("mocov3_loss_func", (X[None], X[None]), ValueError, r"^query must have shape \(N, D\)"),
    ("mocov3_loss_func", (X, X.half()), TypeError, "^key must have the dtype"),
    ("mocov2plus_loss_func", (X[None], X[None], Q), ValueError, r"^query must have shape \(N, D\)"),
    ("mocov2plus_loss_func", (X, X, Q.T), ValueError, r"^queue must have shape \(2, K\), got \(4, 2\)"),
    ("mocov2plus_loss_func", (X, X, Q.half()), TypeError, "^queue must have the dtype of query"),
    ("mocov2plus_loss_func", (X, X[:2], Q), ValueError, "^key must have the shape of query"),
    ("mocov2plus_loss_func", (X, X, None), TypeError, "^queue must be a torch.Tensor"),
    ("ressl_loss_func", (X, X, Q), ValueError, "^queue must have shape"),
    ("ressl_loss_func", (X, X[:2], Q.T), ValueError, "^k must have the shape of q"),
    ("ressl_loss_func", (X, X, Q.T, 0.0), ValueError, "^temperature_q must be a finite number > 0"),
    ("ressl_loss_func", (X, X, Q.T, 0.1, "0.04"), TypeError, "^temperature_k must be a number"),
]


@pytest.mark.parametrize(("name", "args", "error", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_errors(name: str, args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        partial(getattr(ours, name), *args)()


def test_a_temperature_of_one_element_makes_a_scalar() -> None:
    x, y = torch.randn(2, 4, 3)
    temperature = torch.tensor([0.2], dtype=torch.float64)
    loss = ours.mocov3_loss_func(x, y, temperature)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    torch.testing.assert_close(loss, ours.mocov3_loss_func(x, y, 0.2))
