"""The losses of Tevatron's retrievers, against models and losses that compute all scores as it does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from across_ranks import DIM, assert_same, own_features
from parity import assert_parity, defaults
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hyperkern.integrations import tevatron

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


@dataclass
class Output:
    q_reps: Tensor | None = None
    p_reps: Tensor | None = None
    loss: Tensor | None = None
    scores: Tensor | None = None


def everywhere(own: Tensor) -> Tensor:
    """The rows of all processes; those of the others are constants."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


class Retriever(nn.Module):
    """A model with the interface of ``EncoderModel`` and what its forward pass computes."""

    def __init__(self, temperature: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(dropout), nn.Tanh()).double()
        self.temperature, self.cross_entropy = temperature, nn.CrossEntropyLoss()
        self.is_ddp = dist.is_initialized()
        self.world_size = dist.get_world_size() if self.is_ddp else 1

    def encode_query(self, query: dict[str, Tensor]) -> Tensor:
        return self.encoder(query["x"])

    def encode_passage(self, passage: dict[str, Tensor]) -> Tensor:
        return 2 * self.encode_query(passage)

    def forward(self, query: Any = None, passage: Any = None) -> Output:
        q = self.encode_query(query) if query else None
        p = self.encode_passage(passage) if passage else None
        if q is None or p is None:
            return Output(q, p)
        if not self.training:
            return Output(q, p, None, self.compute_similarity(q, p))
        if self.is_ddp:
            q, p = self._dist_gather_tensor(q), self._dist_gather_tensor(p)
        scores = self.compute_similarity(q, p)
        loss = self.compute_loss(scores / self.temperature, torch.arange(len(q)) * (len(p) // len(q)))
        return Output(q, p, loss * self.world_size, scores)

    def compute_similarity(self, q: Tensor, p: Tensor) -> Tensor:
        return q @ p.T

    def compute_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        return self.cross_entropy(scores, target)

    def _dist_gather_tensor(self, t: Tensor) -> Tensor:
        return everywhere(t)


class Dense(Retriever):
    """What stands between a model and ``EncoderModel``."""


class Fused(tevatron.InBatchLossMixin, Dense):
    pass


def batch(rank: int, passages: int, rows: int = 5) -> dict[str, dict[str, Tensor]]:
    query, *others = own_features(rank, 1 + passages, rows)
    return {"query": {"x": query}, "passage": {"x": torch.stack(others, 1).flatten(end_dim=1)}}


def results(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Loss, representations, and gradients of the parameters."""
    model.zero_grad()
    torch.manual_seed(3)
    output = model(**inputs)
    output.loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    return [output.loss.detach(), output.q_reps.detach(), output.p_reps.detach(), *grads]


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("passages", [1, 4])
def test_model(passages: int, temperature: float) -> None:
    inputs = batch(0, passages)
    # Dropout: both are encoded in the order of the original.
    found, expected = (results(kind(temperature, dropout=0.3), inputs) for kind in (Fused, Dense))
    assert_same(found, expected)
    assert Fused()(**inputs).scores is None


def test_model_out_of_training() -> None:
    inputs, model = batch(0, 2), Fused()
    for given in ({"query": inputs["query"]}, {"passage": inputs["passage"]}):
        for training in (True, False):
            output = model.train(training)(**given)
            assert (output.q_reps is None) == ("query" not in given)
            assert (output.p_reps is None) == ("passage" not in given)
            assert output.loss is None
    output = model.eval()(**inputs)
    assert output.loss is None
    assert output.scores.shape == (5, 10)


def under_ddp(rank: int, passages: int) -> None:
    inputs = batch(rank, passages)
    found, expected = (results(DistributedDataParallel(kind(0.5)), inputs) for kind in (Fused, Dense))
    assert_same(found, expected)
    one = Dense(0.5)
    one.is_ddp, one.world_size = False, 1
    parts = [batch(r, passages) for r in range(dist.get_world_size())]
    joined = {side: {"x": torch.cat([part[side]["x"] for part in parts])} for side in inputs}
    loss, *_, grad = results(one, joined)
    # What DDP leaves is the gradient of the whole batch.
    assert_same([found[0] / dist.get_world_size(), found[-1]], [loss, grad])


@pytest.mark.parametrize("passages", [1, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_model_under_ddp(ranks: Ranks, size: int, passages: int) -> None:
    ranks(size).run(under_ddp, passages)


def on_its_own(rank: int) -> None:
    """A process that is told not to gather does not."""
    inputs = batch(rank, 2)
    both = []
    for kind in (Fused, Dense):
        model = kind()
        model.is_ddp, model.world_size = False, 1
        both.append(results(model, inputs))
    assert_same(*both)


def test_a_model_that_does_not_gather(ranks: Ranks) -> None:
    ranks(2).run(on_its_own)


@pytest.mark.parametrize("name", ["compute_similarity", "compute_loss", "_dist_gather_tensor"])
def test_models_whose_scores_or_loss_are_their_own(name: str) -> None:
    message = f"^Mine overrides {name}, which this replacement never calls"
    with pytest.raises(NotImplementedError, match=message):
        type("Mine", (tevatron.InBatchLossMixin, Dense), {name: lambda self, *args: None})
    between = type("Mine", (Dense,), {name: lambda self, *args: None})
    with pytest.raises(NotImplementedError, match=message):
        type("Other", (tevatron.InBatchLossMixin, between), {})


def test_a_model_whose_forward_is_its_own() -> None:
    between = type("Mine", (Dense,), {"forward": lambda self: None})
    with pytest.raises(NotImplementedError, match=r"^Mine overrides forward"):
        type("Other", (tevatron.InBatchLossMixin, between), {})
    # In front of the replacement it is the caller's business.
    assert type("Other", (tevatron.InBatchLossMixin, Dense), {"forward": lambda self: None}) is not None


def test_a_model_in_front_of_the_replacement() -> None:
    with pytest.raises(TypeError, match=r"^Other: InBatchLossMixin must stand before Retriever$"):
        type("Other", (Dense, tevatron.InBatchLossMixin), {})


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.ones(10)),
        nn.Identity(),
    ],
    ids=str,
)
def test_another_cross_entropy(loss: nn.Module) -> None:
    model = Fused()
    model.cross_entropy = loss
    with pytest.raises(NotImplementedError, match=r"^cross_entropy="):
        model(**batch(0, 2))


def test_passages_that_are_too_many() -> None:
    inputs = batch(0, 2)
    inputs["passage"]["x"] = inputs["passage"]["x"][:-1]
    with pytest.raises(ValueError, match=r"^y must have as many rows for each of the 5 rows of x, got 9"):
        Fused()(**inputs)


def test_half_precision() -> None:
    inputs = {side: {"x": value["x"].bfloat16()} for side, value in batch(0, 2).items()}
    model = Fused(0.5).bfloat16()
    output = model(**inputs)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())
    truth = Dense(0.5)(**batch(0, 2)).loss
    torch.testing.assert_close(output.loss.double(), truth, rtol=0.05, atol=0)


# --- the losses of the trainer with a gradient cache


def dense_loss(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(x @ y.T, torch.arange(len(x)) * (len(y) // len(x)), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("n", "passages"), [(1, 1), (1, 3), (6, 1), (6, 4)])
def test_loss(n: int, passages: int, reduction: str) -> None:
    x, y = torch.randn(n, 5, dtype=torch.float64), torch.randn(n * passages, 5, dtype=torch.float64)
    loss = tevatron.SimpleContrastiveLoss()
    assert_parity(lambda x, y: loss(x, y, reduction=reduction), lambda x, y: dense_loss(x, y, reduction), x, y)


def test_loss_with_a_target() -> None:
    x, y, target = torch.randn(3, 5).double(), torch.randn(7, 5).double(), torch.tensor([6, 0, 6])
    assert_parity(
        lambda x, y: tevatron.SimpleContrastiveLoss()(x, y, target), lambda x, y: F.cross_entropy(x @ y.T, target), x, y
    )


def distributed_loss(rank: int, scale_loss: bool, reduction: str) -> None:
    inputs = batch(rank, 3)
    sides = [inputs[side]["x"] for side in ("query", "passage")]
    factor = dist.get_world_size() if scale_loss else 1

    def original(x: Tensor, y: Tensor) -> Tensor:
        return factor * dense_loss(everywhere(x), everywhere(y), reduction)

    loss = tevatron.DistributedContrastiveLoss(scale_loss=scale_loss)
    found, expected = (
        value_and_gradients(function, sides) for function in (lambda x, y: loss(x, y, reduction=reduction), original)
    )
    assert_same(found, expected)


def value_and_gradients(loss: Callable[..., Tensor], sides: list[Tensor]) -> list[Tensor]:
    leaves = [side.clone().requires_grad_() for side in sides]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale_loss", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_distributed_loss_of_the_trainer(ranks: Ranks, size: int, scale_loss: bool, reduction: str) -> None:
    ranks(size).run(distributed_loss, scale_loss, reduction)


def test_signatures() -> None:
    assert defaults(tevatron.DistributedContrastiveLoss.__init__) == {"n_target": 0, "scale_loss": True}
    assert defaults(tevatron.SimpleContrastiveLoss.__call__) == {
        "x": ...,
        "y": ...,
        "target": None,
        "reduction": "mean",
    }
    with pytest.raises(ValueError, match="init_process_group"):
        tevatron.DistributedContrastiveLoss()
