"""The drop-in for PyTorch Metric Learning: against the library where it is installed, against dense formulas too."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close
from parity import Largest, assert_parity, defaults, library, relative_error, value_and_grads
from torch import Tensor, nn

from hyperkern.integrations import pytorch_metric_learning as ours

NAMES = ["NTXentLoss", "SupConLoss"]
TEMPERATURES = {"NTXentLoss": 0.07, "SupConLoss": 0.1}
CALL = {"embeddings": ..., "labels": None, "indices_tuple": None, "ref_emb": None, "ref_labels": None}

LABELS = {
    "two views": torch.arange(9).repeat(2),
    "classes": torch.tensor([0, 1, 0, 2, 2, 1, 0, 2, 2, 2, 7, 7]),
    "singletons": torch.tensor([3, 0, 3, 5, 0, 7, 3, 9]),
    "large classes": torch.arange(40) % 3,
    "names": torch.tensor([-5, 2**62, 0, -5, 2**62, 0, 1]),
    "int8": torch.tensor([1, 2, 1, -3, 2], dtype=torch.int8),
    "float": torch.tensor([0.5, -1.0, 0.5, 2.5, -1.0]),
    "nan": torch.tensor([0.0, 0.0, 1.0, math.nan, math.nan, math.nan]),
    "bool": torch.tensor([True, False, True, True, False]),
    "one of two": torch.tensor([1, 1, 0]),
}
# Labels of anchors and of other features.
PAIRS = {
    "classes": (torch.tensor([0, 1, 0, 2, 5]), torch.tensor([1, 1, 0, 0, 2, 7, 2, 0])),
    "one anchor": (torch.tensor([4]), torch.tensor([1, 4, 4])),
    "one positive, one negative": (torch.tensor([4]), torch.tensor([1, 4])),
    "no positive": (torch.tensor([4, 3]), torch.tensor([1, 2, 0])),
    "no negative": (torch.tensor([4, 4]), torch.tensor([4, 4, 4])),
    "an anchor without negatives": (torch.tensor([0, 1]), torch.tensor([0, 0, 0])),
    "int32 and int64": (torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([2, 0, 1, 0])),
}


def features(n: int, d: int = 6) -> Tensor:
    return 3 * torch.randn(n, d, dtype=torch.float64) + 1


def masks(labels: Tensor, y_labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positive and negative pairs; without ``y_labels`` a row is neither of itself."""
    if y_labels is None:
        same = labels[:, None] == labels
        return same & ~torch.eye(len(labels), dtype=torch.bool), ~same
    same = labels[:, None] == y_labels
    return same, ~same


def dense(name: str, temperature: float, labels: Tensor, y_labels: Tensor | None = None):
    """The formula, of features or of features and others."""
    positive, negative = masks(labels, y_labels)

    def nt_xent(logits: Tensor) -> Tensor:
        others = logits.masked_fill(~negative, -math.inf)
        terms = []
        for i, j in positive.nonzero().tolist():
            terms.append(torch.cat([logits[i, j, None], others[i]]).logsumexp(0) - logits[i, j])
        return torch.stack(terms).mean()

    def sup_con(logits: Tensor) -> Tensor:
        terms = []
        for i in positive.any(1).nonzero().flatten().tolist():
            total = logits[i][positive[i] | negative[i]].logsumexp(0)
            terms.append((total - logits[i][positive[i]]).mean())
        losses = torch.stack(terms)
        return losses[losses > 0].mean()

    def loss(x: Tensor, y: Tensor | None = None) -> Tensor:
        if not (positive.any() and negative.any()) or max(positive.sum(), negative.sum()) <= 1:
            return 0 * x.sum()
        logits = F.normalize(x, dim=1) @ F.normalize(x if y is None else y, dim=1).T / temperature
        return nt_xent(logits) if name == "NTXentLoss" else sup_con(logits)

    return loss


@pytest.fixture(scope="module")
def original():
    return library("pytorch_metric_learning.losses")


