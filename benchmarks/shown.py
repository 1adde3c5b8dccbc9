"""Tables of the documentation, made of committed results."""

from collections.abc import Callable, Sequence

from .estimate import HEADS, Estimates
from .estimate import lines as of_estimates
from .measured import Measured, Measurements, read, read_committed
from .ranks import TRANSPORTS, Ranked
from .repeats import Repeats
from .studies import DROP_INS
from .tables import table
from .trainers import GATE_STEPS, Step, Steps, beside, share

# How much longer a step may take with a drop-in than with the original.
MOST_OF_A_STEP = 1.05
# What no loss exceeds at N = 32,768, D = 256.
MOST_BYTES = 300e6
Beside = list[tuple[Measured, Measured]]


def _on(found: Measurements) -> str:
    machine = found.machine
    torch = str(machine.torch).split("+")[0]
    return f"{machine.processor}, {machine.threads} thread(s), torch {torch}"


def _beside(rows: Sequence[Measured]) -> Beside:
    """Original and drop-in of each loss, at the largest size that both were measured at."""
    found: dict[str, tuple[Measured, Measured]] = {}
    places = {(row.case, row.implementation, row.n): row for row in rows if row.median_ms}
    for (case, name, n), row in sorted(places.items(), key=lambda place: place[0][2]):
        if name == "hyperkern" and (case, "original", n) in places:
            found[case] = places[case, "original", n], row
    return [found[case] for case in DROP_INS if case in found]


def _ratios(original: Measured, own: Measured) -> tuple[float, float]:
    """How often the drop-in is faster, and smaller."""
    return original.ms / own.ms, original.mib / own.mib


def drop_ins() -> str:
    """The libraries' losses and what replaces them."""
    lines = []
    for original, own in _beside(read("drop_ins_cpu").rows):
        faster, smaller = _ratios(original, own)
        cells = [original.time_and_memory, own.time_and_memory, f"{faster:.2f}", f"{smaller:.1f}"]
        lines.append([own.case, str(own.n), *cells])
    return table(["loss", "N", "original", "hyperkern", "times faster", "times smaller"], lines)


def worse(rows: Sequence[Measured]) -> str:
    """Where the original is the better one."""
    ratios = {own.case: _ratios(original, own) for original, own in _beside(rows)}
    slower, larger = (", ".join(case for case, of in ratios.items() if of[i] < 1) or "none" for i in (0, 1))
    return f"Slower than the original: {slower}. Larger: {larger}."


def drop_ins_on() -> str:
    """What they were measured with."""
    found = read("drop_ins_cpu")
    libraries = dict.fromkeys(f"{row.package} {row.version}" for row in found.rows if row.implementation == "original")
    return f"D = {found.rows[0].d}. Measured on {_on(found)}, beside {', '.join(libraries)}."


def peaks() -> str:
    """The memory of large batches."""
    rows = [row for row in read("peaks_cpu").rows if row.peak_bytes]
    return table(["loss", "peak MiB"], [[f"`{row.case}`", f"{row.mib:.0f}"] for row in rows])


def peaks_on() -> str:
    """What they belong to."""
    found = read("peaks_cpu")
    rows = [row for row in found.rows if row.peak_bytes]
    most, mib = max(rows, key=lambda row: row.mib), 1 << 20
    return (
        f"N = {most.n:,}, D = {most.d}: an input has {most.n * most.d * 4 / mib:.0f} MiB, and so has each gradient, "
        f"which is counted; a matrix of all pairs would have {most.n**2 * 4 / mib:.0f}. At most 300 MB, "
        f"{MOST_BYTES / mib:.0f} MiB, are promised; the most is {most.mib:.0f} MiB of `{most.case}`. "
        f"Measured on {_on(found)}."
    )


def ranks() -> str:
    """Losses over ranks beside one process."""
    found = read_committed("ranks_cpu", Ranked)
    kinds = ("one process", *TRANSPORTS)
    heads = ["loss + gradient", "N", "one process", f"{found.ranks} ranks, gathered", f"{found.ranks} ranks, ring"]
    places = {(row.case, row.implementation): row for row in found.rows}
    lines = []
    for case in dict.fromkeys(row.case for row in found.rows):
        lines.append([f"`{case}`", f"{places[case, kinds[0]].n:,}", *(places[case, k].time_and_memory for k in kinds)])
    return table(heads, lines)


