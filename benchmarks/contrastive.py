"""The contrastive losses against those of other libraries on a CPU: loss + gradient, time and peak memory in one run.

``python -m benchmarks.contrastive [--json FILE]`` in an environment that has the libraries (`make bench-integrations`).
Before the clock every loss is compared with the original in float64. ``python -m benchmarks.pages`` writes
docs/contrastive-benchmark.md anew, from the results in benchmarks/results/contrastive_cpu.json alone.
"""

import argparse
import functools
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hyperkern as hk
from hyperkern.bench.machine import processor
from hyperkern.bench.peers import load, unit
from hyperkern.memory import PeakMemory

from . import measure

Loss = Callable[..., Tensor]
MEBIBYTE = 1 << 20
# What no loss exceeds at N = 32,768, D = 256.
MOST_BYTES = 300e6
CLASSES = 100
# Wall-clock seconds beyond which no more rounds are taken.
PATIENCE = 60.0

PAGE = Path(__file__).parents[1] / "docs" / "contrastive-benchmark.md"


class Pair(NamedTuple):
    """A loss of a library and its drop-in.

    Attributes:
        inputs: number of feature tensors.
        original: the library's module.
        drop_in: ours.
        make: the loss, from either module.
        most_rows: how many the original can take on an ordinary machine.
    """

    inputs: int
    original: str
    drop_in: str
    make: Callable[[Any], Loss]
    most_rows: int = 1 << 30


def labelled(make: Callable[[], Any], labels: Callable[[int], Tensor]) -> Loss:
    """A loss of embeddings and labels as one of features alone, two views one behind the other."""
    loss = make()
    return lambda *views: loss(torch.cat(views), labels(sum(view.shape[0] for view in views)))


def open_clip_pair(name: str, *options: float) -> Pair:
    def make(module: Any) -> Loss:
        loss = getattr(module, name)()
        return unit(lambda x, y: loss(x, y, *(torch.tensor(option, dtype=x.dtype) for option in options)))

    return Pair(2, "open_clip.loss", "open_clip", make)


