"""The GPU check: correctness, then speed and memory against the limit and every baseline, in one run.

``python -m benchmarks.gpu --backend NAME --out FILE``; `benchmarks/gpu_check.sh` runs it for each backend. ``--mode
quick`` ends within two minutes, ``full`` within eight. ``--mode smoke`` walks through everything on a CPU, in Triton's
interpreter or the CUDA kernels' emulator: it tests this program, its times mean nothing.

Arithmetic is counted dense, 4 N^2 D for loss and gradient, 2 N^2 D for a value, 10 N^2 D for the two-way loss and its
gradient, and set against the rate of one bfloat16 library product, measured beside each D. A time is that of one call
after one to warm up, with whatever the call before left in the caches.
"""

import argparse
import functools
import itertools
import json
import os
import shutil
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
from hyperkern.bench import textbook


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
    gate_large: tuple[int, int]  # rows that make several stripes and panels and wrap rings; as long rows as panels take


MODES = {
    "smoke": Sizes(1, 64, 48, (16, 96), 48, (20,), None, (37,), (70, 96)),
    "quick": Sizes(5, 8192, 32768, (64, 128, 256, 512), 16384, (256, 1024, 4096), None, (500, 1111), (20011, 512)),
    "full": Sizes(
        15,
        8192,
        65536,
        (64, 128, 256, 512, 768, 1024),
        16384,
        (256, 512, 1024, 2048, 4096),
        1 << 20,
        (2, 127, 500, 1111),
        (20011, 512),
    ),
}

# Ratios to the library product at each D, from docs/performance.md.
TARGETS = {
    "cuda": {
        "loss + gradient": {64: 0.65, 128: 0.82, 256: 0.85, 512: 1.0, 768: 1.0, 1024: 1.0},
        "value": {128: 1.4, 256: 1.7, 512: 1.1, 768: 1.1, 1024: 1.1},
    },
    "triton": {
        "loss + gradient": {64: 0.50, 128: 0.62, 256: 0.55, 512: 0.90, 768: 0.90, 1024: 0.90},
        "value": {128: 1.1, 256: 1.3, 512: 1.3, 768: 1.3, 1024: 1.3},
    },
}

# For each loss: how many inputs, ours, and the textbook's.
Losses = dict[str, tuple[int, Callable[..., Tensor], Callable[..., Tensor]]]


def losses_of(backend: str) -> Losses:
    """The losses that are checked and measured, from one backend."""
    return {
        "uniformity": (1, functools.partial(hyperkern.uniformity, backend=backend), textbook.dense_uniformity),
        "align_uniform": (
            2,
            lambda x, y: hyperkern.align_uniform(x, y, backend=backend).loss,
            textbook.dense_align_uniform,
        ),
        "clip": (
            2,
            functools.partial(hyperkern.clip_loss, logit_scale=1 / 0.07, backend=backend),
            functools.partial(textbook.dense_clip, logit_scale=1 / 0.07),
        ),
    }


class Bench:
    """Measures and collects the rows of the table."""

    def __init__(self, backend: str, device: torch.device, sizes: Sizes) -> None:
        self.backend, self.device, self.sizes = backend, device, sizes
        self.losses = losses_of(backend)
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


def gate(bench: Bench) -> None:
    """Every loss, dtype and shape against float64, with the error of PyTorch in the same dtype as the measure."""
    dims = (*bench.sizes.dims, 100)
    for (name, (inputs, ours, dense)), dtype in itertools.product(
        bench.losses.items(), (torch.float32, torch.bfloat16, torch.float16)
    ):

        def compare(inputs: int = inputs, ours=ours, dense=dense, dtype: torch.dtype = dtype) -> str | None:
            for n, d in itertools.product(bench.sizes.gate, dims):
                features = [bench.features(n, d, dtype) for _ in range(inputs)]
                truth = step(dense, *(f.detach().double().requires_grad_() for f in features))
                with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
                    peer = step(dense, *(f.detach().float().requires_grad_() for f in features))
                for got, other, want in zip(step(ours, *features), peer, truth, strict=True):
                    error, by_torch = ((t.double() - want).abs().max().item() for t in (got, other))
                    # One number may be right by luck: a few units in the last place are always allowed.
                    size = want.abs().max().item()
                    tiny = torch.finfo(got.dtype).eps * (4 * max(1.0, size) if got.dim() == 0 else size)
                    if not error <= 2 * by_torch + tiny:
                        return f"N {n} D {d}: error {error:.3g}, PyTorch in {dtype} {by_torch:.3g}"
            return None

        bench.check(f"{name}, {str(dtype)[6:]}: error at most twice PyTorch's", compare)


