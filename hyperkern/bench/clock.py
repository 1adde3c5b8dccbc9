"""The clock: Triton's on a GPU, PyTorch's on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .gate import clear
from .registry import Loss

# A sample shorter than this is mostly the timer's and the scheduler's.
SHORTEST_MS = 2.0
WARMUP_MS, SAMPLE_MS = 5, 20


class Runner(NamedTuple):
    """A call to be timed.

    Attributes:
        run: the call.
        calls: how often it is called in one sample on a CPU.
        first_ms: what the first call took, compilation included.
        settled_ms: what the second took.
        value: of the loss; ``None`` where only the gradient was computed, or it is no single number.
        forget: drops the gradients that the last call left.
    """

    run: Callable[[], object]
    calls: int
    first_ms: float
    settled_ms: float
    value: float | None
    forget: Callable[[], None]


def runner(
    loss: Loss, inputs: list[Tensor], mode: str, device: str, patience_ms: float, *, compiled: bool = False
) -> Runner:
    """Prepares and warms up a mode of a loss.

    In mode ``backward`` the graph of one forward pass is kept and run again. A loss that makes its gradient in the
    forward pass has next to nothing left to do there: set such losses side by side in mode ``both``.
    """

    # Leaves of its own: nodes that another runner's graph keeps alive would belong to another stream.
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]

    def forward() -> Tensor:
        with torch.no_grad():
            return loss(*inputs)

    def both() -> Tensor:
        clear(inputs)
        value = loss(*inputs)
        torch.autograd.backward(value, _ones(value))
        return value

    if mode == "backward":
        graph = loss(*inputs)
        ones = torch.ones_like(graph)

        def backward() -> None:
            clear(inputs)
            torch.autograd.backward(graph, ones, retain_graph=True)

        run: Callable[[], object] = backward
    else:
        run = forward if mode == "forward" else both
    return ready(run, device, patience_ms, compiled=compiled)._replace(forget=lambda: clear(inputs))


def ready(
    run: Callable[[], object], device: str, patience_ms: float = float("inf"), *, compiled: bool = False
) -> Runner:
    """Warms up any call, and finds how often it is called in a sample."""
    found: list[object] = []
    first = settled = once(lambda: found.append(run()), device)
    value = found.pop()
    number = value.item() if isinstance(value, Tensor) and value.dim() == 0 else None
    # One that takes long is not run again only to warm it up, unless the first call may have compiled something.
    if first <= patience_ms or compiled or device != "cpu":
        settled = once(run, device)
    return Runner(run, max(1, int(SHORTEST_MS / max(settled, 1e-4))), first, settled, number, lambda: None)


def _ones(value: Tensor) -> Tensor | None:
    return None if value.dim() == 0 else torch.ones_like(value)


def rounds(call_ms: float, seconds: float, most: int, device: str) -> int:
    """How often a call is sampled in the time for a row: a call within that time three times at least."""
    of_round = max(call_ms, SHORTEST_MS) if device == "cpu" else max(8 * call_ms, WARMUP_MS + SAMPLE_MS)
    fewest = 3 if call_ms <= 1e3 * seconds else 1
    return min(most, max(fewest, int(1e3 * seconds / of_round)))


def once(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def synchronize(device: str) -> None:
    """Waits for a GPU."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def sample(runner: Runner, execution: str, device: str) -> list[float]:
    """Milliseconds of a call: one figure on a CPU, several on a GPU, where the cache is emptied between the calls.

    A replayed graph keeps its cache, as it does in training, and pays for no launches.
    """
    if device == "cpu":
        from torch.utils.benchmark import Timer

        timer = Timer("run()", globals={"run": runner.run}, num_threads=torch.get_num_threads())
        return [1e3 * timer.timeit(runner.calls).median]
    from triton import testing

    with torch.cuda.device(device):
        if execution == "cudagraph":
            return list(testing.do_bench_cudagraph(runner.run, rep=SAMPLE_MS, return_mode="all"))
        return list(testing.do_bench(runner.run, warmup=WARMUP_MS, rep=SAMPLE_MS, return_mode="all"))
