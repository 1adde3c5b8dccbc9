"""The drop-in for SimCSE's loss against the cross entropy of the dense matrix."""

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults
from torch import Tensor, nn

from hyperkern.integrations.simcse import SimCSELoss, simcse_loss


def dense(
    z1: Tensor, z2: Tensor, z3: Tensor | None = None, temp: float = 0.05, hard_negative_weight: float = 0.0
) -> Tensor:
    """What the paper describes: one row of logits for each sentence, the partner at its own place."""

    def similarities(columns: Tensor) -> Tensor:
        return F.cosine_similarity(z1.unsqueeze(1), columns.unsqueeze(0), dim=-1) / temp

    logits = similarities(z2)
    if z3 is not None:
        own = torch.eye(len(z1), dtype=z1.dtype)
        logits = torch.cat([logits, similarities(z3) + hard_negative_weight * own], 1)
    return F.cross_entropy(logits, torch.arange(len(z1)))


def sentences(n: int, d: int, count: int) -> list[Tensor]:
    first, *others = torch.randn(count, n, d, dtype=torch.float64)
    return [2 * first, *(first + other for other in others)]


@pytest.mark.parametrize("temp", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 3), (9, 5), (40, 33)])
def test_pairs(n: int, d: int, temp: float) -> None:
    ours, truth = (lambda x, loss=loss: loss(x[0], x[1], temp=temp) for loss in (simcse_loss, dense))
    assert_parity(ours, truth, torch.stack(sentences(n, d, 2)))


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.5, -2.0, -10.0])
@pytest.mark.parametrize("temp", [0.05, 1.0])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 3), (9, 5), (40, 33)])
def test_hard_negatives(n: int, d: int, temp: float, weight: float) -> None:
    ours, truth = (lambda x, loss=loss: loss(x[0], x[1], x[2], temp, weight) for loss in (simcse_loss, dense))
    assert_parity(ours, truth, torch.stack(sentences(n, d, 3)))


def test_the_weight_is_a_number_of_copies() -> None:
    # With the logarithm of 2 the own hard negative counts twice.
    z1, z2, z3 = sentences(6, 4, 3)
    scale = 1 / 0.05
    unit = [F.normalize(z, dim=1) for z in (z1, z2, z3)]
    logits = torch.cat([scale * unit[0] @ unit[1].T, scale * unit[0] @ unit[2].T], 1)
    twice = torch.cat([logits, logits[:, 6:].diagonal()[:, None]], 1)
    expected = F.cross_entropy(twice, torch.arange(6))
    torch.testing.assert_close(simcse_loss(z1, z2, z3, hard_negative_weight=torch.tensor(2.0).log().item()), expected)


def test_without_hard_negatives_their_weight_does_not_matter() -> None:
    z1, z2 = sentences(6, 4, 2)
    assert torch.equal(simcse_loss(z1, z2, hard_negative_weight=3.0), simcse_loss(z1, z2))


def test_dropout_twice() -> None:
    # The unsupervised loss as it is used: one encoder, two passes.
    encoder = nn.Sequential(nn.Linear(7, 8), nn.Dropout(0.3)).double()
    x = torch.randn(5, 7, dtype=torch.float64)
    z1, z2 = encoder(x), encoder(x)
    found, expected = (
        torch.autograd.grad(loss(z1, z2), encoder[0].weight, retain_graph=True) for loss in (simcse_loss, dense)
    )
    torch.testing.assert_close(found, expected)


def test_module() -> None:
    z1, z2, z3 = sentences(6, 4, 3)
    assert torch.equal(SimCSELoss()(z1, z2), simcse_loss(z1, z2))
    assert torch.equal(SimCSELoss(0.1, 2.0)(z1, z2, z3), simcse_loss(z1, z2, z3, 0.1, 2.0))
    assert repr(SimCSELoss(0.1)) == "SimCSELoss(temp=0.1, hard_negative_weight=0.0, gather_distributed=False)"
    assert defaults(SimCSELoss.__init__) == {
        "temp": 0.05,
        "hard_negative_weight": 0.0,
        "gather_distributed": False,
    }


def test_half_precision() -> None:
    z = [embeddings.bfloat16() for embeddings in sentences(6, 4, 3)]
    loss = simcse_loss(*z, hard_negative_weight=1.0)
    assert loss.dtype == torch.float32
    expected = dense(*(embeddings.double() for embeddings in z), hard_negative_weight=1.0)
    torch.testing.assert_close(loss.double(), expected, rtol=0.02, atol=0)


Z = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([[1.0]], Z), TypeError, "^z1 must be a torch.Tensor"),
        ((Z, None), TypeError, "^z2 must be a torch.Tensor"),
        ((Z, Z, [Z]), TypeError, "^z3 must be a torch.Tensor"),
        ((Z.long(), Z.long()), TypeError, "^z1 must be float64.* got torch.int64"),
        ((Z, Z.half()), TypeError, "^z2 must have the dtype of z1, torch.float32, got torch.float16"),
        ((Z[None], Z[None]), ValueError, r"^z1 must have shape \(N, D\), got \(1, 3, 2\)"),
        ((Z, Z[:2]), ValueError, r"^z2 must have the shape of z1, \(3, 2\), got \(2, 2\)"),
        ((Z, Z, Z[:2]), ValueError, r"^z3 must have the shape of z1, \(3, 2\), got \(2, 2\)"),
        ((Z, Z, Z, 0.0), ValueError, "^temp must be a finite number > 0, got 0.0"),
        ((Z, Z, None, 0.05, float("inf")), ValueError, "^hard_negative_weight must be a finite number, got inf"),
        ((Z, Z, Z, "0.05"), TypeError, "^temp must be a number, got str"),
    ],
)
def test_errors(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simcse_loss(*args)


def test_nothing_to_gather_by(monkeypatch: pytest.MonkeyPatch) -> None:
    z = sentences(4, 3, 2)
    assert torch.equal(simcse_loss(*z, gather_distributed=True), simcse_loss(*z))
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for refused in (lambda: simcse_loss(*z, gather_distributed=True), lambda: SimCSELoss(gather_distributed=True)):
        with pytest.raises(ValueError, match=r"^gather_distributed=True needs torch\.distributed"):
            refused()


def test_wrong_options_of_the_module() -> None:
    with pytest.raises(ValueError, match=r"^temp must be a finite number > 0, got -1"):
        SimCSELoss(temp=-1)
    with pytest.raises(ValueError, match=r"^hard_negative_weight must be a finite number, got nan"):
        SimCSELoss(hard_negative_weight=float("nan"))
