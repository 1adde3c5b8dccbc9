"""What a user may rely on: errors everywhere at once, traffic, training under DDP."""

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import case_of, tensors
from conftest import needs_triton
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern as hk
from hyperkern.catalog import TABLE, Loss, Use
from hyperkern.distributed.ranks import ALL_GATHER

DIM = 7
LABELS = torch.tensor([0, 1, 0, 2])

# Errors


def what_is_raised(rank: int, call: Callable[[int], Any]) -> str:
    try:
        call(rank)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"  # of a rank that waited in vain: that of the collective
    return "nothing"


def x_of(rank: int, rows: int = 4, dim: int = DIM) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(rank))


def negative_t_on_one(rank: int) -> None:
    hk.uniformity(x_of(rank), t=-1.0 if rank == 1 else 2.0, group=hk.Group())


def integers_on_one(rank: int) -> None:
    hk.clip_loss(x_of(rank).long() if rank == 2 else x_of(rank), x_of(rank), logit_scale=1.0, group=hk.Group())


def different_dims(rank: int) -> None:
    x = x_of(rank, dim=DIM + (rank == 1))
    hk.nt_xent(x, x, group=hk.Group())


def different_losses(rank: int) -> None:
    loss = hk.dcl if rank == 0 else hk.nt_xent
    loss(x_of(rank), x_of(rank), group=hk.Group())


def different_queues(rank: int) -> None:
    hk.info_nce(x_of(rank), x_of(rank), negatives=x_of(rank, rows=5 + (rank == 1)), group=hk.Group())


def frozen_on_one(rank: int) -> None:
    hk.sup_con(x_of(rank).requires_grad_(rank > 0), LABELS, group=hk.Group())


def no_rows(rank: int) -> None:
    hk.siglip(x_of(rank, 0), x_of(rank, 0), logit_scale=1.0, logit_bias=0.0, group=hk.Group())


def one_row(rank: int) -> None:
    hk.uniformity(x_of(rank, int(rank == 1)), group=hk.Group())


def unknown_backend_on_one(rank: int) -> None:
    hk.uniformity(x_of(rank), group=hk.Group(), backend="tritn" if rank == 1 else None)


def unusable_backend(rank: int) -> None:
    """On all ranks, of which one has no rows."""
    x = x_of(rank, 4 * (rank > 0)).double()
    hk.clip_loss(x, x, logit_scale=1.0, group=hk.Group(), backend="triton")


def different_backends(rank: int) -> None:
    hk.nt_xent(x_of(rank), x_of(rank), group=hk.Group(), backend="reference" if rank == 2 else None)


def bad_rows_for_a_queue(rank: int) -> None:
    hk.FeatureQueue(8, DIM, gather=True).enqueue(x_of(rank, dim=DIM + (rank == 1)))


def queues_that_differ(rank: int) -> None:
    hk.FeatureQueue(8, DIM, gather=True, dtype=torch.float64 if rank == 1 else torch.float32).enqueue(x_of(rank))


ELSEWHERE = "ValueError: {} was refused on rank {} of the group: {}"
DISAGREE = "ValueError: the ranks of the group must call the same loss with the same options; rank 0 calls "


@pytest.mark.parametrize(
    ("call", "where", "own", "everywhere"),
    [
        (negative_t_on_one, 1, "ValueError: t must be a finite number > 0, got -1.0", "uniformity"),
        (integers_on_one, 2, "TypeError: x must be float64, float32, bfloat16 or float16 features", "clip_loss"),
        (unknown_backend_on_one, 1, "ValueError: backend='tritn' is unknown", "uniformity"),
        (bad_rows_for_a_queue, 1, f"ValueError: features must have shape (N, {DIM})", "FeatureQueue.enqueue"),
        (different_backends, None, "backend=None", "backend='reference'"),
        (queues_that_differ, None, "dtype=torch.float32", "dtype=torch.float64"),
        (different_dims, None, f"float32 (*, {DIM})", f"rank 1 nt_xent(x: float32 (*, {DIM + 1})"),
        (different_losses, None, "rank 0 calls dcl(", "rank 1 nt_xent("),
        (different_queues, None, f"negatives: float32 (5, {DIM})", f"negatives: float32 (6, {DIM})"),
        (frozen_on_one, None, f"x: float32 (*, {DIM}) on cpu,", "on cpu, requires grad"),
    ],
)
def test_one_bad_rank_raises_on_all(ranks: Ranks, call: Callable, where: int | None, own: str, everywhere: str) -> None:
    group = ranks(3)
    for rank, said in enumerate(group.run(what_is_raised, call)):
        if where is None:
            assert said.startswith(DISAGREE)
            assert own in said
            assert everywhere in said
        elif rank == where:
            assert said.startswith(own)
        else:
            assert said.startswith(ELSEWHERE.format(everywhere, where, own))
    # Nothing is left behind: the next loss is right.
    assert len({value for value, _ in group.run(loss_and_grad)}) == 1


