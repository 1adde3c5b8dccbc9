"""`CrossBatchMemory`: the library's around the drop-in losses and the drop-in, in one process and in several."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from oracle import assert_close
from parity import Largest, defaults, library, value_and_grads
from ranks import Ranks
from torch import Tensor, nn

import hyperkern as hk
from hyperkern.integrations import pytorch_metric_learning as ours

NAMES = ["NTXentLoss", "SupConLoss"]
DIM, SIZE, STEPS = 5, 23, 6


@pytest.fixture(scope="module")
def original():
    return library("pytorch_metric_learning.losses")


def memory(losses: Any, of: Any, name: str, miner: str | None = None, **options: Any) -> nn.Module:
    """A memory of one module around a loss of another."""
    made = None if miner is None else getattr(library("pytorch_metric_learning.miners"), miner)()
    return of.CrossBatchMemory(getattr(losses, name)(0.2), DIM, memory_size=SIZE, miner=made, **options)


def batch(step: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(rows, DIM, generator=draw, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=draw)


def named(labels: Tensor, step: int, size: int) -> tuple[Tensor, ...]:
    """Triplets with rows of the batch that is in the memory now, as `shift_indices_tuple` makes them."""
    start = step * size
    triplets = library("pytorch_metric_learning.utils.loss_and_miner_utils").get_all_triplets_indices(labels)
    anchors, *others = (t[::5] for t in triplets)
    return anchors, *((start + t) % SIZE for t in others)


def assert_same_steps(pair: list[nn.Module], what: str) -> None:
    for step in range(STEPS):
        x, labels = batch(step)
        kwargs: dict[str, Any] = {}
        if what == "mask":
            kwargs["enqueue_mask"] = torch.arange(8) % 3 == step % 3
        if what == "tuple":
            kwargs["indices_tuple"] = named(labels, step, 8)
        found = [value_and_grads(functools.partial(m, labels=labels, **kwargs), x) for m in pair]
        for mine, theirs in zip(*found, strict=True):
            assert_close(mine, theirs)
        for attribute in ("embedding_memory", "label_memory", "curr_batch_idx"):
            assert torch.equal(*(getattr(m, attribute) for m in pair))
        for attribute in ("queue_idx", "has_been_filled"):
            first, second = (getattr(m, attribute) for m in pair)
            assert first == second
    assert pair[0].has_been_filled or what == "mask"


CASES = [
    ("NTXentLoss", "", None),
    ("NTXentLoss", "mask", None),
    ("NTXentLoss", "tuple", None),
    ("NTXentLoss", "", "MultiSimilarityMiner"),
    ("NTXentLoss", "tuple", "MultiSimilarityMiner"),
    ("NTXentLoss", "tuple", "TripletMarginMiner"),
    ("NTXentLoss", "mask", "TripletMarginMiner"),
    ("SupConLoss", "", None),
    ("SupConLoss", "mask", None),
    ("SupConLoss", "tuple", None),
    ("SupConLoss", "tuple", "TripletMarginMiner"),
]


@pytest.mark.parametrize(("name", "what", "miner"), CASES)
class TestSteps:
    """Steps over the end of the ring."""

    def test_the_wrapper_of_the_library(self, original, name: str, what: str, miner: str | None) -> None:
        assert_same_steps([memory(m, original, name, miner) for m in (ours, original)], what)

    @pytest.mark.parametrize("route", ["dense", "blocks"])
    def test_the_drop_in(
        self, original, monkeypatch: pytest.MonkeyPatch, name: str, what: str, miner: str | None, route: str
    ) -> None:
        if route == "blocks":
            monkeypatch.setattr(ours.sides, "DENSE", -1)
        assert_same_steps([memory(m, m, name, miner) for m in (ours, original)], what)


def test_pairs_and_triplets_together(original) -> None:
    """What a miner and the caller name of different kinds becomes what the miner names."""
    x, labels = batch(0)
    pairs = tuple(torch.tensor(t) for t in ([0, 0, 1], [2, 3, 4], [0, 1, 1], [4, 5, 6]))
    triplets = pairs[0], pairs[1], pairs[3]
    for miner, more in (("TripletMarginMiner", pairs), ("MultiSimilarityMiner", triplets)):
        pair = [memory(m, m, "NTXentLoss", miner) for m in (ours, original)]
        found = [value_and_grads(lambda x, m=m, more=more: m(x, labels, more), x) for m in pair]
        for mine, theirs in zip(*found, strict=True):
            assert_close(mine, theirs)


def test_the_surface_of_the_original(original) -> None:
    mine, theirs = (memory(m, m, "NTXentLoss") for m in (ours, original))
    assert defaults(type(mine).forward) == defaults(type(theirs).forward)
    expected = defaults(type(theirs).__init__)
    del expected["kwargs"]
    assert expected.items() <= defaults(type(mine).__init__).items()
    known = {*vars(theirs), *theirs._buffers, *theirs._modules}
    assert known <= {*vars(mine), *mine._buffers, *mine._modules}
    for m in (mine, theirs):
        m(*batch(0))
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    again = memory(ours, ours, "NTXentLoss")
    again.load_state_dict(theirs.state_dict())
    again.queue_idx, again.has_been_filled = theirs.queue_idx, theirs.has_been_filled
    x, labels = batch(1)
    assert again(x.float(), labels) == mine(x.float(), labels)
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert copied(x, labels) == copy.deepcopy(mine)(x, labels)
    mine.memory_size, mine.embedding_size = 9, 4
    mine.reset_queue()
    assert (mine.embedding_memory.shape, mine.queue_idx, mine.has_been_filled) == ((9, 4), 0, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_and_dtypes(original, dtype: torch.dtype) -> None:
    pair = [memory(m, m, "SupConLoss") for m in (ours, original)]
    for step, kind in enumerate((torch.int64, torch.float32, torch.int8, torch.bool)):
        x, labels = batch(step)
        value, truth = (m(x.to(dtype), labels.to(kind)) for m in pair)
        torch.testing.assert_close(value, truth.float(), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
        assert pair[0].label_memory.dtype == kind
        assert pair[0].embedding_memory.dtype == dtype


def test_two_steps_before_a_backward() -> None:
    wrapped = memory(ours, ours, "NTXentLoss")
    (x, labels), (y, others) = batch(0), batch(1)
    apart = []
    for both in (False, True):
        wrapped.reset_queue()
        first, second = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = wrapped(first, labels)
        if not both:
            loss.backward()
        more = wrapped(second, others)
        (loss + more if both else more).backward()
        apart.append((first.grad, second.grad))
    for one, other in zip(*apart, strict=True):
        assert_close(one, other)


def test_a_mask_without_rows_leaves_the_memory_alone() -> None:
    wrapped = memory(ours, ours, "NTXentLoss")
    x, labels = batch(0)
    value, grad = value_and_grads(lambda x: wrapped(x, labels, enqueue_mask=torch.zeros(8, dtype=torch.bool)), x)
    assert value == 0
    assert (grad == 0).all()
    assert not wrapped.has_been_filled
    assert wrapped(x[:0], labels[:0]) == 0


def test_no_pairs_are_named() -> None:
    """Without a miner no tensor has as many elements as there are pairs."""
    wrapped, largest = ours.CrossBatchMemory(ours.NTXentLoss(), 2, memory_size=4000), Largest()
    for _ in range(2):
        wrapped(torch.randn(2000, 2), torch.randint(1000, (2000,)))

    for name in NAMES:
        wrapped.loss = getattr(ours, name)()
        with largest:
            wrapped(torch.randn(2000, 2, requires_grad=True), torch.randint(1000, (2000,))).backward()
    assert largest.numel <= 512 * 512


class TestErrors:
    """What is refused, by name."""

    def test_constructor(self) -> None:
        with pytest.raises(TypeError, match=r"^loss must be a NTXentLoss or a SupConLoss of this module, got Identity"):
            ours.CrossBatchMemory(nn.Identity(), DIM)
        with pytest.raises(ValueError, match=r"^memory_size must be at least 1, got 0"):
            ours.CrossBatchMemory(ours.NTXentLoss(), DIM, 0)
        with pytest.raises(TypeError, match=r"^embedding_size must be an integer, got float"):
            ours.CrossBatchMemory(ours.NTXentLoss(), 5.0)
        with pytest.raises(TypeError, match=r"^group must be a hyperkern.Group"):
            ours.CrossBatchMemory(ours.NTXentLoss(), DIM, group="all")

    def test_set_later(self, original) -> None:
        wrapped = memory(ours, ours, "NTXentLoss")
        with pytest.raises(TypeError, match=r"^loss must be .*, got TripletMarginLoss"):
            wrapped.loss = original.TripletMarginLoss()
        with pytest.raises(NotImplementedError, match="add_to_memory"):
            wrapped.add_to_memory = print
        with pytest.raises(TypeError, match="must extend BaseMetricLossFunction or CrossBatchMemory"):
            library("pytorch_metric_learning.utils.distributed").DistributedLossWrapper(wrapped)

    def test_calls(self) -> None:
        wrapped, (x, labels) = memory(ours, ours, "NTXentLoss"), batch(0)
        mask = torch.arange(8) > 3
        with pytest.raises(ValueError, match=r"^embeddings must have shape \(N, 5\), got \(8, 4\)"):
            wrapped(x[:, :4], labels)
        with pytest.raises(ValueError, match=r"^labels must have shape \(8,\)"):
            wrapped(x, labels[1:])
        with pytest.raises(ValueError, match=r"^indices_tuple and enqueue_mask exclude each other"):
            wrapped(x, labels, (labels,) * 3, mask)
        with pytest.raises(TypeError, match=r"^enqueue_mask must be a tensor of bool, got tensor"):
            wrapped(x, labels, enqueue_mask=labels)
        with pytest.raises(ValueError, match=r"^enqueue_mask must have shape \(8,\), got \(7,\)"):
            wrapped(x, labels, enqueue_mask=mask[1:])
        with pytest.raises(ValueError, match=r"^embeddings must be at most as many as the memory holds, 23, got 24"):
            wrapped(*batch(0, 24))
        with pytest.raises(IndexError, match=r"^indices_tuple must name columns from 0 to 7, got 0 to 8"):
            wrapped(x, labels, tuple(torch.tensor([t]) for t in (0, 8, 1)))
        assert wrapped.queue_idx == 8  # of the call that got so far


# --- Several processes

NEEDS_RANKS = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")
# Rows of each process at each step; all that have one class or none.
COUNTS = {"even": (4, 4), "uneven": (6, 1), "one without rows": (5, 0)}


def shared(rank: int, name: str, what: str, miner: str | None, counts: tuple[int, ...]) -> Tensor:
    """The value of one process with the whole batch, its gradients, and its memory."""
    wrapped = memory(ours, ours, name, miner, group=hk.Group(grad_scale="sum"))
    whole = memory(ours, ours, name, miner)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    for step in range(STEPS):
        x, labels = batch(step, sum(counts))
        labels = labels.sort().values if what == "sorted" else labels
        mask = torch.arange(len(x)) % 3 == step % 3 if what == "mask" else None
        of_own = None if mask is None else mask[own]
        expected = value_and_grads(functools.partial(whole, labels=labels, enqueue_mask=mask), x)
        found = value_and_grads(functools.partial(wrapped, labels=labels[own], enqueue_mask=of_own), x[own])
        assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1][own])
        assert torch.equal(wrapped.embedding_memory, whole.embedding_memory)
        assert torch.equal(wrapped.label_memory, whole.label_memory)
        assert (wrapped.queue_idx, wrapped.has_been_filled) == (whole.queue_idx, whole.has_been_filled)
    return wrapped.embedding_memory


@NEEDS_RANKS
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(
    ("what", "miner"), [("", None), ("sorted", None), ("mask", None), ("", "MultiSimilarityMiner")], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_one_memory_of_two_processes(ranks: Ranks, name: str, what: str, miner: str | None, counts: str) -> None:
    if miner is not None:
        library("pytorch_metric_learning.miners")
    first, second = ranks(2).run(shared, name, what, miner, COUNTS[counts])
    assert torch.equal(first, second)


def learned(rank: int) -> None:
    """A temperature has the gradient of the whole batch after DDP has averaged."""
    grads = []
    for group in (None, hk.Group()):
        loss = ours.NTXentLoss(nn.Parameter(torch.tensor(0.3, dtype=torch.float64)))
        wrapped = ours.CrossBatchMemory(loss, DIM, SIZE, group=group)
        x, labels = batch(0)
        own = slice(None) if group is None else slice(4 * rank, 4 * rank + 4)
        wrapped(x[own], labels[own]).backward()
        if group is not None:
            dist.all_reduce(loss.temperature.grad)
        grads.append(loss.temperature.grad / (1 if group is None else dist.get_world_size()))
    assert_close(*grads)


@NEEDS_RANKS
def test_a_learned_temperature(ranks: Ranks) -> None:
    ranks(2).run(learned)


def refused(rank: int) -> None:
    x, labels = batch(0, 4)
    group = hk.Group()
    with pytest.raises(ValueError, match=r"labels must have shape"):  # on the other too
        memory(ours, ours, "NTXentLoss", group=group)(x, labels[rank:])
    with pytest.raises(ValueError, match=r"at most as many as the memory holds, 23, got 24"):
        memory(ours, ours, "NTXentLoss", group=group)(*batch(0, 12))
    wrapped = memory(ours, ours, "NTXentLoss", group=group)
    wrapped.queue_idx = rank
    with pytest.raises(ValueError, match=r"the same loss with the same options.*at=0.*at=1"):
        wrapped(x, labels)
    wrapped = memory(ours, ours, "NTXentLoss", group=group)
    wrapped.loss.reducer = library("pytorch_metric_learning.reducers").SumReducer()
    with pytest.raises(NotImplementedError, match=r"^reducer=SumReducer\(\) .* not supported with a group"):
        wrapped(x, labels)


@NEEDS_RANKS
def test_what_processes_refuse(ranks: Ranks) -> None:
    library("pytorch_metric_learning.reducers")
    ranks(2).run(refused)
