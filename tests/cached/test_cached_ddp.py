"""The step in chunks with DDP: the gradients of one process, and no more reductions than an ordinary step has."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cached_models import Stop, assert_same
from cached_ranks import RANKS, SIZE, gradients_or_zeros, of_one_process, own_views, wide_encoder
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import hyperkern as hk

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


class Counted:
    """DDP that counts its reductions, in several buckets, and its broadcasts of buffers."""

    def __init__(self) -> None:
        self.reductions = self.broadcasts = 0

    def wrap(self, module: nn.Module, bucket_cap_mb: float = 0.005, **options: Any) -> DDP:
        wrapped = DDP(module, bucket_cap_mb=bucket_cap_mb, **options)

        def count(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            self.reductions += 1
            work = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True).get_future()
            return work.then(lambda done: done.value()[0])

        def broadcast(inner: Callable[[], None] = wrapped._sync_buffers) -> None:
            self.broadcasts += 1
            inner()

        wrapped.register_comm_hook(None, count)
        wrapped._sync_buffers = broadcast
        return wrapped

    def take(self) -> tuple[int, int]:
        found = (self.reductions, self.broadcasts)
        self.reductions = self.broadcasts = 0
        return found


class Towers(nn.Module):
    """Two encoders, a temperature, and a layer that nobody uses; what encodes an input depends on its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = wide_encoder(), wide_encoder(1)
        self.log_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.image(batch["image"]) if "image" in batch else self.text(batch["text"])


def check(
    module: nn.Module,
    wrap: Callable[[nn.Module], nn.Module],
    encoders: Callable[[nn.Module], Any],
    counted: Counted,
    *,
    loss: Callable[[nn.Module], Callable[..., Tensor]] = lambda module: hk.info_nce,
    inputs: Callable[[int], list[Any]] = lambda rank: list(own_views(rank)),
    ordinary: bool = True,
) -> None:
    """Three steps each: buckets are laid out anew after the first."""

    def one_shot(of: nn.Module, rank: int) -> Tensor:
        given = encoders(of)
        values = inputs(rank)
        calls = given if isinstance(given, list) else [given] * len(values)
        return loss(of)(*(call(value) for call, value in zip(calls, values, strict=True)))

    rank = dist.get_rank()
    expected = of_one_process(module, one_shot)
    counts = []
    if ordinary:
        wrapped = wrap(copy.deepcopy(module))
        for _ in range(3):
            one_shot(wrapped, rank).backward()
            assert_same(gradients_or_zeros(wrapped), expected)
            counts.append(counted.take()[0])
    wrapped = wrap(copy.deepcopy(module))
    found = []
    for _ in range(3):
        hk.cached_step(encoders(wrapped), inputs(rank), loss(wrapped), chunk_size=SIZE)
        assert_same(gradients_or_zeros(wrapped), expected)
        found.append(counted.take()[0])
    assert found[-1] > 0
    if ordinary:
        assert found == counts, (found, counts)


def one_for_both_inputs(counted: Counted) -> None:
    check(wide_encoder(), counted.wrap, lambda model: model, counted)


def inside_of_a_function(counted: Counted) -> None:
    check(wide_encoder(), counted.wrap, lambda model: lambda rows: model(rows), counted)


def two_encoders(counted: Counted) -> None:
    module = nn.ModuleList([wide_encoder(), wide_encoder(1)])
    check(module, lambda m: nn.ModuleList(map(counted.wrap, m)), lambda m: [m[0], m[1]], counted)


def two_in_one_module(counted: Counted) -> None:
    def wrap(towers: nn.Module) -> nn.Module:
        towers.image, towers.text = counted.wrap(towers.image), counted.wrap(towers.text)
        return towers

    def inputs(rank: int) -> list[Any]:
        return [{"image": own_views(rank)[0]}, {"text": own_views(rank)[1]}]

    check(Towers(), wrap, lambda model: model, counted, inputs=inputs)


def a_stopped_gradient(counted: Counted) -> None:
    check(wide_encoder(), counted.wrap, lambda model: [model, lambda rows: model(rows).detach()], counted)


def compiled(counted: Counted) -> None:
    check(
        wide_encoder(),
        lambda module: torch.compile(counted.wrap(module, bucket_cap_mb=25), backend="eager"),
        lambda model: model,
        counted,
        ordinary=False,
    )


def unused_parameters(counted: Counted) -> None:
    check(
        Towers(),
        lambda module: counted.wrap(module, find_unused_parameters=True),
        lambda model: lambda rows: model({"image": rows}),
        counted,
    )