def cached() -> str:
    """Memory and time of `cached_step`."""
    places = {(row.case, row.implementation, row.n): row for row in read("steps_cpu").rows}
    heads = ["pairs", "embeddings", "the loss alone", "cached_step", "ordinary step", "time of the same chunks by hand"]
    lines = []
    for n in sorted({n for _, _, n in places}):
        ways = (("align_uniform", "hyperkern"), *(("step of align_uniform", w) for w in ("cached_step", "one-shot")))
        sizes = [f"{places[case, name, n].mib:.0f} MiB" for case, name in ways]
        own, by_hand = (places["step of alignment", way, n].ms for way in ("cached_step", "by-hand"))
        embeddings = 2 * n * places["align_uniform", "hyperkern", n].d * 4 / (1 << 20)
        lines.append([f"{n:,}", f"{embeddings:.0f} MiB", *sizes, f"{own / by_hand:.2f}"])
    return table(heads, lines)


def estimate() -> str:
    """How good the estimate of uniformity is."""
    return table(list(HEADS), of_estimates(read_committed("estimate", Estimates).rows))


def repeats() -> str:
    """How often nothing was called a regression."""
    found = read_committed("repeats_cpu", Repeats)
    runs = found.runs
    failed, once = sum(run.status != 0 for run in runs), sum(run.not_again for run in runs)
    low, high = min(run.smallest_ratio for run in runs), max(run.largest_ratio for run in runs)
    beside = f"Of {len(runs)} runs of {runs[0].rows} rows beside a first one with `--fail-over "
    verdicts = (
        f"{100 * found.threshold:g}%`, nothing changed, {failed} failed; {once} rows were slower, but not every time"
    )
    return f"{beside}{verdicts}. The ratios of medians went from {low:.2f} to {high:.2f}."


def trainers() -> str:
    """Steps in trainers."""
    heads = [
        "trainer, loss",
        "N",
        "original",
        "hyperkern",
        "hyperkern ÷ original",
        "share of the original",
        "of hyperkern",
    ]
    lines = []
    for original, own, without in beside(read_committed("trainers_cpu", Steps).rows):
        shares = [f"{100 * share(row, without):.0f} %" for row in (original, own)]
        times = [f"{row.ms:.3g} ± {row.half_ms:.2g} ms" for row in (original, own)]
        lines.append([own.case, str(own.n), *times, f"{own.ms / original.ms:.2f}", *shares])
    return table(heads, lines)


def trainers_on() -> str:
    """What they were measured with."""
    found = read_committed("trainers_cpu", Steps)
    libraries = dict.fromkeys(f"{row.package} {row.version}" for row in found.rows if row.package)
    apart = max(row.error or 0.0 for row in found.rows)
    return (
        f"D = {found.rows[0].d}. Measured on {_on(found)}, with {', '.join(libraries)}. Of {GATE_STEPS} steps from the "
        f"same weights the losses were {apart:.1g} of the original's apart at most."
    )


def longer(rows: Sequence[Step]) -> str:
    """Where a step takes longer than it may."""
    over = [f"{own.case} at N = {own.n}" for original, own, _ in beside(rows) if own.ms > MOST_OF_A_STEP * original.ms]
    return f"More than {100 * (MOST_OF_A_STEP - 1):.0f} % longer than with the original: {'; '.join(over) or 'none'}."


BLOCKS: dict[str, Callable[[], str]] = {
    "drop-ins": drop_ins,
    "drop-ins measured": drop_ins_on,
    "drop-ins worse": lambda: worse(read("drop_ins_cpu").rows),
    "trainers": trainers,
    "trainers measured": trainers_on,
    "trainers longer": lambda: longer(read_committed("trainers_cpu", Steps).rows),
    "peaks": peaks,
    "peaks measured": peaks_on,
    "ranks": ranks,
    "cached": cached,
    "estimate": estimate,
    "repeats": repeats,
}
