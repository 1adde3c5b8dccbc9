"""The GPU check: correctness, then speed and memory against the limit and every baseline, in one run.

``python -m benchmarks.gpu --out FILE``; `benchmarks/gpu_check.sh` runs it after the tests. ``--mode quick`` ends within
two minutes, ``full`` within eight. ``--mode smoke`` walks through everything on a CPU in Triton's interpreter: it
tests this program, its times mean nothing.

Arithmetic is counted dense, 4 N^2 D for loss and gradient, 2 N^2 D for a value, 10 N^2 D for the two-way loss and its
gradient, and set against the rate of one library product of the same dtype, measured in the same run.
"""

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperkern

from . import baselines

BACKEND = "triton"


class Sizes(NamedTuple):
    """What is measured in a mode."""

    rounds: int
    product: int  # rows of the square library product
    large: int  # rows where the arithmetic decides
    dims: tuple[int, ...]
    dense: int  # rows where the dense matrix still fits
    small: tuple[int, ...]  # ordinary batches
    huge: int | None
    gate: tuple[int, ...]  # rows of the correctness gate


MODES = {
    "smoke": Sizes(1, 64, 48, (16, 96), 48, (20,), None, (37,)),
    "quick": Sizes(5, 8192, 32768, (64, 128, 256, 512), 16384, (256, 1024, 4096), None, (500, 1111)),
    "full": Sizes(
        15,
        8192,
        65536,
        (64, 128, 256, 512, 768, 1024),
        16384,
        (256, 512, 1024, 2048, 4096),
        1 << 20,
        (1, 2, 127, 500, 1111),
    ),
}

# Ratios to the library product at each D, from docs/performance.md.
TARGETS = {
    "loss + gradient": {64: 0.50, 128: 0.62, 256: 0.55, 512: 0.90, 768: 0.90, 1024: 0.90},
    "value": {128: 1.1, 256: 1.3, 512: 1.3, 768: 1.3, 1024: 1.3},
}


class Bench:
    """Measures and collects the rows of the table."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.rows: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []

    def features(self, n: int, d: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(n, d, device=self.device).to(dtype).requires_grad_()

    def milliseconds(self, run: Callable[[], object], rounds: int | None = None) -> list[float]:
        """One time per round, on the device's own clock where it has one."""
        run()  # compiles, allocates
        times = []
        for _ in range(rounds or self.sizes.rounds):
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
            else:
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
        return times

    def record(self, case: str, n: int, d: int, times: list[float], **figures: Any) -> float:
        """Adds a row; returns the median."""
        median = statistics.median(times)
        spread = statistics.quantiles(times, n=4) if len(times) > 1 else [median] * 3
        row = {"case": case, "n": n, "d": d, "median_ms": median, "iqr_ms": spread[2] - spread[0], **figures}
        self.rows.append(row)
        figures_text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{case:<34} N {n:<8} D {d:<5} {median:10.3f} ms  {figures_text}", flush=True)
        return median

    def check(self, what: str, run: Callable[[], str | None]) -> None:
        """Runs a check, which returns what is wrong or None; one failure does not hide the others."""
        try:
            problem = run()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        self.checks.append({"check": what, "problem": problem})
        print(f"{what:<60} {'ok' if problem is None else 'FAILED: ' + problem}", flush=True)


