"""The drop-in for DirectAU against its formulas, and in a model that computes its loss as the original's does."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, relative_error
from torch import Tensor, nn

from hyperkern.integrations import directau


def dense_alignment(x: Tensor, y: Tensor, alpha: float = 2) -> Tensor:
    return (x - y).pow(2).sum(1).sqrt().pow(alpha).mean()


def dense_uniformity(x: Tensor, t: float = 2) -> Tensor:
    i, j = torch.triu_indices(len(x), len(x), 1)
    return (-t * (x[i] - x[j]).pow(2).sum(1)).exp().mean().log()


def unit(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of the rows that the forward pass of the model normalises."""
    return lambda *sides: loss(*(F.normalize(side, dim=1) for side in sides))


def sides(n: int, d: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, n, d, dtype=torch.float64)
    return 3 * x, x + y


@pytest.mark.parametrize("already_unit", [False, True])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (9, 5), (40, 33)])
def test_functions(n: int, d: int, already_unit: bool) -> None:
    within = unit if already_unit else (lambda loss: loss)
    x, y = sides(n, d)
    assert_parity(within(directau.alignment), unit(dense_alignment), x, y)
    assert_parity(within(lambda x, y: directau.alignment(x, y, 3)), unit(lambda x, y: dense_alignment(x, y, 3)), x, y)
    assert_parity(within(directau.uniformity), unit(dense_uniformity), x)
    assert_parity(within(lambda x: directau.uniformity(x, 0.5)), unit(lambda x: dense_uniformity(x, 0.5)), x)
    assert_parity(
        within(lambda x, y: directau.directau_loss(x, y, 0.7)),
        unit(lambda x, y: dense_alignment(x, y) + 0.7 * (dense_uniformity(x) + dense_uniformity(y)) / 2),
        x,
        y,
    )


def test_signatures() -> None:
    assert defaults(directau.alignment) == {"x": ..., "y": ..., "alpha": 2}
    assert defaults(directau.uniformity) == {"x": ..., "t": 2}
    assert list(defaults(directau.overall_align))[:4] == ["user_index", "item_index", "user_emb", "item_emb"]
    assert list(defaults(directau.overall_uniform))[:2] == ["index_list", "embedding"]


class Model(nn.Module):
    """Matrix factorisation, with the loss of the original model by its own static methods."""

    gamma = 0.5
    alignment, uniformity = staticmethod(dense_alignment), staticmethod(dense_uniformity)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.user, self.item = (nn.Embedding(n, 5, dtype=torch.float64) for n in (4, 7))

    def calculate_loss(self, user: Tensor, item: Tensor) -> Tensor:
        user_e, item_e = F.normalize(self.user(user), dim=-1), F.normalize(self.item(item), dim=-1)
        align = self.alignment(user_e, item_e)
        return align + self.gamma * (self.uniformity(user_e) + self.uniformity(item_e)) / 2


class ByMethods(Model):
    alignment, uniformity = staticmethod(directau.alignment), staticmethod(directau.uniformity)


class AtOnce(Model):
    def calculate_loss(self, user: Tensor, item: Tensor) -> Tensor:
        return directau.directau_loss(self.user(user), self.item(item), self.gamma)


@pytest.mark.parametrize("kind", [ByMethods, AtOnce])
def test_a_model_whose_batch_repeats_users_and_items(kind: type[Model]) -> None:
    # More interactions than users: some rows are at distance 0, and all their copies add to one gradient.
    user, item = torch.randint(4, (20,)), torch.randint(7, (20,))
    found = []
    for model in (kind(), Model()):
        loss = model.calculate_loss(user, item)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for actual, expected in zip(*found, strict=True):
        assert relative_error(actual, expected) <= 1e-10


# --- the measures of a data set: over all pairs of interactions, by their users


def all_pairs(index: Tensor, embedding: Tensor, t: float) -> Tensor:
    """Interactions written out: the pairs whose users differ."""
    rows = embedding[index]
    i, j = torch.triu_indices(len(index), len(index), 1)
    differ = index[i] != index[j]
    return (-t * (rows[i] - rows[j]).pow(2).sum(1)).exp()[differ].mean().log()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("t", [0.3, 2])
def test_overall_uniform(t: float, normalize: bool) -> None:
    embedding = torch.randn(9, 4, dtype=torch.float64)
    index = torch.tensor([0, 8, 3, 3, 5, 0, 0, 0, 2, 8, 5, 5])  # some never, some often
    assert_parity(
        lambda rows: directau.overall_uniform(index, rows, t=t, normalize=normalize),
        lambda rows: all_pairs(index, F.normalize(rows, dim=1) if normalize else rows, t),
        embedding,
    )