@pytest.fixture(params=["dense", "blocks"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of small batches the matrix of all pairs is made, unless there is no room for it."""
    if request.param == "blocks":
        monkeypatch.setattr(ours.sides, "DENSE", -1)
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_defaults(name: str) -> None:
    constructor = defaults(getattr(ours, name).__init__)
    assert constructor == {"temperature": TEMPERATURES[name], "kwargs": ...}
    assert defaults(getattr(ours, name).forward) == CALL
    assert getattr(ours, name)().temperature == TEMPERATURES[name]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_of_the_library(original, name: str) -> None:
    assert defaults(getattr(original, name).__init__) == defaults(getattr(ours, name).__init__)
    assert defaults(getattr(original, name).forward) == CALL


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("name", NAMES)
class TestValues:
    """Values and gradients, with the labels of the features and against other features."""

    @pytest.mark.parametrize("labels", LABELS)
    def test_dense_formula(self, name: str, labels: str, temperature: float) -> None:
        of_rows = LABELS[labels]
        loss = getattr(ours, name)(temperature)
        truth = dense(name, temperature, of_rows)
        assert_parity(lambda x: loss(x, of_rows), truth, features(len(of_rows)), largest_logit=1 / temperature)

    @pytest.mark.parametrize("labels", PAIRS)
    def test_dense_formula_against_other_features(self, name: str, labels: str, temperature: float) -> None:
        of_rows, of_others = PAIRS[labels]
        loss = getattr(ours, name)(temperature)
        truth = dense(name, temperature, of_rows, of_others)
        pair = features(len(of_rows)), features(len(of_others))
        assert_parity(
            lambda x, y: loss(x, of_rows, ref_emb=y, ref_labels=of_others), truth, *pair, largest_logit=1 / temperature
        )

    @pytest.mark.parametrize("labels", LABELS)
    def test_parity(self, original, name: str, labels: str, temperature: float) -> None:
        of_rows = LABELS[labels]
        losses = (lambda x, m=m: getattr(m, name)(temperature)(x, of_rows) for m in (ours, original))
        assert_parity(*losses, features(len(of_rows)), largest_logit=1 / temperature)

    @pytest.mark.parametrize("labels", PAIRS)
    def test_parity_against_other_features(self, original, name: str, labels: str, temperature: float) -> None:
        of_rows, of_others = PAIRS[labels]
        losses = (
            lambda x, y, m=m: getattr(m, name)(temperature)(x, of_rows, None, y, of_others) for m in (ours, original)
        )
        pair = features(len(of_rows)), features(len(of_others))
        assert_parity(*losses, *pair, largest_logit=1 / temperature)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "dim", "classes"), [(64, 130, 8), (120, 16, 40), (97, 32, 5)])
def test_parity_of_shapes(original, name: str, rows: int, dim: int, classes: int) -> None:
    labels = torch.randint(classes, (rows,))
    losses = (lambda x, m=m: getattr(m, name)()(x, labels) for m in (ours, original))
    assert_parity(*losses, features(rows, dim), largest_logit=1 / TEMPERATURES[name])


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("name", NAMES)
class TestTheSameLabels:
    """Labels that both sides share as one tensor: the original then takes row i of the others for row i itself."""

    LABELS = torch.tensor([0, 1, 0, 2, 1, 5])

    def test_dense_formula(self, name: str) -> None:
        for loss in (
            lambda x, y: getattr(ours, name)()(x, self.LABELS, ref_emb=y, ref_labels=self.LABELS),
            lambda x, y: getattr(ours, name)()(x, self.LABELS, ref_emb=y),
        ):
            assert_parity(
                loss, dense(name, TEMPERATURES[name], self.LABELS), features(6), features(6), largest_logit=15
            )

    def test_parity(self, original, name: str) -> None:
        for ref_labels in (self.LABELS, self.LABELS.clone(), None):
            losses = (
                lambda x, y, m=m, labels=ref_labels: getattr(m, name)()(x, self.LABELS, None, y, labels)
                for m in (ours, original)
            )
            assert_parity(*losses, features(6), features(6), largest_logit=15)

    def test_labels_of_others_that_are_not_there_do_not_count(self, original, name: str) -> None:
        x = features(6)
        found = (getattr(m, name)()(x, self.LABELS, ref_labels=self.LABELS + 1) for m in (ours, original))
        assert_close(*found)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_wrapper_of_the_library_takes_it(original, name: str, symmetric: bool) -> None:
    x, y = features(7), features(7)
    wrapped = (original.SelfSupervisedLoss(getattr(m, name)(), symmetric=symmetric) for m in (ours, original))
    assert_parity(*wrapped, x, y, largest_logit=15)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [[0, 1, 2], [4, 4, 4], [3], []], ids=str)
def test_no_positive_or_no_negative_pair(name: str, labels: list[int]) -> None:
    x = features(len(labels)).float().requires_grad_()
    loss = getattr(ours, name)()(x, torch.tensor(labels))
    (grad,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert loss.dtype == torch.float32
    assert (grad == 0).all()


@pytest.mark.usefixtures("route")
def test_rows_without_a_loss_do_not_count() -> None:
    # One candidate, the positive: its row has the loss 0 and leaves the mean to the others.
    x, y = features(3), features(4)
    labels, others = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0, 2])
    value = ours.SupConLoss()(x, labels, ref_emb=y, ref_labels=others)
    unknown = torch.cat([x, features(2)]), torch.tensor([0, 1, 0, 8, 9])
    assert_close(ours.SupConLoss()(*unknown, ref_emb=y, ref_labels=others), value)


def test_the_bound_of_the_original(original) -> None:
    # Opposite positives at a small temperature: the original knows no loss above 87.
    x = F.normalize(features(2), dim=1)
    x = torch.cat([x, -x + 0.01 * features(2)]).float()
    labels = torch.tensor([0, 1, 0, 1])
    truth = dense("NTXentLoss", 0.01, labels)(x.double())
    assert relative_error(ours.NTXentLoss(0.01)(x, labels), truth) <= 1e-5
    assert original.NTXentLoss(0.01)(x, labels) < 0.9 * truth


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    labels = torch.arange(12) % 4
    x = features(12).to(dtype)
    value, grad = value_and_grads(lambda x: getattr(ours, name)(0.2)(x, labels), x)
    truth = dense(name, 0.2, labels)(x.double())
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert relative_error(value, truth) <= 1e-5


@pytest.mark.usefixtures("route")
def test_autocast_leaves_the_positives_alone() -> None:
    labels, x = torch.arange(12) % 4, features(12).float()
    for name in NAMES:
        expected = value_and_grads(lambda x, n=name: getattr(ours, n)(0.2)(x, labels), x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = value_and_grads(lambda x, n=name: getattr(ours, n)(0.2)(x, labels), x)
        for actual, truth in zip(found, expected, strict=True):
            assert actual.dtype == torch.float32
            assert relative_error(actual, truth) <= 2e-2


@pytest.mark.usefixtures("route")
def test_second_order() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1])
    for name in NAMES:
        loss = getattr(ours, name)(0.5)
        assert torch.autograd.gradgradcheck(lambda x, loss=loss: loss(x, labels), features(5, 3).requires_grad_())


def test_memory_of_positive_pairs() -> None:
    """No tensor is as large as a matrix of all pairs, and those of pairs are as large as the classes ask."""
    rows = 3000
    labels = torch.arange(rows // 2).repeat(2)
    x = torch.randn(rows, 4, requires_grad=True)

    with Largest() as largest:
        for name in NAMES:
            getattr(ours, name)()(x, labels).backward()
    # The blocks of the reference backend have 512 x 512 elements.
    assert largest.numel <= 512 * 512


class TestErrors:
    """What is refused, by name."""

    @pytest.mark.parametrize("option", ["distance", "reducer", "embedding_regularizer"])
    @pytest.mark.parametrize("name", NAMES)
    def test_options_of_the_original(self, original, name: str, option: str) -> None:
        assert getattr(original, name)(**{option: None}) is not None
        assert getattr(ours, name)(**{option: None}) is not None
        with pytest.raises(NotImplementedError, match=rf"^{option}=Identity\(\) is not supported"):
            getattr(ours, name)(**{option: nn.Identity()})

    @pytest.mark.parametrize("name", NAMES)
    def test_other_options(self, name: str) -> None:
        with pytest.raises(TypeError, match=f"{name} has no option 'margin'"):
            getattr(ours, name)(margin=1)
        with pytest.raises(ValueError, match="temperature must be a finite number > 0, got -1"):
            getattr(ours, name)(-1)
        loss = getattr(ours, name)()
        with pytest.raises(ValueError, match="temperature must be a finite number > 0, got 0"):
            loss.temperature = 0
        with pytest.raises(ValueError, match=r"temperature must be a number or .* one element, got .* of shape \(2,\)"):
            loss.temperature = torch.ones(2)

    @pytest.mark.parametrize("name", NAMES)
    def test_calls(self, name: str) -> None:
        loss, x, labels = getattr(ours, name)(), features(4), torch.tensor([0, 1, 0, 1])
        with pytest.raises(ValueError, match="labels must be given, or the pairs in indices_tuple"):
            loss(x)
        with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list"):
            loss(x, [0, 1, 0, 1])
        with pytest.raises(ValueError, match=r"labels must have shape \(4,\), one label for each row of embeddings"):
            loss(x, labels[:3])
        with pytest.raises(ValueError, match=r"embeddings must have shape \(N, D\)"):
            loss(x[None], labels)
        with pytest.raises(ValueError, match=r"^labels must have shape \(3,\), one label for each row of ref_emb"):
            loss(x, labels, ref_emb=x[:3])
        with pytest.raises(ValueError, match=r"ref_labels must have shape \(3,\)"):
            loss(x, labels, ref_emb=x[:3], ref_labels=labels)
        with pytest.raises(ValueError, match=r"ref_emb must have shape .* to go with embeddings"):
            loss(x, labels, ref_emb=x[:, :3], ref_labels=labels)
