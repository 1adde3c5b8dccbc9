"""The contrastive losses against those of other libraries on a CPU: loss + gradient, time and peak memory in one run.

``python -m benchmarks.contrastive [--json FILE]`` in an environment that has the libraries (`make bench-integrations`).
Before the clock every loss is compared with the original in float64.
"""

import argparse
import functools
import json
import platform
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
from hyperkern.bench.peers import load, unit
from hyperkern.demo.memory import PeakMemory

from . import measure

Loss = Callable[..., Tensor]
MEBIBYTE = 1 << 20
CLASSES = 100
# Wall-clock seconds beyond which no more rounds are taken.
PATIENCE = 60.0


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

# Every loss of the package, for its peak memory: inputs, and the loss.
OWN: dict[str, tuple[int, Loss]] = {
    "uniformity": (1, hk.uniformity),
    "uniformity, queue": (2, functools.partial(hk.uniformity, intra=True)),
    "align_uniform": (2, lambda x, y: hk.align_uniform(x, y).loss),
    "info_nce": (2, hk.info_nce),
    "info_nce, queue": (3, lambda x, y, q: hk.info_nce(x, y, negatives=q)),
    "clip_loss": (2, functools.partial(hk.clip_loss, logit_scale=1 / 0.07)),
    "nt_xent": (2, hk.nt_xent),
    "dcl": (2, hk.dcl),
    "dclw": (2, hk.dclw),
    "sup_con": (1, lambda x: hk.sup_con(x, torch.arange(x.shape[0]) % CLASSES)),
    "siglip": (2, functools.partial(hk.siglip, logit_scale=10.0, logit_bias=-10.0)),
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


def compare(most: int, dim: int, rounds: int) -> list[dict[str, Any]]:
    """Each drop-in beside its original."""
    found = []
    for name in PAIRS:
        rows = min(most, PAIRS[name].most_rows)
        (inputs, ours), (_, theirs) = made(name, "hyperkern"), made(name, "original")
        measure.check(ours, theirs, draw(inputs, min(rows, 300), dim))
        mine, original = seconds((ours, theirs), draw(inputs, rows, dim), rounds)
        row = {"loss": name, "n": rows, "d": dim, "rounds": len(mine)}
        for label, times in (("hyperkern", mine), ("original", original)):
            low, median, high = statistics.quantiles(times, n=4)
            row[label] = {"median_ms": 1e3 * median, "iqr_ms": 1e3 * (high - low)}
            row[label]["peak_mib"] = peak(name, label, rows, dim) / MEBIBYTE
        row["times_faster"] = row["original"]["median_ms"] / row["hyperkern"]["median_ms"]
        row["times_smaller"] = row["original"]["peak_mib"] / row["hyperkern"]["peak_mib"]
        print(as_line(row), flush=True)
        found.append(row)
    return found


def as_line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    parts = [
        f"{row[of]['median_ms']:.0f} ± {row[of]['iqr_ms'] / 2:.0f} ms, {row[of]['peak_mib']:.0f} MiB"
        for of in ("original", "hyperkern")
    ]
    return (
        f"| {row['loss']} | {row['n']} | {' | '.join(parts)} | {row['times_faster']:.2f} | {row['times_smaller']:.1f} |"
    )


def main() -> None:
    """Measures everything, or in a child process one peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--large", type=int, nargs=2, default=(32768, 256), metavar=("N", "D"), help="for the memory")
    parser.add_argument("--part", choices=("pairs", "peaks"), help="one of the two tables; by default both")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak is not None:
        name, which, rows, dim = args.peak
        measure_peak(name, which, int(rows), int(dim))
        return
    result: dict[str, Any] = {}
    if args.part != "peaks":
        print("| loss | N | original | hyperkern | times faster | times smaller |\n|---|---:|---:|---:|---:|---:|")
        result["pairs"] = compare(args.rows, args.dim, args.rounds)
    if args.part != "pairs":
        result["peaks"] = peaks(*args.large)
    if args.json:
        save(Path(args.json), result)


def peaks(rows: int, dim: int) -> list[dict[str, Any]]:
    """The peak memory of every loss of the package."""
    print(f"\n| loss + gradient, N = {rows}, D = {dim} | peak MiB |\n|---|---:|")
    found = []
    for name in OWN:
        found.append({"loss": name, "n": rows, "d": dim, "peak_mib": peak(name, "hyperkern", rows, dim) / MEBIBYTE})
        print(f"| {name} | {found[-1]['peak_mib']:.0f} |", flush=True)
    return found


def save(path: Path, result: dict[str, Any]) -> None:
    """Writes results beside those of the other part, if they are there."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "hyperkern": hk.__version__}
    path.write_text(json.dumps(saved | versions | machine | result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