def options_of(loss: Loss) -> dict[str, tuple[Use, Any]]:
    """Every option for which a use has another value than the module by default: that use, and the default."""
    defaults = {name: getattr(loss.module, name) for name, known in loss.module.declared.items() if known.of_function}
    return {
        name: (each, default)
        for name, default in defaults.items()
        for each in loss.uses
        if each.options.get(name, default) != default
    }


def another_option_on_one(rank: int, loss: str, option: str) -> None:
    each, default = options_of(TABLE[loss])[option]
    options = each.options | ({option: default} if rank == 1 else {})
    case = case_of(TABLE[loss], each._replace(options=options))
    case.ours(*tensors(case, 4, 5, DIM), group=hk.Group())


OPTIONS = [(loss.name, option) for loss in TABLE.values() if loss.module for option in options_of(loss)]


@pytest.mark.parametrize(("loss", "option"), OPTIONS)
def test_every_option_is_the_same_on_all_ranks(ranks: Ranks, loss: str, option: str) -> None:
    each, default = options_of(TABLE[loss])[option]
    call = functools.partial(another_option_on_one, loss=loss, option=option)
    for said in ranks(2).run(what_is_raised, call):
        assert said.startswith(DISAGREE), f"{loss} does not give {option} to its Agreement: {said}"
        assert f"{option}={each.options[option]!r}" in said
        assert f"{option}={default!r}" in said


def test_no_option_is_left_out() -> None:
    modules = [loss.module for loss in TABLE.values() if loss.module]
    given = {name for module in modules for name, known in module.declared.items() if known.of_function}
    assert given - {option for _, option in OPTIONS} == {"group", "backend", "max_norm"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (no_rows, "ValueError: x must not be empty: none of the 3 ranks of the group has a row"),
        (unusable_backend, "ValueError: backend='triton' cannot compute prepare: dtype torch.float64"),
        (one_row, "ValueError: x must have at least 2 rows on 3 ranks together to form a pair"),
    ],
)
def test_what_is_wrong_on_all_ranks(ranks: Ranks, call: Callable, message: str) -> None:
    assert all(said.startswith(message) for said in ranks(3).run(what_is_raised, call))


def loss_and_grad(rank: int) -> tuple[float, Tensor]:
    x = x_of(rank).requires_grad_()
    loss = hk.uniformity(x, group=hk.Group()) + hk.clip_loss(x, x.sin(), logit_scale=2.0, group=hk.Group())
    loss.backward()
    return loss.item(), x.grad


def with_nan(rank: int, name: str, transport: str) -> tuple[float, Tensor]:
    x = x_of(rank)
    if rank == 1:
        x[1, 2] = math.nan
    x.requires_grad_()
    loss = TRAFFIC[name][0](x, x.sin(), group=hk.Group(transport=transport))
    loss.backward()
    return loss.item(), x.grad


@pytest.mark.parametrize("transport", ["gather", "ring"])
@pytest.mark.parametrize("name", ["uniformity", "uniformity, t=400", "clip_loss", "siglip", "nt_xent", "sup_con"])
def test_nan_on_one_rank_is_nan_on_all(ranks: Ranks, name: str, transport: str) -> None:
    for value, grad in ranks(3).run(with_nan, name, transport):
        assert math.isnan(value)
        assert grad.isnan().any()


