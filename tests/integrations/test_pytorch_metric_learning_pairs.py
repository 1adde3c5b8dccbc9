"""Pairs that are named, in the drop-in for PyTorch Metric Learning: against the library and what its miners find."""

import functools
from collections.abc import Callable

import pytest
import torch
from parity import Largest, assert_parity, library
from torch import Tensor

from hyperkern.integrations import pytorch_metric_learning as ours

NAMES = ["NTXentLoss", "SupConLoss"]
LABELS, OTHERS = torch.arange(14) % 5, torch.tensor([0, 1, 1, 2, 4, 4, 0, 3, 9])


def index(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


# Of 14 rows and 9 columns.
TUPLES = {
    "pairs": (index(0, 3, 3, 7), index(6, 7, 8, 1), index(0, 0, 3, 3, 5), index(1, 2, 0, 4, 8)),
    "repeated": (index(0, 0, 2, 0), index(6, 6, 5, 6), index(0, 0, 2, 2, 0), index(1, 1, 3, 3, 4)),
    "an anchor without negatives": (index(0, 1), index(6, 2), index(0, 4), index(1, 8)),
    "negatives of no anchor": (index(1, 2), index(2, 4), index(5, 5, 6), index(1, 8, 0)),
    "triplets": (index(0, 0, 3, 7, 7), index(6, 6, 7, 1, 1), index(1, 2, 0, 4, 5)),
    "int32": tuple(t.int() for t in (index(0, 3, 7), index(6, 7, 1), index(1, 2, 4))),
    "no positives": (index(), index(), index(0, 1), index(2, 3)),
    "no negatives": (index(0, 1), index(2, 3), index(), index()),
    "nothing": (index(), index(), index()),
    "nothing, of floats": (torch.empty(0),) * 3,
    "one of each": (index(0), index(2), index(1), index(3)),
}
MINERS: dict[str, dict] = {
    "MultiSimilarityMiner": {},
    "BatchHardMiner": {},
    "BatchEasyHardMiner": {},
    "TripletMarginMiner": {"type_of_triplets": "semihard"},
    "PairMarginMiner": {},
    "AngularMiner": {},
    "HDCMiner": {},
    "UniformHistogramMiner": {"num_bins": 10},
}


def features(n: int, d: int = 6) -> Tensor:
    return 3 * torch.randn(n, d, dtype=torch.float64) + 1


def both(name: str, call: Callable) -> list[Callable]:
    theirs = library("pytorch_metric_learning.losses")
    return [functools.partial(call, getattr(m, name)(0.2)) for m in (ours, theirs)]


@pytest.fixture(params=["a matrix", "gathered"])
def _route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours.sides.Sides, "is_dense", lambda self, named: request.param == "a matrix")


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("pairs", TUPLES)
@pytest.mark.parametrize("name", NAMES)
class TestTuples:
    """Against other features and among themselves, with labels and without."""

    def test_against_other_features(self, name: str, pairs: str) -> None:
        named = tuple(t.long() for t in TUPLES[pairs])  # the original takes no others
        mine, theirs = both(name, lambda loss, x, y: loss(x, LABELS, named, y, OTHERS))
        assert_parity(mine, theirs, features(14), features(9))
        (given, _) = both(name, lambda loss, x, y: loss(x, None, TUPLES[pairs], y))
        x, y = features(14), features(9)
        assert given(x, y) == mine(x, y)

    def test_among_themselves(self, name: str, pairs: str) -> None:
        named = tuple(t.long() for t in TUPLES[pairs])
        assert_parity(*both(name, lambda loss, x: loss(x, LABELS, indices_tuple=named)), features(14))


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", NAMES)
def test_miners(name: str, miner: str) -> None:
    x, y, others = features(14), features(30), torch.arange(30) % 6
    made = getattr(library("pytorch_metric_learning.miners"), miner)(**MINERS[miner])
    named = made(x, LABELS)
    assert_parity(*both(name, lambda loss, x: loss(x, LABELS, named)), x, largest_logit=15)
    named = made(x, LABELS, y, others)
    assert sum(map(len, named)) > 0
    assert_parity(*both(name, lambda loss, x, y: loss(x, LABELS, named, y, others)), x, y, largest_logit=15)


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("name", NAMES)
def test_all_pairs_are_those_of_the_labels(name: str) -> None:
    same = LABELS[:, None] == LABELS
    named = *torch.where(same & ~torch.eye(14, dtype=torch.bool)), *torch.where(~same)
    loss = getattr(ours, name)()
    assert_parity(lambda x: loss(x, None, named), lambda x: loss(x, LABELS), features(14), largest_logit=15)


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("name", NAMES)
def test_second_order_and_half_precision(name: str) -> None:
    loss, named = getattr(ours, name)(0.5), TUPLES["repeated"]
    x, y = features(14, 3), features(9, 3)
    assert torch.autograd.gradgradcheck(
        lambda x, y: loss(x, None, named, y), (x.requires_grad_(), y.requires_grad_()), atol=1e-4
    )
    half = x.detach().bfloat16(), y.detach().bfloat16()
    value = loss(half[0], None, named, half[1])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(half[0].double(), None, named, half[1].double()))


@pytest.mark.parametrize("name", NAMES)
def test_memory_of_what_is_named(name: str) -> None:
    """No tensor is larger than the features of the rows or of the pairs."""
    rows, dim, pairs = 3000, 4, 4000
    x = torch.randn(rows, dim, requires_grad=True)
    named = tuple(torch.randint(rows, (pairs,)) for _ in range(3))
    named = named[0], (named[0] + 1 + named[1] // 2) % rows, named[0], named[0]

    with Largest() as largest:
        getattr(ours, name)()(x, None, named).backward()
    assert largest.numel <= 2 * pairs * dim


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused(name: str) -> None:
    loss, x, a = getattr(ours, name)(), features(4), index(0, 1)
    with pytest.raises(TypeError, match=r"^indices_tuple must be a tuple of tensors, got tensor"):
        loss(x, None, a)
    with pytest.raises(TypeError, match=r"^indices_tuple must be a tuple of tensors, got \(\[0"):
        loss(x, None, ([0, 1],) * 3)
    with pytest.raises(ValueError, match=r"^indices_tuple must be .*, got 2 tensors"):
        loss(x, None, (a, a))
    with pytest.raises(TypeError, match=r"^indices_tuple must be of integers, got torch.bool"):
        loss(x, None, (a > 0,) * 3)
    with pytest.raises(
        ValueError, match=r"^indices_tuple must be of one dimension and of lengths that belong together"
    ):
        loss(x, None, (a, a, index(1)))
    with pytest.raises(IndexError, match=r"^indices_tuple must name columns from 0 to 3, got 0 to 4"):
        loss(x, None, (a, index(0, 4), a))
    with pytest.raises(IndexError, match=r"^indices_tuple must name rows from 0 to 3, got -1 to 0"):
        loss(x, None, (index(-1, 0), a, a))
    with pytest.raises(IndexError, match=r"^indices_tuple must name columns from 0 to 1, got 0 to 3"):
        loss(x, None, (a, a, index(2, 3)), x[:2])


@pytest.mark.usefixtures("_route")
def test_a_pair_that_is_both() -> None:
    named = index(0, 1), index(2, 3), index(1, 2), index(3, 0)
    with pytest.raises(ValueError, match=r"^indices_tuple must name each pair as positive or as negative, got some as"):
        ours.SupConLoss()(features(4), None, named)
    assert_parity(*both("NTXentLoss", lambda loss, x: loss(x, LABELS[:4], named)), features(4))
