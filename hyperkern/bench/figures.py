"""The figures of a benchmark: time and memory against N, the roofline, ratios to the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from .. import format
from . import svg
from .result import Limit, Result, Row
from .svg import WIDTH, Axis, Mark

T = TypeVar("T")
KINDS = ("time", "memory", "roofline", "ratio")
LEFT, TOP, PLOT = 58, 30, 210
SPOKEN = 8  # values in a caption; the label has them all
SMALLEST_MEMORY = 1024.0  # what needs none has no place on a logarithmic axis either
TITLES = {
    "time": "Time against N",
    "memory": "Peak memory against N",
    "roofline": "Roofline: FLOP/s against FLOP per byte",
    "ratio": "Speed relative to the baseline",
}


class Setting(NamedTuple):
    """How the work was run; times of one setting stand in one figure."""

    mode: str
    execution: str
    dtype: str

    def __str__(self) -> str:
        """For a heading."""
        mode = "forward and backward" if self.mode == "both" else self.mode
        return f"{mode}, {self.execution}, {self.dtype}"


class Panel(NamedTuple):
    """The rows of one case, one setting and one feature dimension: what a group of figures shows."""

    case: str
    setting: Setting
    d: int
    rows: list[Row]

    @property
    def sizes(self) -> list[int]:
        """Every N, in order."""
        return sorted({row.n for row in self.rows})


def unique(values: Iterable[T]) -> list[T]:
    """Every value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def settings(result: Result) -> list[Setting]:
    """The settings, in the order of the file."""
    return unique(Setting(row.mode, row.execution, row.dtype) for row in result.rows)


def panels(result: Result, case: str | None = None) -> list[Panel]:
    """The panels of one case or of all, by case, setting and D."""
    found: dict[tuple[str, Setting, int], list[Row]] = {}
    for row in result.rows:
        if case in (None, row.case):
            found.setdefault((row.case, Setting(row.mode, row.execution, row.dtype), row.d), []).append(row)
    cases, order = unique(row.case for row in result.rows), settings(result)
    keys = sorted(found, key=lambda key: (cases.index(key[0]), order.index(key[1]), key[2]))
    return [Panel(*key, found[key]) for key in keys]


class Drawing(NamedTuple):
    """A figure, and what it says in a sentence."""

    image: str
    caption: str


def marks(result: Result) -> dict[str, Mark]:
    """One look for each implementation, the same in every figure."""
    own = {row.implementation for row in result.rows if row.package == "hyperkern"}
    own_first = sorted(result.rows, key=lambda row: row.package != "hyperkern")
    names = unique(row.implementation for row in own_first)
    return {name: Mark(index, name in own) for index, name in enumerate(names)}


def draw(kind: str, panel: Panel, looks: Mapping[str, Mark], limit: Limit | None) -> Drawing:
    """Draw one figure.

    Args:
        kind: one of `KINDS`.
        panel: what it shows.
        looks: from `marks`.
        limit: what the machine reaches in the panel's dtype, if it was measured.

    Returns:
        An SVG element that carries its caption as its label, and the caption.
    """
    if kind == "time":
        return _time(panel, looks)
    if kind == "memory":
        return _memory(panel, looks)
    if kind == "roofline":
        return _roofline(panel, looks, limit)
    return _ratio(panel, looks)


def _time(panel: Panel, looks: Mapping[str, Mark]) -> Drawing:
    floor = {n: min(row.floor_ms for row in panel.rows if row.n == n and row.floor_ms) for n in _floored(panel)}

    def value(row: Row) -> float | None:
        return row.median_ms

    def band(row: Row) -> tuple[float, float]:
        median = row.median_ms or 0.0
        return row.p20_ms or median, row.p80_ms or median

    return _against_n("time", panel, looks, value, format.milliseconds, band=band, floor=floor)


def _memory(panel: Panel, looks: Mapping[str, Mark]) -> Drawing:
    def value(row: Row) -> float | None:
        return None if row.peak_bytes is None else max(row.peak_bytes, SMALLEST_MEMORY)

    return _against_n("memory", panel, looks, value, format.memory)