def fails_after_the_agreement(rank: int) -> list[float]:
    """Every rank fails when its rows are on their way, and goes on."""
    found = []
    for transport in ("ring", "gather"):
        group = hk.Group(transport=transport)
        with pytest.raises(ValueError, match=r"backend='triton' cannot compute row_lse: dtype torch.float64"):
            # Rows far from the origin are taken to float64 when they have been seen, which that backend cannot.
            hk.uniformity(100 * x_of(rank, 500), normalize=False, group=group, backend="triton")
        found.append(hk.clip_loss(x_of(rank), x_of(rank).sin(), logit_scale=2.0, group=group).item())
    return found


def rows_of_a_failed_loss(rank: int, transport: str) -> list[int]:
    """How many tensors of a loss that failed with its rows on their way are alive behind it, and behind the next."""
    found, group = [], hk.Group(transport=transport)

    def refused(*args: Any) -> None:
        raise MemoryError("the pairs of this rank's own rows")

    def alive() -> int:
        gc.collect()
        return sum(type(t) is Tensor and 500 in t.shape for t in gc.get_objects())

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(MemoryError):
        patch.setattr("hyperkern.ops.row_lse", refused)
        hk.nt_xent(x_of(rank, 250), x_of(rank, 250).sin(), group=group)
    found.append(alive())
    hk.clip_loss(x_of(rank), x_of(rank).sin(), logit_scale=2.0, group=group)
    return [*found, alive()]


@pytest.mark.parametrize("transport", ["gather", "ring"])
def test_the_next_loss_takes_in_what_a_failed_one_has_sent(ranks: Ranks, transport: str) -> None:
    for after_the_failure, after_the_next in ranks(3).run(rows_of_a_failed_loss, transport):
        assert after_the_failure > 0
        assert after_the_next == 0


@needs_triton
def test_a_loss_that_failed_leaves_nothing_behind(ranks: Ranks) -> None:
    x = torch.cat([x_of(rank) for rank in range(3)])
    expected = hk.clip_loss(x, x.sin(), logit_scale=2.0).item()
    for found in ranks(3).run(fails_after_the_agreement):
        assert found == pytest.approx([expected] * 2, rel=1e-6)


def rows_that_stay(rank: int) -> list[int]:
    """How many gathered tensors are alive after backward, while the losses still are."""
    rows, total = 33 + rank, torch.zeros(())
    found = []
    for _ in range(3):
        x = torch.randn(rows, DIM).requires_grad_()
        loss = hk.clip_loss(x, x.sin(), logit_scale=2.0, group=hk.Group(transport="gather"))
        loss.backward()
        total = total + loss
        gc.collect()
        shapes = [t.shape for t in gc.get_objects() if type(t) is Tensor]
        found.append(sum(shape[1:] == (33 + 34 - rows, DIM) for shape in shapes if len(shape) == 3))
    return found


def test_gathered_rows_are_freed_by_backward(ranks: Ranks) -> None:
    assert ranks(2).run(rows_that_stay) == [[0, 0, 0]] * 2


def wrong_groups(rank: int) -> None:
    x = x_of(rank)
    with pytest.raises(TypeError, match=r"^group must be a hyperkern.Group, a .*ProcessGroup or a DeviceMesh, got str"):
        hk.uniformity(x, group="gloo")
    with pytest.raises(ValueError, match=r"^grad_scale must be one of 'ddp', 'sum', got 'mean'"):
        hk.Group(grad_scale="mean")
    with pytest.raises(ValueError, match=r"^transport must be one of 'auto', 'gather', 'ring', got 'tree'"):
        hk.Group(transport="tree")
    only_first = dist.new_group([0])
    if rank:
        with pytest.raises(ValueError, match=r"^group must be a group that this process belongs to"):
            hk.uniformity(x, group=only_first)
    else:
        assert hk.uniformity(x, group=only_first) == hk.uniformity(x)
        with pytest.raises(ValueError, match=r"^x must not be empty"):  # a group of one is no group
            hk.uniformity(x[:0], group=only_first)


def test_wrong_groups(ranks: Ranks) -> None:
    ranks(2).run(wrong_groups)


def test_without_torch_distributed() -> None:
    with pytest.raises(ValueError, match=r"^group needs torch.distributed: call torch.distributed.init_process_group"):
        hk.uniformity(x_of(0), group=hk.Group())


