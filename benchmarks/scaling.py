"""The cost of a loss over many GPUs, by a model: what docs/scaling.md shows. Nothing here is measured.

``python -m benchmarks.scaling [--rate FLOP/s] [--dim D]`` prints its tables in Markdown.
"""

import argparse
from typing import NamedTuple

# Predicted for one H200 in bfloat16 at D = 128 (docs/performance.md); a measured rate goes here once there is one.
RATE = 490e12
# Bytes per second that a GPU receives: NVLink 4 inside a machine, one 400 Gb/s port for each GPU between machines.
LINKS = {"NVLink, 450 GB/s": 450e9, "network, 50 GB/s": 50e9}
# What a hop costs beside its bytes: launching and synchronising a send and a receive.
HOP_SECONDS = 20e-6
BYTES = 4  # unit rows travel in float32
CASES = [(8, 1 << 16), (8, 1 << 20), (64, 1 << 20), (64, 1 << 22), (1024, 1 << 20), (1024, 1 << 24)]


class Loss(NamedTuple):
    """What a loss does for each pair of a row here and a row anywhere, in multiples of D.

    Attributes:
        flops: loss and gradient.
        trips: how often a row travels around the ring.
        views: rows that travel for each row of the batch.
        flops_per_trip: the least arithmetic that a trip has to hide behind.
    """

    flops: int
    trips: int
    views: int
    flops_per_trip: int


LOSSES = {
    "uniformity": Loss(4, 1, 1, 4),  # similarity and gradient in one pass
    "align_uniform": Loss(8, 2, 1, 4),
    "clip_loss": Loss(10, 3, 1, 2),  # sums; then the gradient of either side
    "nt_xent": Loss(24, 2, 2, 8),
}


class Cost(NamedTuple):
    """Seconds of one loss + gradient on each of many GPUs, and bytes that each of them holds of other ranks' rows."""

    compute: float
    transfer: float
    ring: float
    gather: float
    ring_bytes: float
    gather_bytes: float


def cost(loss: Loss, gpus: int, rows: int, dim: int, rate: float, link: float) -> Cost:
    """The model: the ring hides a hop behind the shard before, the gather hides behind the rank's own rows alone."""
    own = rows / gpus
    shard_bytes = loss.views * own * dim * BYTES
    compute = loss.flops * own * rows * dim / rate
    hop = shard_bytes / link + HOP_SECONDS
    transfer = loss.trips * (gpus - 1) * hop
    # A trip's arithmetic over one shard, against the hop that brings the next.
    per_shard = loss.flops / loss.trips * own * own * dim / rate
    ring = loss.trips * gpus * per_shard + loss.trips * (gpus - 1) * max(0.0, hop - per_shard)
    # Gathered once: a softmax loss keeps the rows for its backward, whose columns are the other side's rows.
    gathers = min(loss.trips, 2) if loss.views == 1 else 1
    gathered = gathers * (gpus - 1) * shard_bytes / link
    gather = compute + max(0.0, gathered - compute / gpus)
    return Cost(compute, transfer, ring, gather, 3 * shard_bytes, gpus * shard_bytes)


def hiding_rows(loss: Loss, rate: float, link: float) -> float:
    """Rows of a GPU from which on a hop hides behind the arithmetic of one shard, whatever D and the number of GPUs.

    ``flops n^2 D / rate >= views n D bytes / link`` has neither in it.
    """
    return loss.views * BYTES * rate / (loss.flops_per_trip * link)


def hiding_table(rate: float) -> str:
    """Rows of each GPU from which on the ring costs nothing."""
    lines = [f"| rows of each GPU | {' | '.join(LINKS)} |", f"|---|{'---:|' * len(LINKS)}"]
    for name, loss in LOSSES.items():
        cells = (f"{hiding_rows(loss, rate, link):,.0f}" for link in LINKS.values())
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """With two digits or three."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cost_table(name: str, rate: float, dim: int) -> str:
    """Times and memory of a loss over GPUs and batches."""
    head = "| GPUs | batch | arithmetic ms | " + " | ".join(f"ring / gather ms, {link}" for link in LINKS)
    lines = [f"{head} | ring / gather MB |", f"|---:|---:|---:|{'---:|' * len(LINKS)}---:|"]
    for gpus, rows in CASES:
        costs = [cost(LOSSES[name], gpus, rows, dim, rate, link) for link in LINKS.values()]
        times = (f"{milliseconds(c.ring)} / {milliseconds(c.gather)}" for c in costs)
        memory = f"{costs[0].ring_bytes / 1e6:,.1f} / {costs[0].gather_bytes / 1e6:,.0f}"
        lines.append(f"| {gpus} | {rows:,} | {milliseconds(costs[0].compute)} | {' | '.join(times)} | {memory} |")
    return "\n".join(lines)


def tables(rate: float = RATE, dim: int = 128) -> list[str]:
    """All tables of docs/scaling.md."""
    return [hiding_table(rate), cost_table("align_uniform", rate, dim), cost_table("clip_loss", rate, dim)]


def main() -> None:
    """Prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=RATE, help="FLOP/s of one GPU (%(default)g)")
    parser.add_argument("--dim", type=int, default=128, help="dimension of the features (%(default)s)")
    args = parser.parse_args()
    print("\n\n".join(tables(args.rate, args.dim)))


if __name__ == "__main__":
    main()