def gate_large(bench: Bench) -> None:
    """Several stripes of row blocks, several panels, rings that wrap: against the reference backend in float64.

    For each length of rows that a kernel of its own serves.
    """
    n, long = bench.sizes.gate_large
    losses = {
        "uniformity": (1, hyperkern.uniformity),
        "clip": (2, functools.partial(hyperkern.clip_loss, logit_scale=1 / 0.07)),
        "symmetric log-sum-exp": (1, lambda x, backend: _lse_total(x, backend)),
    }
    for (name, (inputs, loss)), dtype, d in itertools.product(
        losses.items(),
        (torch.float32, torch.bfloat16, torch.float16),
        sorted({d for d in bench.sizes.dims if d <= 256} | {long}),
    ):

        def compare(inputs: int = inputs, loss: Callable = loss, dtype: torch.dtype = dtype, d: int = d) -> str | None:
            features = [bench.features(n, d, dtype) for _ in range(inputs)]
            exact = [f.detach().double().requires_grad_() for f in features]
            truth = step(functools.partial(loss, backend="reference"), *exact)
            for got, want in zip(step(functools.partial(loss, backend=bench.backend), *features), truth, strict=True):
                error = ((got.double() - want).abs().max() / want.abs().max()).item()
                if not error <= max(8 * torch.finfo(dtype).eps, 2e-5):
                    return f"relative error {error:.3g}"
            return None

        bench.check(f"{name}, {str(dtype)[6:]}, N {n} D {d}: against float64", compare)


def _lse_total(x: Tensor, backend: str) -> Tensor:
    return hyperkern.pairwise_logsumexp(x, scale=5.0, exclude="self", backend=backend)[0].mean()


def behaviour(bench: Bench) -> None:
    """Repeats, streams, graphs, for rows that go in one pass and for rows that go by panels.

    So many that the rings wrap: of fewer each block of threads has one tile.
    """
    n, long = bench.sizes.gate_large
    for d in (128, long):
        _behaviour(bench, n, d)


def _behaviour(bench: Bench, n: int, d: int) -> None:
    x, y = bench.features(n, d), bench.features(n, d)
    expected = {name: step(ours, *(x, y)[:inputs]) for name, (inputs, ours, _) in bench.losses.items()}

    def differs(results: list[Tensor], name: str) -> str | None:
        same = all(torch.equal(a, b) for a, b in zip(results, expected[name], strict=True))
        return None if same else f"{name} differs"

    def repeats() -> str | None:
        for _ in range(100 if bench.device.type == "cuda" else 1):
            for name, (inputs, ours, _) in bench.losses.items():
                if problem := differs(step(ours, *(x, y)[:inputs]), name):
                    return problem
        return None

    bench.check(f"D {d}: bit-equal over 100 runs", repeats)
    if bench.device.type != "cuda":
        return

    def side_stream() -> str | None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = {name: step(ours, *(x, y)[:inputs]) for name, (inputs, ours, _) in bench.losses.items()}
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        return next(filter(None, (differs(result, name) for name, result in results.items())), None)

    def graphs() -> str | None:
        for name, (inputs, ours, _) in bench.losses.items():
            replay, results = captured(ours, *(x, y)[:inputs])
            for result in results:
                result.fill_(torch.nan)
            replay()
            if problem := differs(results, name):
                return problem
        return None

    bench.check(f"D {d}: side stream", side_stream)
    bench.check(f"D {d}: CUDA graph, capture and replay", graphs)

    def half_graph() -> str | None:
        inputs, ours, _ = bench.losses["uniformity"]
        rows = [side.to(torch.float16) for side in (x, y)[:inputs]]
        replay, results = captured(ours, *rows)
        replay()
        same = all(torch.equal(a, b) for a, b in zip(results, step(ours, *rows), strict=True))
        return None if same else "uniformity differs"

    bench.check(f"D {d}: CUDA graph in float16", half_graph)


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