def _against_n(
    kind: str,
    panel: Panel,
    looks: Mapping[str, Mark],
    value: Callable[[Row], float | None],
    unit: Callable[[float], str],
    *,
    band: Callable[[Row], tuple[float, float]] | None = None,
    floor: Mapping[int, float] | None = None,
) -> Drawing:
    series = _series(panel, looks, value)
    if not series:
        return _empty(kind, panel, "No value was recorded.")
    floor = floor or {}
    shown = [
        number for rows in series.values() for row in rows for number in [value(row), *(band(row) if band else ())]
    ]
    x = Axis.around(panel.sizes, LEFT, WIDTH - 8, least=2.5)
    apart = all(x.at(b) - x.at(a) > len(f"{b}") * svg.CHARACTER + 8 for a, b in pairwise(panel.sizes))
    sizes = panel.sizes if apart and len(panel.sizes) <= 6 else x.powers(2, 6)
    y = Axis.around([*(number for number in shown if number), *floor.values()], TOP + PLOT, TOP)
    ticks = y.powers(2, 6) if kind == "memory" else y.decimals()
    parts = svg.grid(x, y, [(n, f"{n:.0f}") for n in sizes], [(tick, unit(tick)) for tick in ticks])
    entries: list[svg.Entry] = []
    for name, rows in reversed(series.items()):  # our own last, above the others
        mark = looks[name]
        for run in _unbroken(rows, panel.sizes):
            points = [(x.at(row.n), y.at(value(row) or 1.0)) for row in run]
            if band:
                lower, upper = ([(x.at(row.n), y.at(band(row)[side])) for row in run] for side in (0, 1))
                parts.append(svg.area(lower, upper, mark))
            parts.append(mark.line(points))
            parts += [mark.marker(*point) for point in points]
        entries.insert(0, (name, "name" if mark.own else "", mark.swatch))
    if floor:
        line = [(x.at(n), y.at(ms)) for n, ms in floor.items()]
        if len(line) == 1:
            line = [(line[0][0] - 40, line[0][1]), (line[0][0] + 40, line[0][1])]
        parts.append(_limit_line(line))
        entries.append(("floor", "muted", lambda left, at: _limit_line([(left, at), (left + 26, at)])))
    return _finish(kind, panel, parts, entries, "N", _values(panel, value, unit))


def _roofline(panel: Panel, looks: Mapping[str, Mark], limit: Limit | None) -> Drawing:
    def intensity(row: Row) -> float:
        return (row.flops or 0.0) / (row.bytes or math.inf)

    def achieved(row: Row) -> float | None:
        return row.tflops * 1e12 if row.tflops and intensity(row) else None

    def unit(number: float) -> str:
        return format.rate(number, "FLOP/s")

    series = _series(panel, looks, achieved)
    if not series:
        return _empty("roofline", panel, "No FLOPs or bytes were recorded.")
    across = [intensity(row) for rows in series.values() for row in rows]
    up = [number for rows in series.values() for row in rows if (number := achieved(row))]
    peak, copy = (limit.flops, limit.bytes) if limit else (None, None)
    ridge = peak / copy if peak and copy else None
    if peak:
        up.append(peak)
    if ridge:
        across += [ridge / 2, ridge * 2]
    x = Axis.around(across, LEFT, WIDTH - 8)
    y = Axis.around(up, TOP + PLOT, TOP + 6)
    parts = svg.grid(
        x,
        y,
        [(tick, format.digits(tick)) for tick in x.decimals(5)],
        [(tick, format.rate(tick, "")) for tick in y.decimals()],
    )
    if peak:
        parts += _roof(x, y, peak, copy)
    entries: list[svg.Entry] = []
    for name, rows in reversed(series.items()):
        mark = looks[name]
        points = [(x.at(intensity(row)), y.at(achieved(row) or 1.0)) for row in rows]
        parts.append(mark.line(points))
        parts += [mark.marker(*point) for point in points]
        entries.insert(0, (name, "name" if mark.own else "", mark.swatch))
    if copy:
        key = f"limit, copy {format.rate(copy, 'B/s')}"
        entries.append((key, "muted", lambda left, at: _limit_line([(left, at), (left + 26, at)], " roof")))
    return _finish(
        "roofline", panel, parts, entries, "FLOP per byte", _values(panel, achieved, unit, more_is_better=True)
    )


def _roof(x: Axis, y: Axis, peak: float, copy: float | None) -> list[str]:
    ridge = max(peak / copy, x.low) if copy else x.low
    line = [(x.at(ridge), y.at(peak)), (x.end, y.at(peak))]
    label = f"matrix rate {format.rate(peak, 'FLOP/s')}"
    parts = [svg.words(x.end, y.at(peak) - 6, label, "tick end")]
    if copy and ridge > x.low:
        begin = max(x.low, y.low / copy)
        line.insert(0, (x.at(begin), y.at(begin * copy)))
    return [_limit_line(line, " roof"), *parts]