PAIRS = {
    "lightly NTXentLoss": Pair(2, "lightly.loss", "lightly", lambda m: m.NTXentLoss(temperature=0.2)),
    "lightly DCLLoss": Pair(2, "lightly.loss", "lightly", lambda m: m.DCLLoss()),
    "lightly DCLWLoss": Pair(2, "lightly.loss", "lightly", lambda m: m.DCLWLoss()),
    "lightly HypersphereLoss": Pair(2, "lightly.loss.hypersphere_loss", "lightly", lambda m: m.HypersphereLoss()),
    "PML NTXentLoss, two views": Pair(
        *(2, "pytorch_metric_learning.losses", "pytorch_metric_learning"),
        lambda m: labelled(m.NTXentLoss, lambda n: torch.arange(n) % (n // 2)),
        256,  # it stores positive pairs x negative pairs, 8 N^3 numbers
    ),
    f"PML SupConLoss, {CLASSES} classes": Pair(
        *(2, "pytorch_metric_learning.losses", "pytorch_metric_learning"),
        lambda m: labelled(m.SupConLoss, lambda n: torch.arange(n) % CLASSES),
    ),
    "OpenCLIP ClipLoss": open_clip_pair("ClipLoss", 1 / 0.07),
    "OpenCLIP SigLipLoss": open_clip_pair("SigLipLoss", 10.0, -10.0),
}


def masked_and_weighted(x: Tensor, y: Tensor) -> Tensor:
    """InfoNCE without false negatives, corrected for how often keys are drawn."""
    rows = torch.arange(x.shape[0])
    return hk.info_nce(x, y, ids=rows // 2, y_log_weights=(rows % 7 + 1).log())


def learned(loss: Loss, **values: float) -> Loss:
    """With scalars that get gradients of their own."""
    return lambda *views: loss(*views, **{key: torch.tensor(v, requires_grad=True) for key, v in values.items()})


def in_classes(x: Tensor, *queue: Tensor) -> Tensor:
    """SupCon of rows in classes, against a queue if there is one."""
    labels = torch.arange(x.shape[0]) % CLASSES
    return hk.sup_con(x, labels, *(part for rows in queue for part in (rows, labels)))


# The losses of the package that meet pairs of two sides or labels, for their peak memory: inputs, and the loss.
OWN: dict[str, tuple[int, Loss]] = {
    "uniformity, queue with a gradient": (2, functools.partial(hk.uniformity, intra=True)),
    "info_nce": (2, hk.info_nce),
    "info_nce, queue with a gradient": (3, lambda x, y, q: hk.info_nce(x, y, negatives=q)),
    "info_nce, a hard negative per row": (3, lambda x, y, h: hk.info_nce(x, y, hard_negatives=h.unsqueeze(-2))),
    "info_nce, ids and log-weights": (2, masked_and_weighted),
    "clip_loss": (2, functools.partial(hk.clip_loss, logit_scale=1 / 0.07)),
    "clip_loss, learned": (2, learned(hk.clip_loss, logit_scale=1 / 0.07)),
    "nt_xent": (2, hk.nt_xent),
    "nt_xent, three views": (3, hk.nt_xent),
    "nt_xent, learned temperature": (2, learned(hk.nt_xent, temperature=0.2)),
    "dcl": (2, hk.dcl),
    "dclw": (2, hk.dclw),
    "sup_con": (1, in_classes),
    "sup_con, queue with a gradient": (2, in_classes),
    "siglip": (2, functools.partial(hk.siglip, logit_scale=10.0, logit_bias=-10.0)),
    "siglip, learned": (2, learned(hk.siglip, logit_scale=10.0, logit_bias=-10.0)),
}


def made(name: str, which: str) -> tuple[int, Loss]:
    """Inputs and loss of ``hyperkern`` or of the ``original``; of a loss that has no original, ours."""
    if name in OWN:
        return OWN[name]
    pair = PAIRS[name]
    module = pair.original if which == "original" else f"hyperkern.integrations.{pair.drop_in}"
    return pair.inputs, pair.make(load(module))


def draw(inputs: int, rows: int, dim: int) -> list[Tensor]:
    """Views of the same samples, or unrelated sets: what the losses see makes no difference to their time."""
    return list(torch.randn(inputs, rows, dim).unbind())


def seconds(losses: Sequence[Loss], features: Sequence[Tensor], rounds: int) -> list[list[float]]:
    """The times of loss + gradient, in turns, so that both meet the same machine."""
    found: list[list[float]] = [[] for _ in losses]
    started = time.perf_counter()
    for i in range(rounds + 1):
        for times, loss in zip(found, losses, strict=True):
            start = time.perf_counter()
            measure.loss_and_grads(loss, features)
            if i > 0:  # the first round warms up
                times.append(time.perf_counter() - start)
        if i >= 3 and time.perf_counter() - started > PATIENCE:
            break
    return found


def peak(name: str, which: str, rows: int, dim: int) -> float:
    """Peak extra memory in bytes of loss + gradient, in a process of its own; inputs are not counted, gradients are."""
    command = [sys.executable, "-m", "benchmarks.contrastive", "--peak", name, which, str(rows), str(dim)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.splitlines()[-1])


def measure_peak(name: str, which: str, rows: int, dim: int) -> None:
    """The child of `peak`."""
    inputs, loss = made(name, which)
    measure.loss_and_grads(loss, draw(inputs, 256, dim))  # the libraries' own buffers are not ours to count
    features = draw(inputs, rows, dim)
    with PeakMemory(torch.device("cpu")) as memory:
        kept = measure.loss_and_grads(loss, features)
    assert all(t.isfinite().all() for t in kept)
    print(memory.rise)


def compare(name: str, most: int, dim: int, rounds: int) -> dict[str, Any]:
    """A drop-in beside its original."""
    rows = min(most, PAIRS[name].most_rows)
    (inputs, ours), (_, theirs) = made(name, "hyperkern"), made(name, "original")
    measure.check(ours, theirs, draw(inputs, min(rows, 300), dim))
    mine, original = seconds((ours, theirs), draw(inputs, rows, dim), rounds)
    row: dict[str, Any] = {"loss": name, "n": rows, "d": dim, "rounds": len(mine), "library": library_of(name)}
    for label, times in (("hyperkern", mine), ("original", original)):
        low, median, high = statistics.quantiles(times, n=4)
        row[label] = {"median_ms": 1e3 * median, "iqr_ms": 1e3 * (high - low)}
        row[label]["peak_mib"] = peak(name, label, rows, dim) / MEBIBYTE
    row["times_faster"] = row["original"]["median_ms"] / row["hyperkern"]["median_ms"]
    row["times_smaller"] = row["original"]["peak_mib"] / row["hyperkern"]["peak_mib"]
    return row


def library_of(name: str) -> str:
    """The distribution of an original, and its version."""
    module = PAIRS[name].original.split(".")[0]
    distribution = {"open_clip": "open-clip-torch"}.get(module, module.replace("_", "-"))
    return f"{distribution} {importlib.metadata.version(distribution)}"


def large(name: str, rows: int, dim: int) -> dict[str, Any]:
    """The peak memory of a loss of the package."""
    return {"loss": name, "n": rows, "d": dim, "peak_mib": peak(name, "hyperkern", rows, dim) / MEBIBYTE}


def as_line(row: dict[str, Any]) -> str:
    """A row of either table in Markdown."""
    if "peak_mib" in row:
        return f"| `{row['loss']}` | {row['peak_mib']:.0f} |"
    parts = [
        f"{row[of]['median_ms']:.0f} ± {row[of]['iqr_ms'] / 2:.0f} ms, {row[of]['peak_mib']:.0f} MiB"
        for of in ("original", "hyperkern")
    ]
    return (
        f"| {row['loss']} | {row['n']} | {' | '.join(parts)} | {row['times_faster']:.2f} | {row['times_smaller']:.1f} |"
    )


def machine() -> dict[str, Any]:
    """What a row was measured with."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
    }


def save(path: Path, part: str, row: dict[str, Any]) -> None:
    """Writes a row in place of the one of the same loss, in the order of the lists above."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = {old["loss"]: old for old in saved.get(part, [])} | {row["loss"]: row}
    saved[part] = [rows[name] for name in (PAIRS if part == "pairs" else OWN) if name in rows]
    path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """docs/contrastive-benchmark.md of some results: every figure in it is one of theirs."""
    pairs, peaks = result["pairs"], result["peaks"]

    def below_one(rows: list[dict[str, Any]], ratio: str) -> str:
        return ", ".join(row["loss"] for row in rows if row[ratio] < 1) or "none"

    largest = max(peaks, key=lambda row: row["peak_mib"])
    return PAGE_TEMPLATE.format(
        pairs_head=HEADS["pairs"],
        peaks_head=HEADS["peaks"],
        pairs="\n".join(map(as_line, pairs)),
        peaks="\n".join(map(as_line, peaks)),
        dim=pairs[0]["d"],
        slower=below_one(pairs, "times_faster"),
        larger=below_one(pairs, "times_smaller"),
        machine_of_pairs=measured_with(pairs),
        libraries=", ".join(dict.fromkeys(row["library"] for row in pairs)),
        machine_of_peaks=measured_with(peaks),
        large=f"N = {largest['n']:,}, D = {largest['d']}",
        input_mib=largest["n"] * largest["d"] * 4 / MEBIBYTE,
        matrix_mib=largest["n"] ** 2 * 4 / MEBIBYTE,
        bound_mib=MOST_BYTES / MEBIBYTE,
        largest=f"{largest['peak_mib']:.0f} MiB of `{largest['loss']}`",
    )


def measured_with(rows: list[dict[str, Any]]) -> str:
    """The machines and versions of some rows, in words."""
    found = [f"{row['processor']}, {row['threads']} thread(s), torch {row['torch']}" for row in rows]
    return "; ".join(dict.fromkeys(found))


def main() -> None:
    """Measures everything, or in a child process one peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the results; what it has of other losses stays")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--large", type=int, nargs=2, default=(32768, 256), metavar=("N", "D"), help="for the memory")
    parser.add_argument("--part", choices=("pairs", "peaks"), help="one of the two tables; by default both")
    parser.add_argument("--only", nargs="+", metavar="LOSS", help="some rows of the tables alone")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak is not None:
        name, which, rows, dim = args.peak
        measure_peak(name, which, int(rows), int(dim))
        return
    unknown = set(args.only or ()) - {*PAIRS, *OWN}
    if unknown:
        parser.error(f"argument --only: {', '.join(map(repr, sorted(unknown)))} is none of {', '.join([*PAIRS, *OWN])}")
    for part, losses in (("pairs", PAIRS), ("peaks", OWN)):
        if args.part not in (None, part):
            continue
        print(HEADS[part], flush=True)
        for name in losses:
            if args.only and name not in args.only:
                continue
            row = compare(name, args.rows, args.dim, args.rounds) if part == "pairs" else large(name, *args.large)
            print(as_line(row), flush=True)
            if args.json:
                save(args.json, part, row | machine())


HEADS = {
    "pairs": "| loss | N | original | hyperkern | times faster | times smaller |\n|---|---:|---:|---:|---:|---:|",
    "peaks": "| loss | peak MiB |\n|---|---:|",
}

PAGE_TEMPLATE = """\
# Contrastive losses beside those of other libraries, on a CPU

Measured figures, not predictions. `make bench-integrations` measures; `python -m benchmarks.pages`
writes this page from [benchmarks/results/contrastive_cpu.json](../benchmarks/results/contrastive_cpu.json). Loss and
gradient of float32 features, each once held against the original in float64: medians and half of the interquartile
range of rounds that take turns, and the peak of resident memory in a process of its own, gradients included, inputs
not.

## The drop-ins and their originals

D = {dim}, N rows in each of two views. *Times faster* and *times smaller* are ratios of the original to `hyperkern`:
below 1 the original is the faster or the smaller one. Measured on {machine_of_pairs}, beside {libraries}.

{pairs_head}
{pairs}

Slower than the original: {slower}. Larger: {larger}.

Beside other work on the same cores hyperkern's times on several threads have been seen tens of times longer, probably
because each of the many short products of a block waits for a thread that is not running. Where other work competes,
give PyTorch fewer threads.

The originals multiply all features at once and store the matrix of all logits, several times over in backward. These
walk over it in blocks, once where the exponentials find room in the workspace (64 MiB: 4096 rows); the others are made
again for the gradient, up to 8 N²D operations for 6 of one pair of views. PyTorch Metric Learning's
NT-Xent stores the positive pairs times the negative ones, 8 N³ numbers: hence its small N.

## Large batches

{large}, where an input has {input_mib:.0f} MiB, and so has each gradient, which is counted; a matrix of all pairs
would have {matrix_mib:.0f}. At most 300 MB, {bound_mib:.0f} MiB, are promised; the most is {largest}. Measured on
{machine_of_peaks}.

{peaks_head}
{peaks}
"""

if __name__ == "__main__":
    main()
