"""Configurations of the Triton kernels that may beat the shipped ones, each measured beside the one in its place.

``python -m tools.candidates [--list NAME] [--rows N] [--jsonl FILE]``. The list is explicit: `hyperkern tune`
tries everything, for an hour; these are the few that a reading of the compiled code speaks for. Each is first compiled
and held against the dense formula on few rows, in a process of its own and many at a time: one that cannot run, or
loses the GPU's context, is known before anything is timed. What passed is timed in one process, in turns with the
shipped configuration and with a product of the library, by the clock of `hyperkern bench`, after it was right once more
on all rows.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperkern.backends.triton import config
from hyperkern.backends.triton.config import Config
from hyperkern.bench import clock, gate, tune
from hyperkern.bench.tune import Use
from hyperkern.files import append

from .beside import beside

FEW_ROWS = 2048
ROUNDS = 3
# Counted dense, although with y = x the sums make half of the similarities.
FLOPS = {"sums": 2, "two_way": 2, "contract": 4, "panel": 4}  # times N^2 D


class Candidate(NamedTuple):
    """A configuration for a use."""

    use: Use
    choice: Config


# How often a result must have the same bits.
REPEATS = 10


def _bfloat16(kernel: str, dim: int | None, mode: str | None, *choices: tuple[Any, ...]) -> list[Candidate]:
    return [Candidate(Use(kernel, "bfloat16", dim, mode), Config(*choice)) for choice in choices]


# Rows, columns and elements of D of a tile, warps, stages.
CANDIDATES = (
    *_bfloat16("contract", 64, "exp", (128, 128, None, 8, 3)),
    *_bfloat16("contract", 128, "exp", (64, 128, None, 4, 2), (128, 64, None, 8, 3)),
    *_bfloat16("contract", 128, "bounded", (64, 128, None, 4, 2), (128, 64, None, 8, 3), (64, 64, None, 4, 2)),
    *_bfloat16("sums", 128, "exp", (128, 128, None, 8, 3)),
    *_bfloat16("sums", 128, None, (128, 64, None, 4, 2)),
    *_bfloat16("two_way", 128, None, (64, 128, None, 4, 2), (64, 64, None, 4, 2)),
    *_bfloat16("panel", None, None, (128, 128, 64, 8, 3), (128, 256, 64, 8, 3)),
)

# Specialised warps, which no shipped file chooses before they are measured: apart, since one that waits for ever ends a
# whole step. What is predicted of them stands in docs/performance.md.
SPECIALISED = tuple(
    Candidate(Use(kernel, "bfloat16", dim, "exp"), choice)
    for kernel in ("contract", "sums")
    for dim in (64, 128)
    for choice in config.specialised("sm_90", kernel, "bfloat16", dim, "exp")
)
LISTS = {"ordinary": CANDIDATES, "specialised": SPECIALISED}


def shipped(use: Use, device: torch.device) -> Config:
    """What the package has for a use; for sm_90 where there is no GPU and kernels are interpreted."""
    architecture = config.of_device(device.index) if device.type == "cuda" else config.of_name("sm_90")
    o, mode = tune.problem(use, 128, device)
    found = config.find(architecture, use.kernel, use.operand, o.x.shape[2], mode)
    assert found is not None
    return found


def wrong(result: Tensor, truth: Tensor) -> str | None:
    """What is wrong with a result, or ``None``."""
    error = gate.largest_error([result], [truth])
    return None if error <= tune.ALLOWED else f"wrong: relative error {error:.3g}, {tune.ALLOWED:g} is allowed"


def problem_of(candidate: Candidate, rows: int, device: torch.device) -> str | None:
    """Why a configuration is none here, or ``None``: on tiles without a rest and with one, again and again."""
    try:
        return _problem_of(candidate, rows, device) or _problem_of(candidate, rows - 77, device)
    except Exception as error:  # too much shared memory, too many registers
        return f"cannot run: {type(error).__name__}: {gate.first_line(error)}"


def _problem_of(candidate: Candidate, rows: int, device: torch.device) -> str | None:
    run = tune.runner(candidate.use, rows, device)
    result = run(candidate.choice)
    problem = wrong(result, tune.expected(candidate.use, rows, device))
    if problem is not None:
        return f"{problem} at N {rows}"
    others = (run(candidate.choice) for _ in range(REPEATS if device.type == "cuda" else 1))
    return None if all(torch.equal(other, result) for other in others) else f"wrong: other bits at a repeat, N {rows}"


def measured(
    use: Use, choices: list[Config], rows: int, device: torch.device
) -> Iterator[tuple[Config, dict[str, Any]]]:
    """Times of the configurations, in turns with the library's product."""
    base, truth, run = shipped(use, device), tune.expected(use, rows, device), tune.runner(use, rows, device)
    right: list[Config] = []
    for choice in choices:
        problem = wrong(run(choice), truth)
        if problem is None:
            right.append(choice)
        else:
            yield choice, {"status": "wrong", "reason": f"{problem} at N {rows}"}
    a = torch.randn(min(rows, 8192), min(rows, 8192), device=device).bfloat16()
    product = torch.empty_like(a)
    calls: dict[Config | None, Callable[[], object]] = {None: partial(torch.mm, a, a, out=product)}
    calls |= {choice: partial(run, choice) for choice in right}
    times = in_turns(calls, str(device))
    rate = 2 * a.shape[0] ** 3 / statistics.median(times[None])
    dim = use.dim or tune.problem(use, 128, device)[0].x.shape[2]
    for choice in right:
        median = statistics.median(times[choice])
        yield (
            choice,
            {
                "status": "ok",
                "reason": None,
                "median_ms": median,
                "ratio_to_shipped": median / statistics.median(times[base]) if base in right else None,
                "share_of_product": FLOPS[use.kernel] * rows**2 * dim / median / rate,
            },
        )


