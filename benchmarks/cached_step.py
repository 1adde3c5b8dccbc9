"""`hyperkern.cached_step` beside the ordinary step, on a CPU: peak memory and time by the size of the batch.

``python -m benchmarks.cached_step [--json FILE]``. The encoder and the images are those of the demo. Times are those of
one thread on the processor, so that what else runs on the machine counts little.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hyperkern as hk
from examples.digits.data import load
from examples.digits.encoder import new_encoder
from hyperkern.memory import PeakMemory

DIM = 64
MEBIBYTE = 1 << 20
CPU = torch.device("cpu")
# Wall-clock seconds of one batch size beyond which no more rounds are taken.
PATIENCE = 20.0

Loss = Callable[..., Any]
Step = Callable[[nn.Module, list[Tensor], Loss, int], None]


def align_uniform(x: Tensor, y: Tensor) -> Tensor:
    return hk.align_uniform(x, y).loss


# Whose time is measured up to how many rows: all pairs take ever more of it, alignment next to nothing, so that what is
# left is the encoding.
LOSSES: dict[str, tuple[Loss, int]] = {"alignment": (hk.alignment, 1 << 30), "align_uniform": (align_uniform, 8192)}


def views(rows: int) -> list[Tensor]:
    """Two noisy copies of the training images, repeated, ``(rows, 1, 8, 8)``."""
    images = load(CPU).train_images
    repeated = images.repeat(-(-rows // len(images)), 1, 1, 1)[:rows]
    generator = torch.Generator().manual_seed(0)
    return [repeated + 0.1 * torch.randn(repeated.shape, generator=generator) for _ in range(2)]


def one_shot(encoder: nn.Module, inputs: list[Tensor], loss: Loss, chunk: int) -> None:
    loss(*(encoder(images) for images in inputs)).backward()


def cached(encoder: nn.Module, inputs: list[Tensor], loss: Loss, chunk: int) -> None:
    hk.cached_step(encoder, inputs, loss, chunk_size=chunk)


def forward(encoder: nn.Module, inputs: list[Tensor], loss: Loss, chunk: int) -> None:
    with torch.no_grad():
        for images in inputs:
            for part in images.split(chunk):
                encoder(part)


def bare(encoder: nn.Module, inputs: list[Tensor], loss: Loss, chunk: int) -> None:
    """The arithmetic of the cached step and nothing else: no random numbers, no buffers, no checks."""
    with torch.no_grad():
        embeddings = [torch.cat([encoder(part) for part in images.split(chunk)]) for images in inputs]
    for rows in embeddings:
        rows.requires_grad_()
    loss(*embeddings).backward()
    for images, rows in zip(inputs, embeddings, strict=True):
        for part, gradient in zip(images.split(chunk), rows.grad.split(chunk), strict=True):
            encoder(part).backward(gradient)


def loss_alone(encoder: nn.Module, inputs: list[Tensor], loss: Loss, chunk: int) -> None:
    """Loss and gradient of ready embeddings: what any step needs that takes the whole batch."""
    loss(*(torch.randn(len(images), DIM, requires_grad=True) for images in inputs)).backward()


TIMED: dict[str, Step] = {"cached": cached, "one_shot": one_shot, "forward": forward, "bare": bare}
STEPS = TIMED | {"loss_alone": loss_alone}


def seconds(loss: Loss, rows: int, chunk: int, rounds: int) -> dict[str, float]:
    """The median processor times of all steps, taken in turns, so that all meet the same machine."""
    encoder, inputs = new_encoder(DIM, 0, CPU), views(rows)
    for step in TIMED.values():
        step(encoder, [images[:chunk] for images in inputs], loss, chunk)
    times: dict[str, list[float]] = {name: [] for name in TIMED}
    started = time.perf_counter()
    for _ in range(rounds):
        for name, step in TIMED.items():
            encoder.zero_grad()
            start = time.process_time()
            step(encoder, inputs, loss, chunk)
            times[name].append(time.process_time() - start)
        if time.perf_counter() - started > PATIENCE:
            break
    found = {name: statistics.median(of) for name, of in times.items()}
    ideal = found["one_shot"] + found["forward"]
    shares = {"over_ideal": found["cached"] / ideal, "over_bare": found["cached"] / found["bare"]}
    return {"rounds": len(times["cached"])} | found | shares


def peak(name: str, rows: int, chunk: int) -> float:
    """Peak extra memory of a step in bytes, in a process of its own: without the inputs, with the gradients."""
    command = [sys.executable, "-m", "benchmarks.cached_step", "--peak", name, str(rows), str(chunk)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.splitlines()[-1])


def measure_peak(name: str, rows: int, chunk: int) -> None:
    """The child of `peak`."""
    encoder, inputs = new_encoder(DIM, 0, CPU), views(rows)
    # The libraries' own buffers are not the step's.
    STEPS[name](encoder, [images[:256] for images in inputs], align_uniform, chunk)
    encoder.zero_grad()
    with PeakMemory(CPU) as memory:
        STEPS[name](encoder, inputs, align_uniform, chunk)
    print(memory.rise)


def check(chunk: int) -> None:
    """The gate before the clock: the gradients of the ordinary step, in float64, where nothing depends on the chunk."""
    encoder = new_encoder(DIM, 0, CPU).double().eval()
    inputs = [images.double() for images in views(2 * chunk + 1)]
    found = []
    for step in (cached, one_shot):
        step(encoder, inputs, align_uniform, chunk)
        found.append([p.grad for p in encoder.parameters()])
        encoder.zero_grad()
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 1e-12 * want.abs().max()


def peaks(rows: int, chunk: int, most: int) -> dict[str, Any]:
    """A row of the table of memory, in MiB."""
    row: dict[str, Any] = {"n": rows, "chunk": chunk, "d": DIM, "embeddings": round(2 * rows * DIM * 4 / MEBIBYTE, 1)}
    for name in ("loss_alone", "cached", "one_shot"):
        row[name] = round(peak(name, rows, chunk) / MEBIBYTE) if name != "one_shot" or rows <= most else None
    row["beyond_the_loss"] = row["cached"] - row["loss_alone"]
    columns = [row[name] for name in ("embeddings", "loss_alone", "cached", "one_shot", "beyond_the_loss")]
    print(f"| {rows} | {' | '.join('' if value is None else f'{value:.0f}' for value in columns)} |", flush=True)
    return row


def times(rows: int, chunk: int, rounds: int) -> dict[str, Any]:
    """A row of the table of times."""
    row: dict[str, Any] = {"n": rows, "chunk": chunk, "d": DIM}
    line = [str(rows)]
    for name, (loss, most) in LOSSES.items():
        if rows <= most:
            row[name] = seconds(loss, rows, chunk, rounds)
            line += [f"{row[name]['cached']:.2f}", f"{row[name]['over_ideal']:.2f}", f"{row[name]['over_bare']:.2f}"]
    print(f"| {' | '.join(line)} |", flush=True)
    return row


def main() -> None:
    """Measures everything, or in a child process one peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024 << i for i in range(7)])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one-shot", type=int, default=65536, help="the most rows whose ordinary step is weighed")
    parser.add_argument("--part", choices=("peaks", "times"), help="one of the two tables; by default both")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak is not None:
        name, rows, chunk = args.peak
        measure_peak(name, int(rows), int(chunk))
        return
    check(args.chunk)
    result: dict[str, Any] = {}
    if args.part != "times":
        print("| N | embeddings | loss alone | cached | one-shot | cached - loss |\n|---:|---:|---:|---:|---:|---:|")
        result["peaks_mib"] = [peaks(rows, args.chunk, args.one_shot) for rows in args.rows]
    if args.part != "peaks":
        columns = [f"{name}, s | of one-shot + forward | of bare chunks" for name in LOSSES]
        print(f"\n| N | {' | '.join(columns)} |\n|{'---:|' * (1 + 3 * len(LOSSES))}")
        result["times_s"] = [times(rows, args.chunk, args.rounds) for rows in args.rows]
    if args.json:
        save(Path(args.json), result)


def save(path: Path, result: dict[str, Any]) -> None:
    """Writes results beside those of the other part, if they are there."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = {"processor": platform.processor() or platform.machine(), "threads": 1}
    versions = {"torch": torch.__version__, "hyperkern": hk.__version__}
    path.write_text(json.dumps(saved | versions | machine | result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
