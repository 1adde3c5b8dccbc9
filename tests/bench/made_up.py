"""Benchmark results made up for the tests of the page."""

import random
from typing import Any

import msgspec

from hyperkern.bench.result import Result

MACHINE = {
    "device": "cpu",
    "processor": "AMD EPYC 7B13",
    "threads": 2,
    "clocks": "2.45 GHz, not locked",
    "torch": "2.13.0+cpu",
    "triton": "3.7.0",
    "cuda": None,
    "driver": None,
    "python": "3.11.2",
    "hyperkern": "0.1.0",
    "commit": "1f0e643a1f69ee62b496cf192d272e9225d36d7d",
    "date": "2026-11-25T08:30:00Z",
}
LIMITS = {"float32": {"flops": 1.5e11, "bytes": 1.6e10}}
SIZES = (512, 1024, 2048, 4096, 8192, 16384)
DIMENSIONS = (128, 512)
# Share of the matrix rate, fixed milliseconds, whether memory grows with N².
PEERS = {
    "hyperkern": (0.62, 0.12, False),
    "pdist": (0.05, 0.05, True),
    "dense": (0.17, 0.08, True),
    "compiled": (0.27, 0.1, True),
    "chunked": (0.2, 0.6, False),
    "KeOps": (0.1, 1.5, False),
    "lightly": (0.15, 0.2, True),
    "pytorch-metric-learning": (0.06, 2.0, True),
    "open_clip": (0.19, 0.15, True),
}
PACKAGES = {
    "hyperkern": ("hyperkern", "0.1.0"),
    "KeOps": ("pykeops", "2.3"),
    "lightly": ("lightly", "1.5.25"),
    "pytorch-metric-learning": ("pytorch-metric-learning", "2.9.0"),
    "open_clip": ("open-clip-torch", "3.3.0"),
}
ABSENT = {
    ("uniformity", "lightly"): ("skipped", "lightly has no such loss"),
    ("uniformity", "open_clip"): ("skipped", "open_clip has no such loss"),
    ("align_uniform", "open_clip"): ("skipped", "open_clip has no such loss"),
    ("align_uniform", "compiled"): ("failed", "relative error 3.1e-02 exceeds 1.0e-04"),
    ("nt_xent", "pdist"): ("skipped", "the formula is of uniformity alone"),
    ("nt_xent", "KeOps"): ("failed", "gradient: relative error 8.7e-01 exceeds 1.0e-04"),
    ("clip", "pdist"): ("skipped", "the formula is of uniformity alone"),
    ("clip", "lightly"): ("skipped", "lightly has no such loss"),
    ("clip", "pytorch-metric-learning"): ("skipped", "not installed: pip install hyperkern[peers]"),
}


def row(**values: Any) -> dict[str, Any]:
    """One row; what is not given is plausible."""
    n, d = values.get("n", 1024), values.get("d", 128)
    flops, size = 6.0 * n * n * d, 16.0 * n * d
    share, fixed, dense = PEERS.get(values.get("implementation", "hyperkern"), (0.3, 0.1, True))
    median = fixed + 1e3 * flops / (LIMITS["float32"]["flops"] * share)
    chance = random.Random(f"{values}")
    spread = 0.6 if values.get("implementation") == "KeOps" else 0.1
    samples = sorted(median * (1 + abs(chance.gauss(0, spread))) for _ in range(11))
    found = {
        "case": "uniformity",
        "implementation": "hyperkern",
        "package": PACKAGES.get(values.get("implementation", "hyperkern"), ("torch", "2.13.0"))[0],
        "version": PACKAGES.get(values.get("implementation", "hyperkern"), ("torch", "2.13.0"))[1],
        "mode": "both",
        "execution": "eager",
        "dtype": "float32",
        "n": n,
        "d": d,
        "status": "ok",
        "reason": None,
        "error": 2.3e-7,
        "samples_ms": samples,
        "median_ms": samples[5],
        "p20_ms": samples[2],
        "p80_ms": samples[8],
        "peak_bytes": (8 * n * n if dense else 0) + 8 * n * d,
        "flops": flops,
        "bytes": size,
        "floor_ms": 1e3 * max(flops / LIMITS["float32"]["flops"], size / LIMITS["float32"]["bytes"]),
        "tflops": flops / samples[5] / 1e9,
        "gbs": size / samples[5] / 1e6,
        "of_limit": flops / samples[5] * 1e3 / LIMITS["float32"]["flops"],
        "baseline": "dense",
        "vs_baseline": None,
    } | values
    if found["status"] != "ok":
        measured = ("median_ms", "p20_ms", "p80_ms", "peak_bytes", "tflops", "gbs", "of_limit", "error", "vs_baseline")
        found |= dict.fromkeys(measured) | {"samples_ms": []}
    return found


def content(rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """What a file has of these rows, with ratios to the baseline where it was timed."""
    times = {key(one): one["median_ms"] for one in rows if one["implementation"] == one["baseline"]}
    for one in rows:
        if one["median_ms"] and one["vs_baseline"] is None and times.get(key(one)):
            one["vs_baseline"] = times[key(one)] / one["median_ms"]
    return {"schema": 1, "machine": dict(MACHINE), "limits": LIMITS, "rows": rows} | values


def result(rows: list[dict[str, Any]], **values: Any) -> Result:
    """A result of `content`."""
    return msgspec.convert(content(rows, **values), Result)


def key(one: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(one[name] for name in ("case", "mode", "execution", "dtype", "n", "d"))


def realistic() -> Result:
    """Four cases, nine implementations, six sizes, two dimensions; some failed, some skipped."""
    rows = []
    for case in ("uniformity", "align_uniform", "nt_xent", "clip"):
        for name in PEERS:
            status, reason = ABSENT.get((case, name), ("ok", None))
            for d in DIMENSIONS:
                for n in SIZES:
                    state = status, reason
                    if status == "ok" and n == 16384 and name in ("pdist", "lightly"):
                        state = "skipped", "would need 6.0 GiB, 4.0 GiB are free"
                    rows.append(row(case=case, implementation=name, n=n, d=d, status=state[0], reason=state[1]))
    return result(rows)
