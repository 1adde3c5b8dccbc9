"""Measures block sizes on the GPU at hand and writes them as the Triton backend reads them; ``hyperkern tune``."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..backends.host.pairwise import Factors
from ..backends.triton import config
from ..backends.triton.config import Architecture, Config, Entry
from ..backends.triton.operands import SPECIALISING, Operands, as_operands
from ..backends.triton.primitives import contract, pair_sums
from ..files import check_outputs
from ..spec import PairSpec, PairTerms
from . import clock, gate

# What PairSpec.precision or the float32 setting must be for an operand.
_PRECISION = {"bfloat16": "bfloat16", "tf32": "float32", "float32": "float32"}
_SETTING = {"bfloat16": "highest", "tf32": "high", "float32": "highest"}

# The classes of D that have entries of their own, where a whole row is in a tile; and the D that stands for any.
_WHOLE_ROW = {
    ("contract", "bfloat16"): (64, 128, 256),
    ("contract", "tf32"): (64, 128),
    ("contract", "float32"): (64,),
    ("sums", "bfloat16"): (64, 128, 256),
    ("sums", "tf32"): (128,),
    ("sums", "float32"): (64,),
    ("two_way", "bfloat16"): (64, 128, 256),
    ("two_way", "tf32"): (128,),
    ("panel", "bfloat16"): (),
    ("panel", "tf32"): (),
    ("panel", "float32"): (),
}
_ANY = 768
# Of the largest entry, how far a result in bfloat16 may be off.
ALLOWED = 2e-2


class Use(NamedTuple):
    """What an entry is tuned for."""

    kernel: str
    operand: str
    dim: int | None
    mode: str | None


def uses() -> Iterator[Use]:
    """Every entry that a file needs; the modes of most losses have one of their own."""
    for (kernel, operand), dims in _WHOLE_ROW.items():
        modes: tuple[str | None, ...] = (None, "exp")
        if kernel == "two_way":  # which knows no other
            modes = (None,)
        elif kernel == "contract" and operand != "float32":
            modes = (None, "exp", "bounded")
        for dim in (*dims, *(() if kernel == "contract" else (None,))):
            for mode in modes:
                yield Use(kernel, operand, dim, mode)


def candidates(use: Use, shared_bytes: int) -> Iterator[Config]:
    """The shapes worth a measurement: what cannot fit into shared memory is left out."""
    size = 2 if use.operand == "bfloat16" else 4
    for block_m, block_n, num_warps, num_stages in itertools.product((64, 128), (16, 32, 64, 128), (4, 8), (2, 3, 4)):
        for block_d in (None,) if use.dim else (32, 64, 128):
            width = block_d or config.padded(use.dim or 0)
            stays, streams = (block_n, block_m) if use.kernel == "two_way" else (block_m, block_n)
            loaded = streams if block_d is None else block_m + block_n
            held = stays * width if block_d is None else 0
            # Registers of the sums of a row block and of a tile, of which a thread has 255.
            more = {"contract": width, "two_way": block_n}.get(use.kernel, 0)
            sums = block_m * (block_n + more) / (32 * num_warps)
            # With y = x the sums need squares on the diagonal.
            squares = use.kernel not in ("sums", "two_way") or stays % streams == 0
            if squares and (held + loaded * width * num_stages) * size <= shared_bytes and 16 <= sums <= 200:
                yield Config(block_m, block_n, block_d, num_warps, num_stages)


def problem(use: Use, rows: int, device: torch.device) -> tuple[Operands, str]:
    """Operands of a use, and its mode."""
    draw = torch.Generator(device).manual_seed(0)
    x = torch.randn(1, rows, use.dim or _ANY, generator=draw, device=device)
    x = torch.nn.functional.normalize(x, dim=-1)
    spec = PairSpec(4.0, bounded=True, exclude="self", precision=_PRECISION[use.operand])
    mode = use.mode or {"two_way": "exp", "panel": "bounded"}.get(use.kernel, "running")
    y = None if use.mode == "exp" else x.roll(1, 1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_SETTING[use.operand])
    try:
        return as_operands(x, y, PairTerms(), spec, weights=mode), mode
    finally:
        torch.set_float32_matmul_precision(before)


def runner(use: Use, rows: int, device: torch.device) -> Callable[[Config], torch.Tensor]:
    """Runs a use with a configuration and returns what it computes."""
    o, mode = problem(use, rows, device)
    ones = torch.ones(1, rows, device=device)
    factors = Factors() if mode == "exp" else Factors(ones, ones, ones, ones)

    def run(choice: Config) -> torch.Tensor:
        # The other kernels of the file stay as they are; this one has a single entry.
        others = tuple(e for e in o.architecture.entries if e.kernel != use.kernel)
        if use.kernel == "panel":
            others = tuple(e for e in others if e.kernel != "contract")
        entry = Entry(use.kernel, use.operand, use.dim, None, choice)
        chosen = replace(o, architecture=o.architecture._replace(entries=(*others, entry)))
        if use.kernel == "two_way":
            return torch.stack([sums.total for sums in pair_sums(chosen, mode, need_cols=True, total=False)])
        if use.kernel == "sums":
            total = use.mode == "exp"
            sums = pair_sums(chosen, mode, need_cols=True, total=total)[0]
            return sums.total.sum(1) if total else sums.logarithm()[0]  # of a total the rows alone mean nothing
        side, _ = contract(chosen, mode, factors, need_x=True, need_y=False)
        assert side is not None
        return side.added()[0]

    return run


def expected(use: Use, rows: int, device: torch.device) -> torch.Tensor:
    """What `runner` must compute, by dense formulas in float32 from the same operands."""
    o, mode = problem(use, rows, device)
    x, y = o.x.float(), o.y.float()
    logits = (o.spec.scale * x @ y.mT).masked_fill_(torch.eye(rows, dtype=torch.bool, device=device), -torch.inf)
    if use.kernel == "two_way":
        return torch.stack([logits.exp().sum(2), logits.exp().sum(1)])
    if use.kernel == "sums":
        return logits.exp().sum((1, 2)) if mode == "exp" else logits.logsumexp(2)
    return (logits.exp() if mode == "exp" else logits.sub_(1).exp() * 2) @ y


def best(
    use: Use,
    configs: Iterator[Config],
    run: Callable[[Config], torch.Tensor],
    truth: torch.Tensor,
    milliseconds: Callable[[Callable[[], object]], float],
    report: Callable[[str], None],
) -> Config | None:
    """The fastest of the configurations that compile and compute the truth.

    ``use`` only names it in the report. A configuration that a compiler's mistake makes fast must not win.
    """
    found: list[tuple[float, Config]] = []
    for choice in configs:
        try:
            result = run(choice)
        except Exception as error:  # too much shared memory, too many registers: not a candidate on this GPU
            report(f"{use}: {choice} cannot run ({type(error).__name__})")
            continue
        if not gate.largest_error([result], [truth]) <= ALLOWED:
            report(f"{use}: {choice} is WRONG, left out")
            continue
        found.append((milliseconds(partial(run, choice)), choice))
    if not found:
        return None
    time, choice = min(found)
    report(f"{use}: {choice} in {time:.3f} ms, median of all {statistics.median(t for t, _ in found):.3f} ms")
    return choice


def tune(
    architecture: Architecture,
    device: torch.device,
    rows: int,
    only: tuple[str, ...],
    milliseconds: Callable[[Callable[[], object]], float],
    report: Callable[[str], None],
) -> Architecture:
    """The architecture with the fastest configurations; what could not be tuned keeps its entry.

    Args:
        architecture: the file to start from.
        device: the GPU.
        rows: N of the problems measured.
        only: operands to tune.
        milliseconds: times a function.
        report: takes a line of text for each result.
    """
    entries = {Use(e.kernel, e.operand, e.dim, e.mode): e.config for e in architecture.entries}
    for use in uses():
        if use.operand in only:
            specialised = config.specialised(architecture.name, *use) if SPECIALISING else ()
            choices = itertools.chain(specialised, candidates(use, architecture.shared_bytes))
            if use == Use("panel", "float32", None, None):
                # A weight subtracts a log-sum-exp: both add up their logit in the same steps (`launch.fusion`).
                steps = entries[use._replace(kernel="sums")].block_d
                choices = itertools.chain(choice for choice in choices if choice.block_d == steps)
            choice = best(
                use,
                choices,
                runner(use, rows, device),
                expected(use, rows, device),
                milliseconds,
                report,
            )
            if choice is not None:
                entries[use] = choice
    # An entry that says what the general one says is no help to a reader.
    kept = [
        Entry(*use, config=c)
        for use, c in entries.items()
        if use.mode is None or entries.get(use._replace(mode=None)) != c
    ]
    kept.sort(key=lambda e: (e.kernel, e.operand, e.dim or 1 << 30, e.mode is None))
    return architecture._replace(entries=tuple(kept), checked="")


def tune_device(out: Path | None, rows: int, only: tuple[str, ...], report: Callable[[str], None]) -> Path:
    """Tunes for the current GPU and writes its file.

    Args:
        out: where; ``None``: over the file of the package.
        rows: N of the problems measured.
        only: operands to tune.
        report: takes a line of text for each result.

    Returns:
        The file written.

    Raises:
        OutputError: it cannot be written; raised before anything is measured.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    architecture = config.of_device(device.index)
    path = out or config.FOLDER / f"{architecture.name}.json"
    check_outputs({"out": path})
    config.write(tune(architecture, device, rows, only, lambda run: _milliseconds(run, device), report), path)
    return path


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    ready = clock.ready(run, str(device))
    return statistics.median(clock.sample(ready, "eager", str(device)) + clock.sample(ready, "eager", str(device)))