def _ratio(panel: Panel, looks: Mapping[str, Mark]) -> Drawing:
    sizes = [row.n for row in panel.rows if row.vs_baseline]
    if not sizes:
        return _empty("ratio", panel, "The baseline was not timed.")
    n = max(sizes)
    at_n = [row for row in panel.rows if row.n == n]
    ranked = sorted((row for row in at_n if row.vs_baseline), key=lambda row: -(row.vs_baseline or 0.0))
    others = [row for row in at_n if not row.vs_baseline]
    height, pitch = 12.0, 34.0
    bottom = TOP + pitch * len(ranked) + 4
    values = [row.vs_baseline or 1.0 for row in ranked]
    x = Axis.around([*values, 1.0], 0, WIDTH, least=4)
    parts = []
    for tick in x.decimals(5):
        at = x.at(tick)
        parts.append(f'<path class="grid" d="M{at:.1f},{TOP:.1f}V{bottom:.1f}"/>')
        parts.append(svg.tick(at, bottom + 17, f"{format.digits(tick)}×"))
    one = x.at(1.0)
    parts.append(f'<path class="limit roof" d="M{one:.1f},{TOP + 16:.1f}V{bottom:.1f}"/>')
    for index, (row, speedup) in enumerate(zip(ranked, values, strict=True)):
        mark = looks[row.implementation]
        top = TOP + index * pitch + 18
        left, right = sorted((x.at(1.0), x.at(speedup)))
        parts.append(
            f'<rect class="bar {mark.classes}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 2):.1f}" '
            f'height="{height}" rx="2"/>'
        )
        name = "name" if mark.own else ""
        parts.append(svg.words(0, top - 5, row.implementation, name, WIDTH - 90))
        parts.append(svg.words(WIDTH, top - 5, format.times(speedup), f"end {name}"))
    y = bottom + 40
    for row in others:
        why = "no ratio" if row.status == "ok" else row.status
        parts.append(svg.words(0, y, f"{row.implementation}: {why}", "muted", WIDTH))
        y += 17
    baseline = " and ".join(unique(row.baseline for row in ranked if row.baseline)) or "the baseline"
    title = f"Speed relative to {baseline}, N = {n}"
    spoken = ", ".join(f"{row.implementation} {format.times(row.vs_baseline or 1.0)}" for row in ranked)
    parts.insert(0, svg.words(0, 16, title, "name", WIDTH))
    caption = f"Time of {baseline} divided by the own time at N = {n}; to the right is faster."
    return Drawing(svg.document(parts, y - 12, f"{_where(panel)}. {title}: {spoken}. {caption}"), caption)


def _series(panel: Panel, looks: Mapping[str, Mark], value: Callable[[Row], float | None]) -> dict[str, list[Row]]:
    """What was measured, by implementation: our own first, the others as they end on the plot, topmost first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(panel.rows, key=lambda row: row.n):
        if row.status == "ok" and value(row):
            found.setdefault(row.implementation, []).append(row)
    names = sorted(found, key=lambda name: (not looks[name].own, -found[name][-1].n, -(value(found[name][-1]) or 0.0)))
    return {name: found[name] for name in names}


def _unbroken(rows: Sequence[Row], sizes: Sequence[int]) -> list[list[Row]]:
    """Rows of neighbouring sizes: no line crosses a size at which the implementation has no time."""
    runs: list[list[Row]] = []
    for row in rows:
        if runs and sizes.index(row.n) - sizes.index(runs[-1][-1].n) == 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _floored(panel: Panel) -> list[int]:
    return sorted({row.n for row in panel.rows if row.floor_ms})


def _limit_line(points: Sequence[svg.Point], classes: str = "") -> str:
    return f'<path class="limit{classes}" d="M{"L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _where(panel: Panel) -> str:
    return f"{panel.case}, D = {panel.d}, {panel.setting}"


def _values(
    panel: Panel, value: Callable[[Row], float | None], unit: Callable[[float], str], *, more_is_better: bool = False
) -> list[str]:
    """What was reached at the largest size that any was timed at, the best first."""
    found = [(row.n, number, row.implementation) for row in panel.rows if row.status == "ok" and (number := value(row))]
    largest = max(n for n, _, _ in found)
    ends = sorted(((number, name) for n, number, name in found if n == largest), reverse=more_is_better)
    return [f"N = {largest}", *(f"{name} {unit(number)}" for number, name in ends)]


def _finish(
    kind: str,
    panel: Panel,
    parts: Sequence[str],
    entries: Sequence[svg.Entry],
    across: str,
    values: Sequence[str],
) -> Drawing:
    below = TOP + PLOT
    title = svg.words(0, 16, TITLES[kind], "name")
    axis = svg.words(WIDTH - 8, below + 32, across, "tick end muted")
    key, end = svg.legend(entries, below + 42)
    at, *ends = values
    rest = f" and {len(ends) - SPOKEN} more" if len(ends) > SPOKEN else ""
    caption, whole = f"At {at}: {', '.join(ends[:SPOKEN])}{rest}.", f"At {at}: {', '.join(ends)}."
    return Drawing(svg.document([title, *parts, axis, *key], end, f"{_where(panel)}. {TITLES[kind]}. {whole}"), caption)


def _empty(kind: str, panel: Panel, why: str) -> Drawing:
    parts = [svg.words(0, 16, TITLES[kind], "name"), svg.words(WIDTH / 2, 60, "nothing to show", "middle muted")]
    return Drawing(svg.document(parts, 90, f"{_where(panel)}. {TITLES[kind]}: {why}"), why)
