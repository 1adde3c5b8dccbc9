"""The queue of features: a ring buffer against a list, its state, its errors, several ranks."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import Ranks
from torch import Tensor, nn

import hyperkern as hk

DIM = 3


def rows(count: int, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows that can be told apart."""
    return torch.arange(first * DIM, (first + count) * DIM, dtype=dtype).view(count, DIM)


def by_age(features: Tensor) -> list[list[float]]:
    return sorted(features.tolist())


def assert_same_state(queue: hk.FeatureQueue, other: hk.FeatureQueue) -> None:
    state, expected = queue.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name in state:
        assert torch.equal(state[name], expected[name]), name


def restored(state: dict[str, Tensor], *args: int, **options: object) -> hk.FeatureQueue:
    """A fresh queue with a state that went through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    queue = hk.FeatureQueue(*args, **options)
    queue.load_state_dict(torch.load(file, weights_only=True))
    return queue


@given(size=st.integers(1, 7), counts=st.lists(st.integers(0, 20), max_size=8))
def test_it_holds_the_newest_rows(size: int, counts: list[int]) -> None:
    queue, one_by_one = (hk.FeatureQueue(size, DIM, with_ids=True) for _ in range(2))
    total = 0
    for count in counts:
        added, ids = rows(count, total), torch.arange(total, total + count)
        queue.enqueue(added, ids)
        for row in range(count):
            one_by_one.enqueue(added[row : row + 1], ids[row : row + 1])
        total += count
        newest = min(size, total)
        assert len(queue) == newest
        assert queue.is_full == (newest == size)
        assert by_age(queue.features) == by_age(rows(newest, total - newest))
        assert torch.equal(queue.features[:, 0], DIM * queue.ids.float())  # each row beside its id
        assert_same_state(queue, one_by_one)


def test_features_are_no_copy_and_have_no_gradient() -> None:
    queue = hk.FeatureQueue(4, DIM)
    added = rows(3).requires_grad_()
    queue.enqueue(added * 2)
    assert not queue.features.requires_grad
    assert queue.features.data_ptr() == queue.buffer.data_ptr()
    assert queue.ids is None
    assert queue.features.shape == (3, DIM)


def test_what_is_enqueued_is_a_copy() -> None:
    queue, added = hk.FeatureQueue(4, DIM), rows(2)
    queue.enqueue(added)
    added.zero_()
    assert torch.equal(queue.features, rows(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_queue", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_converted(of_queue: torch.dtype, dtype: torch.dtype) -> None:
    queue = hk.FeatureQueue(4, DIM, dtype=of_queue)
    queue.enqueue(rows(2, dtype=dtype))
    assert queue.features.dtype == of_queue
    assert torch.equal(queue.features, rows(2, dtype=of_queue))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_ids_are_int64(dtype: torch.dtype) -> None:
    queue = hk.FeatureQueue(4, DIM, with_ids=True)
    queue.enqueue(rows(2), torch.tensor([7, 9], dtype=dtype))
    assert queue.ids.tolist() == [7, 9]
    assert queue.ids.dtype == torch.int64


def test_clear() -> None:
    queue = hk.FeatureQueue(4, DIM, with_ids=True)
    queue.enqueue(rows(3), torch.arange(3))
    queue.clear()
    assert (len(queue), queue.is_full, queue.features.shape, queue.ids.shape) == (0, False, (0, DIM), (0,))
    queue.enqueue(rows(1, 5), torch.tensor([5]))
    assert queue.features.tolist() == rows(1, 5).tolist()


def test_it_moves_with_its_module() -> None:
    module = nn.Sequential(hk.FeatureQueue(4, DIM, with_ids=True))
    module[0].enqueue(rows(5), torch.arange(5))
    module.half()
    assert module[0].features.dtype == torch.float16
    assert module[0].ids.dtype == torch.int64
    module[0].enqueue(rows(1, 5), torch.tensor([5]))
    assert by_age(module[0].features) == by_age(rows(4, 2))
    assert not list(module.parameters())
    module.to("meta")
    assert module[0].features.shape == (4, DIM)


def test_repr() -> None:
    queue = hk.FeatureQueue(4, DIM, dtype=torch.float16, with_ids=True)
    queue.enqueue(rows(3), torch.arange(3))
    assert repr(queue) == "FeatureQueue(size=4, dim=3, dtype=torch.float16, with_ids=True; 3 rows)"


# State


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("count", [0, 3, 5, 13])
def test_saved_restored_and_continued(count: int, with_ids: bool) -> None:
    queue = hk.FeatureQueue(5, DIM, with_ids=with_ids)
    ids = torch.arange(20) if with_ids else None
    queue.enqueue(torch.randn(count, DIM), ids[:count] if with_ids else None)
    copies = [
        restored(queue.state_dict(), 5, DIM, with_ids=with_ids),
        copy.deepcopy(queue),
        pickle.loads(pickle.dumps(queue)),
    ]
    more = torch.randn(4, DIM)
    queue.enqueue(more, ids[:4] if with_ids else None)
    for other in copies:
        assert len(other) == min(count, 5)
        other.enqueue(more, ids[:4] if with_ids else None)
        assert_same_state(other, queue)


def test_a_copy_is_apart() -> None:
    queue = hk.FeatureQueue(4, DIM)
    queue.enqueue(rows(2))
    other = copy.deepcopy(nn.ModuleList([queue, queue]))
    assert other[0] is other[1]
    other[0].enqueue(rows(1, 9))
    assert (len(queue), len(other[0])) == (2, 3)
    assert torch.equal(queue.buffer[2], torch.zeros(DIM))


@pytest.mark.parametrize("shape", [(6, DIM), (2, DIM), (4, DIM + 1)])
def test_a_state_of_another_shape(shape: tuple[int, int]) -> None:
    queue, other = hk.FeatureQueue(4, DIM), hk.FeatureQueue(*shape)
    queue.enqueue(rows(3))
    other.enqueue(torch.randn(1, shape[1]))
    before = copy.deepcopy(queue)
    with pytest.raises(RuntimeError, match="size mismatch for buffer"):
        queue.load_state_dict(other.state_dict())
    assert_same_state(queue, before)


def test_a_state_with_ids_is_no_state_without() -> None:
    plain, with_ids = hk.FeatureQueue(4, DIM), hk.FeatureQueue(4, DIM, with_ids=True)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*id_buffer"):
        plain.load_state_dict(with_ids.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*id_buffer"):
        with_ids.load_state_dict(plain.state_dict())


# With the losses

X, Y = torch.randn(6, DIM), torch.randn(6, DIM)
LOSSES = {
    "info_nce": lambda x, y, queue: hk.info_nce(x, y, negatives=queue),
    "info_nce, normalize=False": lambda x, y, queue: hk.info_nce(x, y, negatives=queue, normalize=False),
    "info_nce, in_batch=False": lambda x, y, queue: hk.info_nce(x, y, negatives=queue, in_batch=False),
    "nt_xent": lambda x, y, queue: hk.nt_xent(x, y, negatives=queue),
    "nt_xent, normalize=False": lambda x, y, queue: hk.nt_xent(x, y, negatives=queue, normalize=False),
    "uniformity": lambda x, y, queue: hk.uniformity(x, queue),
    "uniformity, intra": lambda x, y, queue: hk.uniformity(x, queue, intra=True),
    "uniformity, t=100": lambda x, y, queue: hk.uniformity(x, queue, t=100.0),  # the running-maximum regime
    "uniformity, normalize=False": lambda x, y, queue: hk.uniformity(x, queue, normalize=False),
    "uniformity, max_norm": lambda x, y, queue: hk.uniformity(x, queue, normalize=False, max_norm=5.0),
}


@pytest.mark.parametrize("normalize", [True, False])
def test_enqueue_between_a_compiled_loss_and_its_backward(normalize: bool) -> None:
    torch.compiler.reset()
    loss = torch.compile(lambda x, queue: hk.uniformity(x, queue, normalize=normalize), backend="aot_eager")
    grads = []
    for enqueue_first in (True, False):
        queue = hk.FeatureQueue(8, DIM)
        queue.enqueue(Y)
        x = X.clone().requires_grad_()
        value = loss(x, queue.features)
        if enqueue_first:
            queue.enqueue(torch.full((8, DIM), torch.nan))
        grads.append(torch.autograd.grad(value, x)[0])
    assert torch.equal(*grads)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_enqueue_between_loss_and_backward(name: str, dtype: torch.dtype) -> None:
    def gradients(*, enqueue_first: bool) -> tuple[Tensor, Tensor]:
        queue = hk.FeatureQueue(8, DIM, dtype=dtype)
        queue.enqueue(Y.flip(0) / 3)
        x = X.to(dtype, copy=True).requires_grad_()
        loss = LOSSES[name](x, Y.to(dtype), queue.features)
        if enqueue_first:
            queue.enqueue(torch.full((8, DIM), torch.nan))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), x)[0]

    for found, expected in zip(gradients(enqueue_first=True), gradients(enqueue_first=False), strict=True):
        assert torch.equal(found, expected)


def test_enqueue_of_ids_between_loss_and_backward() -> None:
    grads = []
    for enqueue_first in (True, False):
        queue = hk.FeatureQueue(8, DIM, with_ids=True)
        queue.enqueue(Y, torch.arange(6) // 2)
        x = X.clone().requires_grad_()
        loss = hk.info_nce(x, Y, negatives=queue.features, ids=torch.arange(6), negative_ids=queue.ids)
        if enqueue_first:
            queue.enqueue(torch.full((8, DIM), torch.nan), torch.arange(8))
        grads.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("held", [3, 5, 8])
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_its_own_rows(held: int, first: int, count: int) -> None:
    queues = [hk.FeatureQueue(5, DIM, with_ids=True) for _ in range(2)]
    for index in range(held):
        for queue in queues:
            queue.enqueue(rows(1, index), torch.tensor([index]))
    part = slice(first, first + count)
    queues[0].enqueue(queues[0].features[part], queues[0].id_buffer[: len(queues[0])][part])
    queues[1].enqueue(queues[1].features[part].clone(), queues[1].ids[part])
    assert_same_state(*queues)


def test_an_expression_of_ones_own_is_told() -> None:
    queue = hk.FeatureQueue(8, DIM)
    queue.enqueue(Y)
    loss = (X.clone().requires_grad_() @ queue.features.T).logsumexp(1).mean()
    queue.enqueue(Y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_empty_queue() -> None:
    queue = hk.FeatureQueue(8, DIM, with_ids=True)
    x = X.clone().requires_grad_()
    assert torch.equal(hk.info_nce(x, Y, negatives=queue.features), hk.info_nce(x, Y))
    ids = torch.arange(6)
    with_ids = hk.info_nce(x, Y, negatives=queue.features, ids=ids, negative_ids=queue.ids)
    assert torch.equal(with_ids, hk.info_nce(x, Y, ids=ids))
    assert torch.equal(hk.nt_xent(x, Y, negatives=queue.features), hk.nt_xent(x, Y))
    loss = hk.info_nce(x, Y, negatives=queue.features, in_batch=False)
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    with pytest.raises(ValueError, match=r"y must not be empty, got shape \(0, 3\)"):
        hk.uniformity(x, queue.features)
    assert torch.equal(hk.uniformity(x, queue.features if len(queue) else None), hk.uniformity(x))


def test_ids_leave_false_negatives_out() -> None:
    queue = hk.FeatureQueue(6, DIM, with_ids=True)
    queue.enqueue(Y.flip(0), torch.arange(6).flip(0))
    options = {"ids": torch.arange(6), "in_batch": False}
    found = hk.info_nce(X, Y, negatives=queue.features, negative_ids=queue.ids, **options)
    others = hk.info_nce(X, Y, ids=torch.arange(6))  # the same candidates: every key but that of its own id
    torch.testing.assert_close(found, others)


# Errors


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((0, 3), {}, ValueError, "^size must be > 0, got 0"),
        ((-2, 3), {}, ValueError, "^size must be > 0, got -2"),
        ((4, 0), {}, ValueError, "^dim must be > 0, got 0"),
        ((4.0, 3), {}, TypeError, "^size must be an integer, got 4.0"),
        ((True, 3), {}, TypeError, "^size must be an integer, got True"),
        ((4, "3"), {}, TypeError, "^dim must be an integer, got '3'"),
        ((4, 3), {"dtype": torch.int64}, TypeError, "^dtype must be float64.* got torch.int64"),
        ((4, 3), {"dtype": torch.float8_e4m3fn}, TypeError, "^dtype must be .* got torch.float8_e4m3fn"),
    ],
)
def test_wrong_options(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hk.FeatureQueue(*args, **options)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([[1.0, 2.0, 3.0]], TypeError, r"^features must be a torch.Tensor of shape \(N, 3\), got list"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "^features must be float64.* got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "^features must be float64.* got torch.complex64"),
        (torch.ones(2, 4), ValueError, r"^features must have shape \(N, 3\), got \(2, 4\)"),
        (torch.ones(3), ValueError, r"^features must have shape \(N, 3\), got \(3,\)"),
        (torch.ones(1, 2, 3), ValueError, r"^features must have shape \(N, 3\), got \(1, 2, 3\)"),
        (torch.ones(2, 3, device="meta"), ValueError, "^features must be on the device of the queue, cpu, got meta"),
    ],
)
def test_wrong_features(features: Tensor, error: type[Exception], message: str) -> None:
    queue = hk.FeatureQueue(4, DIM)
    with pytest.raises(error, match=message):
        queue.enqueue(features)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("with_ids", "ids", "error", "message"),
    [
        (True, None, ValueError, "^ids must be given .* got with_ids=True and ids=None"),
        (False, torch.arange(2), ValueError, "^ids must be given .* got with_ids=False and ids=a tensor"),
        (True, torch.arange(3), ValueError, r"^ids must have shape \(2,\), one entry for each row .* got \(3,\)"),
        (True, torch.arange(2)[None], ValueError, r"^ids must have shape \(2,\).* got \(1, 2\)"),
        (True, torch.ones(2), TypeError, "^ids must have an integer dtype, got torch.float32"),
        (True, torch.ones(2) > 0, TypeError, "^ids must have an integer dtype, got torch.bool"),
        (True, [1, 2], TypeError, "^ids must be a torch.Tensor, got list"),
        (True, torch.arange(2, device="meta"), ValueError, "^ids must be on the device of features, cpu, got meta"),
    ],
)
def test_wrong_ids(with_ids: bool, ids: Tensor | None, error: type[Exception], message: str) -> None:
    queue = hk.FeatureQueue(4, DIM, with_ids=with_ids)
    with pytest.raises(error, match=message):
        queue.enqueue(rows(2), ids)
    assert len(queue) == 0


# Compiled


def test_compiled_steps() -> None:
    def step(queue: hk.FeatureQueue, x: Tensor) -> Tensor:
        loss = hk.info_nce(2 * x, Y, negatives=queue.features)
        queue.enqueue(x)
        return loss + 1

    eager, compiled = hk.FeatureQueue(8, DIM), hk.FeatureQueue(8, DIM)
    run = torch.compile(step, backend="aot_eager")
    for _ in range(5):
        x = torch.randn(6, DIM)
        torch.testing.assert_close(run(compiled, x), step(eager, x))
        assert_same_state(compiled, eager)
    torch.compiler.reset()


def test_a_compiled_loss_takes_a_queue_that_grows() -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list) -> object:
        graphs.append(graph)
        return graph.forward

    loss = torch.compile(lambda x, queue: hk.info_nce(x, Y, negatives=queue), backend=count, fullgraph=True)
    queue = hk.FeatureQueue(40, DIM)
    for _ in range(8):
        queue.enqueue(torch.randn(5, DIM))
        torch.testing.assert_close(loss(X, queue.features), hk.info_nce(X, Y, negatives=queue.features))
    assert len(graphs) == 2  # the first length, and any length
    torch.compiler.reset()


# Ranks

# The rows of each rank in each step: uneven, none, and more than the queue holds.
STEPS = [(2, 3), (0, 1), (4, 0), (0, 0), (7, 9), (1, 1)]


def enqueue_on_a_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    """The state of a queue of all processes, of one of a group, of one in bfloat16."""
    states = {}
    group = dist.new_group([0, 1])
    for name, options in {"all": {}, "group": {"group": group}, "bfloat16": {"dtype": torch.bfloat16}}.items():
        queue = hk.FeatureQueue(6, DIM, with_ids=True, gather=True, **options)
        if name == "group":
            queue = copy.deepcopy(queue)
            assert queue.group is group
        first = 0
        for counts in STEPS:
            own = first + sum(counts[:rank])
            # float64 on one rank: what goes over the wire has the dtype of the queue on all.
            added = rows(counts[rank], own, torch.float64 if rank else torch.float32)
            queue.enqueue(added, torch.arange(own, own + counts[rank]))
            first += sum(counts)
        states[name] = queue.state_dict()
    alone = hk.FeatureQueue(6, DIM)
    alone.enqueue(rows(1 + rank))
    assert len(alone) == 1 + rank
    return states


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")
def test_gather_of_two_ranks(ranks: Ranks) -> None:
    of_ranks = ranks(2).run(enqueue_on_a_rank)
    for name, dtype in (("all", torch.float32), ("group", torch.float32), ("bfloat16", torch.bfloat16)):
        expected = hk.FeatureQueue(6, DIM, dtype=dtype, with_ids=True)
        first = 0
        for counts in STEPS:
            expected.enqueue(rows(sum(counts), first), torch.arange(first, first + sum(counts)))
            first += sum(counts)
        for states in of_ranks:
            queue = hk.FeatureQueue(6, DIM, dtype=dtype, with_ids=True)
            queue.load_state_dict(states[name])
            assert_same_state(queue, expected)


def test_gather_without_ranks_is_nothing() -> None:
    queue, plain = hk.FeatureQueue(6, DIM, gather=True), hk.FeatureQueue(6, DIM)
    queue.enqueue(rows(4))
    plain.enqueue(rows(4))
    assert_same_state(queue, plain)
    assert "gather=True" in repr(queue)
