"""The step in chunks on two ranks: the gradients of one process, and no more reductions than an ordinary step has."""

import contextlib
import copy
import os
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import hyperkern as hk

RANKS, ROWS, WIDTH, DIM, SIZE = 2, 22, 7, 5, 4
Step = Callable[[], Any]

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


def encoder(seed: int = 0, *extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 300), nn.Tanh(), *extra, nn.Linear(300, DIM)).double()


def views(rank: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(2, rows, WIDTH, generator=generator, dtype=torch.float64)
    return x, y


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


def gradients(module: nn.Module) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    return found


def of_one_process(module: nn.Module, step: Callable[[nn.Module, int], Tensor]) -> list[Tensor]:
    """The mean over the ranks of the gradients of their losses."""
    alone = copy.deepcopy(module)
    for rank in range(RANKS):
        (step(alone, rank) / RANKS).backward()
    return gradients(alone)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        assert (got - want).abs().max() <= 1e-12 * want.abs().max().clamp_min(1e-3)


class Towers(nn.Module):
    """Two encoders, a temperature, and a layer that nobody uses; what encodes an input depends on its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = encoder(), encoder(1)
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
    inputs: Callable[[int], list[Any]] = lambda rank: list(views(rank)),
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
            assert_same(gradients(wrapped), expected)
            counts.append(counted.take()[0])
    wrapped = wrap(copy.deepcopy(module))
    found = []
    for _ in range(3):
        hk.cached_step(encoders(wrapped), inputs(rank), loss(wrapped), chunk_size=SIZE)
        assert_same(gradients(wrapped), expected)
        found.append(counted.take()[0])
    assert found[-1] > 0
    if ordinary:
        assert found == counts, (found, counts)


# With DDP


def one_for_both_inputs(counted: Counted) -> None:
    check(encoder(), counted.wrap, lambda model: model, counted)


def inside_of_a_function(counted: Counted) -> None:
    check(encoder(), counted.wrap, lambda model: lambda rows: model(rows), counted)


def two_encoders(counted: Counted) -> None:
    module = nn.ModuleList([encoder(), encoder(1)])
    check(module, lambda m: nn.ModuleList(map(counted.wrap, m)), lambda m: [m[0], m[1]], counted)


def two_in_one_module(counted: Counted) -> None:
    def wrap(towers: nn.Module) -> nn.Module:
        towers.image, towers.text = counted.wrap(towers.image), counted.wrap(towers.text)
        return towers

    def inputs(rank: int) -> list[Any]:
        return [{"image": views(rank)[0]}, {"text": views(rank)[1]}]

    check(Towers(), wrap, lambda model: model, counted, inputs=inputs)


def a_stopped_gradient(counted: Counted) -> None:
    check(encoder(), counted.wrap, lambda model: [model, lambda rows: model(rows).detach()], counted)


def compiled(counted: Counted) -> None:
    check(
        encoder(),
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
            self.encoder, self.log_scale = encoder(), nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

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
    check(encoder(), counted.wrap, lambda model: model, counted, inputs=lambda rank: list(views(rank, (22, 3)[rank])))


def accumulation(counted: Counted) -> None:
    module, rank = encoder(), dist.get_rank()
    expected = of_one_process(module, lambda model, of: 3 * hk.info_nce(*map(model, views(of))))
    for outer in (False, True):
        wrapped = counted.wrap(copy.deepcopy(module))
        for step in range(3):
            last = step == 2
            with wrapped.no_sync() if outer and not last else contextlib.nullcontext():
                hk.cached_step(wrapped, views(rank), hk.info_nce, chunk_size=SIZE, sync_gradients=outer or last)
            assert (counted.take()[0] > 0) == last
        assert_same(gradients(wrapped), expected)


def buffers(counted: Counted) -> None:
    """Running statistics are those of rank 0, once, then those of the rank's own chunks."""
    module, rank = encoder(0, nn.BatchNorm1d(300)), dist.get_rank()
    ordinary, wrapped = counted.wrap(copy.deepcopy(module)), counted.wrap(module)
    for _ in range(3):
        counted.take()
        # With several chunks an ordinary step broadcasts for every one; its gradients are the same.
        x, y = views(rank)
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
        assert_same(gradients(wrapped), gradients(statistics))
        assert_same(list(wrapped.buffers()), list(ordinary.buffers()))


class Stop(RuntimeError):
    pass


def an_exception(counted: Counted) -> None:
    module, rank = encoder(), dist.get_rank()
    expected = of_one_process(module, lambda model, of: hk.info_nce(*map(model, views(of))))
    wrapped = counted.wrap(module)

    for when in (3, 14):  # in the first and in the second pass

        def stop(done: int, _: int, when: int = when) -> None:
            if done == when:
                raise Stop

        with pytest.raises(Stop):
            hk.cached_step(wrapped, views(rank), hk.info_nce, chunk_size=SIZE, progress=stop)
        assert wrapped.require_backward_grad_sync
        assert not wrapped._forward_pre_hooks
        assert counted.take()[0] == 0
        wrapped.zero_grad()
    hk.info_nce(*map(wrapped, views(rank))).backward()
    assert_same(gradients(wrapped), expected)


def a_static_graph(counted: Counted) -> None:
    wrapped = DDP(encoder(), static_graph=True)
    with pytest.raises(ValueError, match=r"^encoders must be in DDP without static_graph"):
        hk.cached_step(wrapped, views(dist.get_rank()), hk.info_nce, chunk_size=SIZE)


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


# With FSDP


@contextlib.contextmanager
def counted_scatters() -> Iterator[list[int]]:
    """How often gradients are reduced."""
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    counts, inner = [0], getattr(dist, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        counts[0] += 1
        return inner(*args, **kwargs)

    setattr(dist, name, count)
    try:
        yield counts
    finally:
        setattr(dist, name, inner)


def sharded(module: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (RANKS,))
    fully_shard(module[0], mesh=mesh)
    return fully_shard(module, mesh=mesh)


def full_gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad.full_tensor().clone() for p in module.parameters()]
    module.zero_grad()
    return found


def sharded_encoders(shared: bool) -> None:
    rank = dist.get_rank()
    modules = [encoder()] if shared else [encoder(), encoder(1)]

    def step(model: nn.Module, of: int) -> Tensor:
        x, y = views(of)
        return hk.info_nce(model[0](x), model[-1](y))

    expected = of_one_process(nn.ModuleList(modules), step)
    counts = {}
    for way in ("ordinary", "cached"):
        wrapped = nn.ModuleList([sharded(copy.deepcopy(module)) for module in modules])
        counts[way] = []
        for _ in range(3):
            with counted_scatters() as scatters:
                if way == "ordinary":
                    step(wrapped, rank).backward()
                else:
                    hk.cached_step([wrapped[0], wrapped[-1]], views(rank), hk.info_nce, chunk_size=SIZE)
            assert_same(full_gradients(wrapped), expected)
            counts[way] += scatters
    # An ordinary step reduces a module that it calls twice once for each call.
    assert counts["cached"] == [2 * len(modules)] * 3, counts
    assert shared or counts["cached"] == counts["ordinary"], counts


def sharded_one_for_both_inputs() -> None:
    sharded_encoders(True)


def sharded_two_encoders() -> None:
    sharded_encoders(False)


def sharded_accumulation() -> None:
    module, rank = encoder(), dist.get_rank()
    expected = of_one_process(module, lambda model, of: 3 * hk.info_nce(*map(model, views(of))))
    wrapped = sharded(copy.deepcopy(module))
    for step in range(3):
        with counted_scatters() as scatters:
            hk.cached_step(wrapped, views(rank), hk.info_nce, chunk_size=SIZE, sync_gradients=step == 2)
        assert scatters == [2 if step == 2 else 0]
    assert_same(full_gradients(wrapped), expected)


def sharded_exception() -> None:
    module, rank = encoder(), dist.get_rank()
    expected = of_one_process(module, lambda model, of: hk.info_nce(*map(model, views(of))))
    wrapped = sharded(module)

    def stop(done: int, _: int) -> None:
        if done == 14:
            raise Stop

    with pytest.raises(Stop):
        hk.cached_step(wrapped, views(rank), hk.info_nce, chunk_size=SIZE, progress=stop)
    groups = [m._get_fsdp_state() for m in (wrapped, wrapped[0])]
    assert all(state._state_ctx.is_last_backward for state in groups)
    wrapped = sharded(copy.deepcopy(encoder()))  # gradients that were not reduced cannot be cleared
    hk.cached_step(wrapped, views(rank), hk.info_nce, chunk_size=SIZE)
    assert_same(full_gradients(wrapped), expected)


WITH_FSDP = [sharded_one_for_both_inputs, sharded_two_encoders, sharded_accumulation, sharded_exception]


# Two processes run all cases, one after the other.


def run_on_a_rank(rank: int, kind: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous-{kind}"
    dist.init_process_group("gloo", store, world_size=RANKS, rank=rank, timeout=timedelta(seconds=60))
    try:
        outcome = {}
        for case in WITH_DDP if kind == "ddp" else WITH_FSDP:
            try:
                case(*([Counted()] if kind == "ddp" else []))
                outcome[case.__name__] = ""
            except Exception:
                outcome[case.__name__] = traceback.format_exc()
            torch.save(outcome, f"{folder}/{kind}-{rank}.pt")
        dist.barrier()  # one that leaves early would abort the other
    finally:
        dist.destroy_process_group()


def outcomes(kind: str, folder: Path) -> list[dict[str, str]]:
    context = mp.spawn(run_on_a_rank, args=(kind, str(folder)), nprocs=RANKS, join=False)
    deadline = time.monotonic() + 120
    try:
        while not context.join(timeout=5):  # returns when one of them has ended
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{kind}-{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return outcomes("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return outcomes("fsdp", tmp_path_factory.mktemp("fsdp"))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.__name__ for case in WITH_DDP])
def test_with_ddp(ddp: list[dict[str, str]], case: str) -> None:
    for outcome in ddp:
        assert not outcome[case], outcome[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.__name__ for case in WITH_FSDP])
def test_with_fsdp(fsdp: list[dict[str, str]], case: str) -> None:
    for outcome in fsdp:
        assert not outcome[case], outcome[case]