def step(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Loss and gradients."""
    value = loss(*inputs)
    return [value, *torch.autograd.grad(value, inputs)]


LOSSES: dict[str, tuple[int, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "uniformity": (1, functools.partial(hyperkern.uniformity, backend=BACKEND), baselines.dense_uniformity),
    "align_uniform": (
        2,
        lambda x, y: hyperkern.align_uniform(x, y, backend=BACKEND).loss,
        baselines.dense_align_uniform,
    ),
    "clip": (
        2,
        functools.partial(hyperkern.clip_loss, logit_scale=1 / 0.07, backend=BACKEND),
        functools.partial(baselines.dense_clip, logit_scale=1 / 0.07),
    ),
}


def gate(bench: Bench) -> None:
    """Every loss, dtype and shape against float64, with the error of PyTorch in the same dtype as the measure."""
    dims = (*bench.sizes.dims, 100)
    for (name, (inputs, ours, dense)), dtype in itertools.product(
        LOSSES.items(), (torch.float32, torch.bfloat16, torch.float16)
    ):

        def compare(inputs: int = inputs, ours=ours, dense=dense, dtype: torch.dtype = dtype) -> str | None:
            for n, d in itertools.product(bench.sizes.gate, dims):
                if n < 2:
                    continue
                features = [bench.features(n, d, dtype) for _ in range(inputs)]
                truth = step(dense, *(f.detach().double().requires_grad_() for f in features))
                with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
                    peer = step(dense, *(f.detach().float().requires_grad_() for f in features))
                for got, other, want in zip(step(ours, *features), peer, truth, strict=True):
                    error, by_torch = ((t.double() - want).abs().max().item() for t in (got, other))
                    tiny = torch.finfo(got.dtype).eps * want.abs().max().item()
                    if not error <= 2 * by_torch + tiny:
                        return f"N {n} D {d}: error {error:.3g}, PyTorch in {dtype} {by_torch:.3g}"
            return None

        bench.check(f"{name}, {str(dtype)[6:]}: error at most twice PyTorch's", compare)


def behaviour(bench: Bench) -> None:
    """Repeats, streams, graphs."""
    n = bench.sizes.gate[-1]
    x, y = bench.features(n, 128), bench.features(n, 128)
    expected = {name: step(ours, *(x, y)[:inputs]) for name, (inputs, ours, _) in LOSSES.items()}

    def differs(results: list[Tensor], name: str) -> str | None:
        same = all(torch.equal(a, b) for a, b in zip(results, expected[name], strict=True))
        return None if same else f"{name} differs"

    def repeats() -> str | None:
        for _ in range(100 if bench.device.type == "cuda" else 1):
            for name, (inputs, ours, _) in LOSSES.items():
                if problem := differs(step(ours, *(x, y)[:inputs]), name):
                    return problem
        return None

    bench.check("bit-equal over 100 runs", repeats)
    if bench.device.type != "cuda":
        return

    def side_stream() -> str | None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = {name: step(ours, *(x, y)[:inputs]) for name, (inputs, ours, _) in LOSSES.items()}
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        return next(filter(None, (differs(result, name) for name, result in results.items())), None)

    def graphs() -> str | None:
        for name, (inputs, ours, _) in LOSSES.items():
            replay, results = captured(ours, *(x, y)[:inputs])
            for result in results:
                result.fill_(torch.nan)
            replay()
            if problem := differs(results, name):
                return problem
        return None

    bench.check("side stream", side_stream)
    bench.check("CUDA graph: capture and replay", graphs)


def captured(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Callable[[], None], list[Tensor]]:
    """The replay of a captured step, and the tensors that it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(loss, *inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [t.detach() for t in step(loss, *inputs)]
    return graph.replay, results


def library_rates(bench: Bench) -> dict[str, float]:
    """FLOP/s of one product of the library, by dtype."""
    size, rates = bench.sizes.product, {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        median = bench.record(
            f"library product, {str(dtype)[6:]}", size, size, bench.milliseconds(functools.partial(torch.mm, a, b))
        )
        rates[str(dtype)[6:]] = 2 * size**3 / median * 1e3
        bench.rows[-1]["tflops"] = rates[str(dtype)[6:]] / 1e12
    return rates


def large(bench: Bench, rates: dict[str, float]) -> None:
    """Where the arithmetic decides: the ratio to the library's product."""
    n = bench.sizes.large
    for d in bench.sizes.dims:
        x, y = bench.features(n, d), bench.features(n, d)
        uniformity = LOSSES["uniformity"][1]

        def rate(flops: float, times: list[float], d: int = d) -> float:
            return flops * n * n * d / statistics.median(times) * 1e3 / rates["bfloat16"]

        times = bench.milliseconds(functools.partial(step, uniformity, x))
        target = TARGETS["loss + gradient"].get(d)
        bench.record("uniformity, loss + gradient", n, d, times, of_library=rate(4, times), target=target)
        with torch.no_grad():
            times = bench.milliseconds(functools.partial(uniformity, x))
        bench.record("uniformity, value", n, d, times, of_library=rate(2, times), target=TARGETS["value"].get(d))
        times = bench.milliseconds(functools.partial(step, LOSSES["clip"][1], x, y))
        bench.record("clip, loss + gradient", n, d, times, of_library=rate(10, times))
        if d <= 256:
            q = x.detach().view(1, 1, n, d)
            attention = bench.milliseconds(lambda q=q: F.scaled_dot_product_attention(q, q, q))
            bench.record("attention forward, Q = K = V", n, d, attention, of_library=rate(4, attention))
            ours = next(r for r in reversed(bench.rows) if r["case"] == "uniformity, loss + gradient")
            ours["times_attention"] = ours["median_ms"] / bench.rows[-1]["median_ms"]


def beside_dense(bench: Bench) -> None:
    """Against what everybody writes, eager and compiled, where its matrix still fits."""
    n, d = bench.sizes.dense, bench.sizes.dims[1]
    for name, (inputs, ours, dense) in LOSSES.items():
        features = [bench.features(n, d) for _ in range(inputs)]
        mine = bench.record(f"{name}, hyperkern", n, d, bench.milliseconds(functools.partial(step, ours, *features)))
        for kind, other in (("eager", dense), ("compiled", torch.compile(dense))):
            if kind == "compiled" and bench.device.type != "cuda":
                continue
            median = bench.record(
                f"{name}, {kind}", n, d, bench.milliseconds(functools.partial(step, other, *features))
            )
            bench.rows[-1]["speedup"] = median / mine


def small(bench: Bench) -> None:
    """Ordinary batches: a whole call, its time on the host, and its replay."""
    _, ours, dense = LOSSES["align_uniform"]
    for n in bench.sizes.small:
        x, y = bench.features(n, 128), bench.features(n, 128)
        for name, loss in (("hyperkern", ours), ("eager", dense)):
            run = functools.partial(step, loss, x, y)
            calls = 50 if bench.device.type == "cuda" else 1

            def many(run: Callable[[], object] = run, calls: int = calls) -> None:
                for _ in range(calls):
                    run()

            times = [t / calls for t in bench.milliseconds(many)]
            bench.record(f"align_uniform, {name}", n, 128, times, host_us=host_time(bench, many, calls))
            if bench.device.type == "cuda":
                replay, _ = captured(loss, x, y)
                bench.record(f"align_uniform, {name}, graph", n, 128, bench.milliseconds(replay))


def host_time(bench: Bench, many: Callable[[], None], calls: int) -> float:
    """Microseconds that the host spends on a call while the device is not waited for."""
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    many()
    spent = time.perf_counter() - start
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return spent / calls * 1e6


def huge(bench: Bench) -> None:
    """A million rows, and what it takes in memory."""
    n = bench.sizes.huge
    if n is None:
        return
    x = bench.features(n, 128)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = bench.milliseconds(functools.partial(step, LOSSES["uniformity"][1], x), rounds=1)
    peak = (torch.cuda.max_memory_allocated() - before) / (n * 128 * 4)
    bench.record("uniformity, loss + gradient", n, 128, times, peak_per_float32_features=peak)


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure belongs to."""
    root = Path(__file__).parent.parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none (interpreter)",
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        **hyperkern.backend_info()["versions"],
        "hyperkern": hyperkern.__version__,
        "commit": git.stdout.strip() or "unknown",
    }


def stages(bench: Bench) -> Iterator[Callable[[], None]]:
    """Correctness first: a wrong kernel has no speed."""
    yield lambda: gate(bench)
    yield lambda: behaviour(bench)
    if all(check["problem"] is None for check in bench.checks):
        rates = library_rates(bench)
        yield from (
            functools.partial(large, bench, rates),
            *(functools.partial(f, bench) for f in (beside_dense, small, huge)),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Correctness, speed and memory on a GPU.")
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the figures go (JSON)")
    args = parser.parse_args()
    device = torch.device("cpu" if args.mode == "smoke" else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU found; --mode smoke runs without one")
    torch.manual_seed(0)
    bench = Bench(device, MODES[args.mode])
    for stage in stages(bench):
        stage()
        # Written after every stage: what a later one loses, this one keeps.
        result = {"machine": environment(device), "mode": args.mode, "checks": bench.checks, "rows": bench.rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = [check["check"] for check in bench.checks if check["problem"] is not None]
    print(f"\n{len(bench.checks) - len(failed)} checks passed, {len(failed)} failed; figures in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