def library_rate(bench: Bench) -> float:
    """FLOP/s of one bfloat16 product of the library."""
    size = bench.sizes.product
    a, b = (torch.randn(size, size, device=bench.device).to(torch.bfloat16) for _ in range(2))
    median = bench.record("library product", size, size, bench.milliseconds(functools.partial(torch.mm, a, b)))
    bench.rows[-1]["tflops"] = 2 * size**3 / median / 1e9
    return 2 * size**3 / median * 1e3


def large(bench: Bench) -> None:
    """Where the arithmetic decides: the ratio to the library's product, measured anew beside each D."""
    n = bench.sizes.large
    for d in bench.sizes.dims:
        library = library_rate(bench)
        x, y = bench.features(n, d), bench.features(n, d)
        uniformity = bench.losses["uniformity"][1]

        def rate(flops: float, times: list[float], d: int = d, library: float = library) -> float:
            return flops * n * n * d / statistics.median(times) * 1e3 / library

        def beside_target(case: str, flops: float, times: list[float], d: int = d) -> None:
            ratio, target = rate(flops, times), TARGETS[bench.backend][case].get(d)
            met = None if target is None else ratio >= target
            bench.record(f"uniformity, {case}", n, d, times, of_library=ratio, target=target, met=met)

        beside_target("loss + gradient", 4, bench.milliseconds(functools.partial(step, uniformity, x)))
        with torch.no_grad():
            beside_target("value", 2, bench.milliseconds(functools.partial(uniformity, x)))
        times = bench.milliseconds(functools.partial(step, bench.losses["clip"][1], x, y))
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
    for name, (inputs, ours, dense) in bench.losses.items():
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
    _, ours, dense = bench.losses["align_uniform"]
    for n in bench.sizes.small:
        x, y = bench.features(n, 128), bench.features(n, 128)
        for name, loss in (("hyperkern", ours), ("eager", dense)):
            run = functools.partial(step, loss, x, y)
            calls = 10 if bench.device.type == "cuda" else 1

            def many(run: Callable[[], object] = run, calls: int = calls) -> None:
                for _ in range(calls):
                    run()

            times = [t / calls for t in bench.milliseconds(many)]
            bench.record(f"align_uniform, {name}", n, 128, times, host_us=host_time(bench, many, calls))
            if bench.device.type == "cuda":
                replay, _ = captured(loss, x, y)

                def replays(replay: Callable[[], None] = replay) -> None:
                    for _ in range(100):  # one would be lost in the time that it takes to start
                        replay()

                times = [t / 100 for t in bench.milliseconds(replays)]
                bench.record(f"align_uniform, {name}, graph", n, 128, times)


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
    times = bench.milliseconds(functools.partial(step, bench.losses["uniformity"][1], x), rounds=1)
    peak = (torch.cuda.max_memory_allocated() - before) / (n * 128 * 4)
    bench.record("uniformity, loss + gradient", n, 128, times, peak_per_float32_features=peak)


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure belongs to."""
    root = Path(__file__).parent.parent
    commit = os.environ.get("HYPERKERN_COMMIT", "")
    if not commit and shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none (emulated)",
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        **hyperkern.backend_info()["versions"],
        "hyperkern": hyperkern.__version__,
        "commit": commit or "unknown",
    }


def stages(bench: Bench) -> Iterator[Callable[[], None]]:
    """Correctness first; figures are taken in any case, and a failed check beside them says what they are worth."""
    yield from (
        functools.partial(stage, bench) for stage in (gate, gate_large, behaviour, large, beside_dense, small, huge)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Correctness, speed and memory on a GPU.")
    parser.add_argument("--backend", choices=TARGETS, required=True)
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the figures go (JSON)")
    args = parser.parse_args()
    device = torch.device("cpu" if args.mode == "smoke" else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU found; --mode smoke runs without one")
    torch.manual_seed(0)
    bench = Bench(args.backend, device, MODES[args.mode])
    for stage in stages(bench):
        stage()
        # Written after every stage: what a later one loses, this one keeps.
        head = {"machine": environment(device), "backend": args.backend, "mode": args.mode}
        result = {**head, "checks": bench.checks, "rows": bench.rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = [check["check"] for check in bench.checks if check["problem"] is not None]
    print(f"\n{len(bench.checks) - len(failed)} checks passed, {len(failed)} failed; figures in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