# Traffic


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """What this rank receives from others meanwhile: numbers in rows of features, and all other numbers."""
    found = {"features": 0, "rest": 0}

    def count(tensor: Tensor, times: int = 1) -> None:
        found["features" if tensor.dim() == 3 and tensor.shape[-1] == DIM else "rest"] += times * tensor.numel()

    real = {name: getattr(dist, name) for name in (ALL_GATHER, "batch_isend_irecv", "all_to_all_single")}

    def all_gather(everywhere: Tensor, own: Tensor, **k: Any) -> Any:
        count(own, everywhere.numel() // own.numel() - 1)
        return real[ALL_GATHER](everywhere, own, **k)

    def batch_isend_irecv(operations: list[dist.P2POp]) -> Any:
        for operation in operations:
            if operation.op is dist.irecv:
                count(operation.tensor)
        return real["batch_isend_irecv"](operations)

    def all_to_all_single(received: Tensor, *args: Any, **k: Any) -> Any:
        count(received)
        return real["all_to_all_single"](received, *args, **k)

    def refused(*args: Any, **k: Any) -> None:
        raise AssertionError("a collective that nobody counts")

    counting = dict(zip(real, (all_gather, batch_isend_irecv, all_to_all_single), strict=True))
    others = ("all_reduce", "broadcast", "reduce_scatter_tensor", "all_gather", "all_gather_object")
    replaced = dict.fromkeys(others, refused) | counting
    saved = {name: getattr(dist, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(dist, name, function)
        yield found
    finally:
        for name, function in saved.items():
            setattr(dist, name, function)


# Rows that a rank receives for each row that the others have, forward and backward, gathered and around the ring.
TRAFFIC = {
    "uniformity": (lambda x, y, **k: hk.uniformity(x, **k), (1, 0), (1, 0)),
    "uniformity, t=400": (lambda x, y, **k: hk.uniformity(x, t=400.0, **k), (1, 0), (1, 1)),
    "uniformity, weights": (lambda x, y, **k: hk.uniformity(x, x_weights=y[:, 0].exp(), **k), (1, 0), (1, 1)),
    "uniformity, queue": (lambda x, y, **k: hk.uniformity(x, x_of(9), **k), (0, 0), (0, 0)),
    "align_uniform": (lambda x, y, **k: hk.align_uniform(x, y, **k).loss, (2, 0), (2, 0)),
    "siglip": (functools.partial(hk.siglip, logit_scale=2.0, logit_bias=-1.0), (2, 0), (2, 0)),
    "clip_loss": (functools.partial(hk.clip_loss, logit_scale=2.0), (1, 1), (1, 2)),
    "info_nce": (hk.info_nce, (1, 1), (1, 2)),
    "info_nce, keys without gradient": (lambda x, y, **k: hk.info_nce(x, y.detach(), **k), (1, 0), (1, 1)),
    "nt_xent": (hk.nt_xent, (2, 0), (2, 2)),
    "dclw": (hk.dclw, (2, 0), (2, 2)),
    "sup_con": (lambda x, y, **k: hk.sup_con(x, LABELS, **k), (1, 0), (1, 1)),
}


def received(rank: int, name: str, transport: str) -> list[dict[str, int]]:
    x, y = x_of(rank).requires_grad_(), x_of(rank).sin().requires_grad_()
    with counted() as forward:
        loss = TRAFFIC[name][0](x, y, group=hk.Group(transport=transport))
    with counted() as backward:
        loss.backward()
    return [forward, backward]


@pytest.mark.parametrize("transport", ["gather", "ring"])
@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic(ranks: Ranks, name: str, transport: str) -> None:
    size, rows = 4, 4
    _, gathered, around = TRAFFIC[name]
    for counts in ranks(size).run(received, name, transport):
        for found, times in zip(counts, gathered if transport == "gather" else around, strict=True):
            assert found["features"] == times * (size - 1) * rows * DIM
            # Some numbers for each row of the batch, and for each rank.
            assert found["rest"] <= 6 * size * rows + 8 * size


def chosen(rank: int) -> list[bool]:
    from hyperkern.distributed import Ranks as Shares

    handle = dist.group.WORLD
    return [Shares([rows] * 2, handle, hk.Group()).keeps(512) for rows in (1 << 19, (1 << 19) + 1)]


def test_the_transport_is_chosen_by_size(ranks: Ranks) -> None:
    assert ranks(2).run(chosen) == [[True, False]] * 2


# Training


class Model(nn.Module):
    """An encoder and a loss with a parameter, as one module."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, DIM))
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.loss = loss

    def forward(self, views: Tensor) -> Tensor:
        x, y = self.encoder(views).unbind(1)
        return self.loss(x, y, self.log_scale.exp())


LOSSES = {
    "align_uniform": lambda x, y, s, **k: hk.align_uniform(x, y, **k).loss * s,
    "clip_loss": lambda x, y, s, **k: hk.clip_loss(x, y, logit_scale=s, **k),
    "nt_xent": lambda x, y, s, **k: hk.nt_xent(x, y, temperature=1 / s, **k),
    "siglip": lambda x, y, s, **k: hk.siglip(x, y, logit_scale=s, logit_bias=-s, **k),
    "alignment": lambda x, y, s, **k: hk.alignment(x, y, alpha=1.5, **k) * s,
    "sup_con": lambda x, y, s, **k: hk.sup_con(x, (x[:, 0] > 0).long(), temperature=1 / s, **k) + 0 * y.sum(),
}
STEPS, LEARNING_RATE = 3, 0.3


def batch(step: int) -> Tensor:
    return torch.randn(13, 2, 9, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(model: nn.Module, own: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradient of the first step, and the parameters after three, all in one vector."""
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    grads = []
    for step in range(STEPS):
        optimizer.zero_grad()
        model(batch(step)[own].to(dtype)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        optimizer.step()
    return grads[0], torch.cat([p.detach().flatten() for p in model.parameters()])


def train_on_a_rank(
    rank: int, name: str, counts: tuple[int, ...], transport: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    model = Model(functools.partial(LOSSES[name], group=hk.Group(transport=transport))).to(dtype)
    start = sum(counts[:rank])
    return train(DistributedDataParallel(model), slice(start, start + counts[rank]), dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("transport", ["gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_ddp_trains_like_one_process(
    ranks: Ranks, name: str, transport: str, dtype: torch.dtype, tolerance: float
) -> None:
    expected = train(Model(LOSSES[name]).to(dtype), slice(None), dtype)
    for found in ranks(3).run(train_on_a_rank, name, (5, 2, 6), transport, dtype):
        for actual, truth in zip(found, expected, strict=True):
            assert (actual - truth).norm() <= tolerance * truth.norm()


def grads_added_by_hand(rank: int) -> list[Tensor]:
    model = Model(functools.partial(LOSSES["clip_loss"], group=hk.Group(grad_scale="sum"))).double()
    model(batch(0)[[slice(0, 5), slice(5, 13)][rank]]).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    return [p.grad for p in model.parameters()]


def test_gradients_that_are_added(ranks: Ranks) -> None:
    model = Model(LOSSES["clip_loss"]).double()
    model(batch(0)).backward()
    for found in ranks(2).run(grads_added_by_hand):
        for actual, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-12, atol=1e-12)


def in_modules(rank: int) -> list[float]:
    x, y, queue = x_of(rank), x_of(rank + 7), x_of(9, 5)
    losses = [
        (hk.UniformityLoss(intra=True, group=hk.Group()), (x, queue), hk.uniformity, {"intra": True}),
        (hk.NTXentLoss(group=dist.group.WORLD), (x, y), hk.nt_xent, {}),
        (hk.SupConLoss(group=hk.Group()), (x, LABELS), hk.sup_con, {}),
        (hk.CLIPLoss(group=hk.Group()), (x, y), hk.clip_loss, {"logit_scale": 1 / 0.07}),
    ]
    for module, args, function, options in losses:
        assert module(*args) == function(*args, **options, group=hk.Group())
    return [module(*args).item() for module, args, *_ in losses]


def test_modules(ranks: Ranks) -> None:
    first, second = ranks(2).run(in_modules)
    assert first == second