def in_turns(calls: dict[Config | None, Callable[[], object]], device: str) -> dict[Config | None, list[float]]:
    """Milliseconds of each call, in rounds: what slows the GPU down meets all of them."""
    runners = {name: clock.ready(call, device) for name, call in calls.items()}
    times: dict[Config | None, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS if device != "cpu" else 1):
        for name, runner in runners.items():
            times[name] += clock.sample(runner, "eager", device)
    return times


def main() -> int:
    """Returns 0 whatever the candidates are worth; 1 if a shipped configuration is wrong."""
    parser = argparse.ArgumentParser(description="Candidate configurations beside the shipped ones.")
    parser.add_argument("--rows", type=int, default=16384, metavar="N")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=12, help="processes at a time that compile")
    parser.add_argument("--only", type=int, metavar="I", help="check this one of the list, and measure nothing")
    parser.add_argument("--list", choices=LISTS, default="ordinary", help="which (default %(default)s)")
    parser.add_argument("--first", type=int, metavar="N", help="the first of the list alone")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="add a row for each configuration there")
    args = parser.parse_args()
    device = torch.device(args.device)
    asked = LISTS[args.list][: args.first]
    uses = list(dict.fromkeys(candidate.use for candidate in asked))
    everything = [*(Candidate(use, shipped(use, device)) for use in uses), *asked]
    few = min(args.rows, FEW_ROWS)
    if args.only is not None:
        problem = problem_of(everything[args.only], few, device)
        if problem is not None:
            print(f"{everything[args.only]}: {problem}", flush=True)
            report(args.jsonl, everything[args.only], args.only < len(uses), failure(problem))
        return 0 if problem is None else 1
    base = [sys.executable, "-m", "tools.candidates", "--rows", str(few), "--device", args.device]
    base += ["--list", args.list]
    base += [*(() if args.first is None else ("--first", str(args.first)))]
    base += [*(() if args.jsonl is None else ("--jsonl", str(args.jsonl)))]
    statuses = beside([[*base, "--only", str(i)] for i in range(len(everything))], args.jobs)
    for i, status in enumerate(statuses):
        if status not in (0, 1):
            report(args.jsonl, everything[i], i < len(uses), failure(f"cannot run: ended with status {status}"))
    good = [everything[i] for i, status in enumerate(statuses) if status == 0]
    for use in uses:
        choices = list(dict.fromkeys(candidate.choice for candidate in good if candidate.use == use))
        for choice, found in measured(use, choices, args.rows, device) if choices else ():
            report(args.jsonl, Candidate(use, choice), choice == shipped(use, device), {"n": args.rows, **found})
    return 1 if any(statuses[: len(uses)]) else 0


def failure(problem: str) -> dict[str, Any]:
    """Of a configuration that is none."""
    return {"status": "wrong" if problem.startswith("wrong") else "cannot run", "reason": problem}


def report(jsonl: Path | None, candidate: Candidate, is_shipped: bool, found: dict[str, Any]) -> None:
    """Prints a row and adds it to the file."""
    row = {"kind": "candidate", **candidate.use._asdict(), **candidate.choice._asdict(), "shipped": is_shipped, **found}
    figures = f"{found['median_ms']:.3f} ms" if "median_ms" in found else found["reason"]
    print(f"{candidate.use.kernel} D {candidate.use.dim} {candidate.use.mode} {tuple(candidate.choice)}: {figures}")
    if jsonl is not None:
        append(jsonl, [row])


if __name__ == "__main__":
    raise SystemExit(main())