def test_overall_uniform_of_many_interactions() -> None:
    # Weights far apart: one item is in nearly all interactions.
    index = torch.cat([torch.zeros(100_000, dtype=torch.long), torch.arange(6)])
    embedding = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    counts = torch.bincount(index).double()
    i, j = torch.triu_indices(6, 6, 1)
    weights = counts[i] * counts[j]
    potentials = (-2 * (embedding[i] - embedding[j]).pow(2).sum(1)).exp()
    expected = ((weights * potentials).sum() / weights.sum()).log()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        assert relative_error(directau.overall_uniform(index, embedding.to(dtype)), expected) <= tolerance


def test_overall_align() -> None:
    users, items = torch.randint(5, (30,)), torch.randint(8, (30,))
    for alpha in (2, 1):
        assert_parity(
            lambda x, y, alpha=alpha: directau.overall_align(users, items, x, y, alpha=alpha),
            lambda x, y, alpha=alpha: (
                unit(dense_alignment)(x[users], y[items])
                if alpha == 2
                else unit(lambda x, y: dense_alignment(x, y, 1))(x[users], y[items])
            ),
            torch.randn(5, 3, dtype=torch.float64),
            torch.randn(8, 3, dtype=torch.float64),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, y = (side.to(dtype).requires_grad_() for side in sides(9, 5))
    loss = directau.directau_loss(x, y)
    assert loss.dtype == torch.float32
    assert relative_error(loss.detach(), directau.directau_loss(x.detach().double(), y.detach().double())) <= 0.02
    assert all(grad.dtype == dtype for grad in torch.autograd.grad(loss, (x, y)))


X = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: directau.alignment(X, X[:2]), ValueError, r"^y must have the shape of x"),
        (lambda: directau.alignment(X[None], X[None]), ValueError, r"^x must have shape \(N, D\)"),
        (lambda: directau.alignment(X, X, 0), ValueError, "^alpha must be a finite number > 0"),
        (lambda: directau.uniformity(X[:1]), ValueError, "^x must have at least 2 rows"),
        (lambda: directau.uniformity(X[None]), ValueError, r"^x must have shape \(N, D\)"),
        (lambda: directau.uniformity(X, -1), ValueError, "^t must be a finite number > 0"),
        (lambda: directau.directau_loss(X, X, float("inf")), ValueError, "^gamma must be a finite number"),
        (lambda: directau.directau_loss(X, X[:2]), ValueError, "^item_e must have the shape of user_e"),
        (lambda: directau.directau_loss(X.long(), X), TypeError, "^user_e must be float64"),
        (lambda: directau.overall_uniform(torch.zeros(4).long(), X), ValueError, "at least 2 rows"),
        (
            lambda: directau.overall_align(torch.zeros(2).long(), torch.zeros(2).long(), nn.Embedding(3, 2), X),
            TypeError,
            "^user_emb must be",
        ),
        (lambda: directau.overall_align([0], torch.tensor([0]), X, X), TypeError, "^user_index must be a torch.Tensor"),
        (
            lambda: directau.overall_align(torch.tensor([0]), torch.ones(1), X, X),
            TypeError,
            "^item_index must have an integer dtype, got torch.float32",
        ),
        (lambda: directau.overall_align(torch.eye(2).long(), X[0].long(), X, X), ValueError, r"got \(2, 2\)"),
        (
            lambda: directau.overall_align(torch.tensor([0]), torch.tensor([0, 1]), X, X),
            ValueError,
            "^item_index must have an item for each of the 1 users of user_index, got 2",
        ),
        (
            lambda: directau.overall_uniform(torch.ones(3, dtype=torch.bool), X),
            TypeError,
            "^index_list must have an integer dtype, got torch.bool",
        ),
    ],
)
def test_errors(call: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_narrow_indices(dtype: torch.dtype) -> None:
    rows, index = torch.randn(5, 3), torch.tensor([4, 0, 1, 1])
    narrow = index.to(dtype)
    assert directau.overall_align(narrow, narrow.flip(0), rows, rows) == directau.overall_align(
        index, index.flip(0), rows, rows
    )
    assert directau.overall_uniform(narrow, rows) == directau.overall_uniform(index, rows)