def a_temperature_used_by_the_loss(counted: Counted) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.log_scale = wide_encoder(), nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, rows: Tensor) -> Tensor:
            return self.encoder(rows)

    def loss(model: nn.Module) -> Callable[..., Tensor]:
        scale = getattr(model, "module", model).log_scale
        return lambda x, y: hk.clip_loss(x, y, logit_scale=scale.exp())

    for view in (False, True):
        check(
            Scaled(),
            lambda m, view=view: counted.wrap(m, gradient_as_bucket_view=view),
            lambda model: model,
            counted,
            loss=loss,
        )


def uneven_chunks(counted: Counted) -> None:
    check(
        wide_encoder(),
        counted.wrap,
        lambda model: model,
        counted,
        inputs=lambda rank: list(own_views(rank, (22, 3)[rank])),
    )


def accumulation(counted: Counted) -> None:
    module, rank = wide_encoder(), dist.get_rank()
    expected = of_one_process(module, lambda model, of: 3 * hk.info_nce(*map(model, own_views(of))))
    for outer in (False, True):
        wrapped = counted.wrap(copy.deepcopy(module))
        for step in range(3):
            last = step == 2
            with wrapped.no_sync() if outer and not last else contextlib.nullcontext():
                hk.cached_step(wrapped, own_views(rank), hk.info_nce, chunk_size=SIZE, sync_gradients=outer or last)
            assert (counted.take()[0] > 0) == last
        assert_same(gradients_or_zeros(wrapped), expected)


def buffers(counted: Counted) -> None:
    """Running statistics are those of rank 0, once, then those of the rank's own chunks."""
    module, rank = wide_encoder(0, nn.BatchNorm1d(300)), dist.get_rank()
    ordinary, wrapped = counted.wrap(copy.deepcopy(module)), counted.wrap(module)
    for _ in range(3):
        counted.take()
        # With several chunks an ordinary step broadcasts for every one; its gradients are the same.
        x, y = own_views(rank)
        with torch.no_grad():
            ordinary._sync_buffers()
        statistics = copy.deepcopy(ordinary.module)
        embeddings = [torch.cat([statistics(part) for part in rows.split(SIZE)]) for rows in (x, y)]
        hk.info_nce(*embeddings).backward()
        for parameter in statistics.parameters():
            dist.all_reduce(parameter.grad.div_(RANKS))
        ordinary.module.load_state_dict(statistics.state_dict())
        counted.take()
        hk.cached_step(wrapped, (x, y), hk.info_nce, chunk_size=SIZE)
        assert counted.take()[1] == 1
        assert_same(gradients_or_zeros(wrapped), gradients_or_zeros(statistics))
        assert_same(list(wrapped.buffers()), list(ordinary.buffers()))


def an_exception(counted: Counted) -> None:
    module, rank = wide_encoder(), dist.get_rank()
    expected = of_one_process(module, lambda model, of: hk.info_nce(*map(model, own_views(of))))
    wrapped = counted.wrap(module)

    for when in (3, 14):  # in the first and in the second pass

        def stop(done: int, _: int, when: int = when) -> None:
            if done == when:
                raise Stop

        with pytest.raises(Stop):
            hk.cached_step(wrapped, own_views(rank), hk.info_nce, chunk_size=SIZE, progress=stop)
        assert wrapped.require_backward_grad_sync
        assert not wrapped._forward_pre_hooks
        assert counted.take()[0] == 0
        wrapped.zero_grad()
    hk.info_nce(*map(wrapped, own_views(rank))).backward()
    assert_same(gradients_or_zeros(wrapped), expected)


def a_static_graph(counted: Counted) -> None:
    wrapped = DDP(wide_encoder(), static_graph=True)
    with pytest.raises(ValueError, match=r"^encoders must be in DDP without static_graph"):
        hk.cached_step(wrapped, own_views(dist.get_rank()), hk.info_nce, chunk_size=SIZE)


WITH_DDP = [
    one_for_both_inputs,
    inside_of_a_function,
    two_encoders,
    two_in_one_module,
    a_stopped_gradient,
    unused_parameters,
    a_temperature_used_by_the_loss,
    uneven_chunks,
    accumulation,
    buffers,
    an_exception,
    a_static_graph,
    compiled,
]


def run_case(rank: int, case: Callable[[Counted], None]) -> None:
    case(Counted())


@pytest.mark.slow
@pytest.mark.parametrize("case", WITH_DDP)
def test_with_ddp(ranks: Ranks, case: Callable[[Counted], None]) -> None:
    ranks(RANKS).run(run_case, case)
