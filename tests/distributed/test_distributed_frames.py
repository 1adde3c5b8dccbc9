"""What a step over several ranks costs the host: Python frames, counted, not timed."""

import gc
import sys
import warnings
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks

import hyperkern as hk
from hyperkern.distributed.ranks import ALL_GATHER

# What may run for forward and backward of a loss, PyTorch's own frames included: on PyTorch 2.14 it is 242, and 250 in
# a process that has compiled one, where `torch.compiler.disable` stands around what must not be traced.
LIMIT = 250


def frames_of_a_step(rank: int, given: str, compiled: bool) -> Counter[str]:
    group = {"process group": dist.group.WORLD, "Group": hk.Group()}[given]
    x, y = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    if compiled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, of what it traces; as errors they stop it
            torch.compile(hk.clip_loss, backend="eager")(x, y, logit_scale=10.0, group=group)
        torch.compiler.reset()
    for _ in range(2):  # the first one makes what the others find
        hk.clip_loss(x, y, logit_scale=10.0, group=group).backward()
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found[f"{frame.f_code.co_filename}:{frame.f_code.co_name}"] += 1

    gc.collect()  # or what others have left is freed meanwhile
    sys.setprofile(count)
    try:
        hk.clip_loss(x, y, logit_scale=10.0, group=group).backward()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("given", ["process group", "Group"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_runs_few_frames(ranks: Ranks, given: str, compiled: bool) -> None:
    for found in ranks(2).run(frames_of_a_step, given, compiled):
        assert not compiled or any("_dynamo" in name for name in found)  # or it would be the same again
        assert found.total() <= LIMIT, sorted(found.items())
        assert calls(found, "outside__agree", ALL_GATHER, "all_to_all_single") == [1, 6, 1]
        # What the first step has found out, none of the others asks again.
        assert calls(found, "_signature", "get_backend_config", "_check_primitives", "select") == [0, 0, 0, 0]
        # Forward, backward and what runs inside of the operators have been seen, or this would show nothing.
        assert calls(found, "clip_loss", "_across", "_refuse_second_order", "pair_grad") == [1, 1, 1, 3]


def calls(found: Counter[str], *names: str) -> list[int]:
    """How often functions of these names were called."""
    return [sum(number for name, number in found.items() if name.endswith(f":{wanted}")) for wanted in names]


def equal_options(rank: int, first: float, then: float) -> None:
    """Two options that are equal, and not the same text: what one rank has kept of the first is not the other's."""
    x = torch.randn(4, 7)
    hk.clip_loss(x, x, logit_scale=first, group=hk.Group())
    hk.clip_loss(x, x, logit_scale=then if rank else first, group=hk.Group())


def what_is_raised(rank: int, first: float, then: float) -> str:
    with pytest.raises(ValueError, match=r"^the ranks of the group must call the same loss") as raised:
        equal_options(rank, first, then)
    return str(raised.value)


@pytest.mark.parametrize(("first", "then"), [(2.0, 2), (3, 3.0)])
def test_what_is_kept_of_a_call_is_not_taken_for_another(ranks: Ranks, first: float, then: float) -> None:
    rows = "x: float32 (*, 7) on cpu, y: float32 (*, 7) on cpu"
    for said in ranks(2).run(what_is_raised, first, then):
        assert f"rank 0 calls clip_loss({rows}, logit_scale={first}, normalize" in said
        assert f"rank 1 clip_loss({rows}, logit_scale={then}, normalize" in said
