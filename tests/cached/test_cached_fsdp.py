"""The step in chunks with FSDP: the gradients of one process, each parameter reduced once a step."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist
from cached_models import Stop, assert_same
from cached_ranks import RANKS, SIZE, of_one_process, own_views, wide_encoder
from ranks import Ranks
from torch import Tensor, nn

import hyperkern as hk

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


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


def sharded_encoders(rank: int, shared: bool) -> None:
    modules = [wide_encoder()] if shared else [wide_encoder(), wide_encoder(1)]

    def step(model: nn.Module, of: int) -> Tensor:
        x, y = own_views(of)
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
                    hk.cached_step([wrapped[0], wrapped[-1]], own_views(rank), hk.info_nce, chunk_size=SIZE)
            assert_same(full_gradients(wrapped), expected)
            counts[way] += scatters
    # An ordinary step reduces a module that it calls twice once for each call.
    assert counts["cached"] == [2 * len(modules)] * 3, counts
    assert shared or counts["cached"] == counts["ordinary"], counts


def sharded_one_for_both_inputs(rank: int) -> None:
    sharded_encoders(rank, shared=True)


def sharded_two_encoders(rank: int) -> None:
    sharded_encoders(rank, shared=False)


def sharded_accumulation(rank: int) -> None:
    module = wide_encoder()
    expected = of_one_process(module, lambda model, of: 3 * hk.info_nce(*map(model, own_views(of))))
    wrapped = sharded(copy.deepcopy(module))
    for step in range(3):
        with counted_scatters() as scatters:
            hk.cached_step(wrapped, own_views(rank), hk.info_nce, chunk_size=SIZE, sync_gradients=step == 2)
        assert scatters == [2 if step == 2 else 0]
    assert_same(full_gradients(wrapped), expected)


def sharded_exception(rank: int) -> None:
    module = wide_encoder()
    expected = of_one_process(module, lambda model, of: hk.info_nce(*map(model, own_views(of))))
    wrapped = sharded(module)

    def stop(done: int, _: int) -> None:
        if done == 14:
            raise Stop

    with pytest.raises(Stop):
        hk.cached_step(wrapped, own_views(rank), hk.info_nce, chunk_size=SIZE, progress=stop)
    groups = [m._get_fsdp_state() for m in (wrapped, wrapped[0])]
    assert all(state._state_ctx.is_last_backward for state in groups)
    wrapped = sharded(copy.deepcopy(wide_encoder()))  # gradients that were not reduced cannot be cleared
    hk.cached_step(wrapped, own_views(rank), hk.info_nce, chunk_size=SIZE)
    assert_same(full_gradients(wrapped), expected)


WITH_FSDP = [sharded_one_for_both_inputs, sharded_two_encoders, sharded_accumulation, sharded_exception]


@pytest.mark.slow
@pytest.mark.parametrize("case", WITH_FSDP)
def test_with_fsdp(ranks: Ranks, case: Callable[[int], None]) -> None:
    ranks(RANKS).run(case)
