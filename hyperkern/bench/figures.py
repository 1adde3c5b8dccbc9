"""The figures of a benchmark by matplotlib: time and memory against N, the roofline, ratios to the baseline."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from .. import format
from .result import Limit, Result, Row

T = TypeVar("T")
TITLES = {
    "time": "Time against N",
    "memory": "Peak memory against N",
    "roofline": "Roofline: FLOP/s against FLOP per byte",
    "ratio": "Speed relative to the baseline",
}
# After Okabe and Ito, whose colours stay apart under the common colour-vision deficiencies; darker on white and
# lighter on black, until each has the contrast of 3 that graphics need. Drawn with the first, named in the image.
COLORS = {
    **{"s0": ("#0072b2", "#5ab8ee"), "s1": ("#c95800", "#f58a42"), "s2": ("#00825f", "#35c79b")},
    **{"s3": ("#a8478a", "#e48fc2"), "s4": ("#826600", "#e0c445"), "s5": ("#4d5560", "#b9c1cb")},
    **{"s6": ("#2389bf", "#86d5ef"), "s7": ("#7a52c7", "#b49af2"), "ground": ("#ffffff", "#171b21")},
    **{"ink": ("#1b1f24", "#e8ebef"), "muted": ("#59616b", "#a3acb8"), "grid": ("#dfe3e8", "#333a44")},
}
GROUND, INK, MUTED, GRID = (COLORS[name][0] for name in ("ground", "ink", "muted", "grid"))
# Seven shapes, filled and hollow, and four dashes: 28 implementations that a reader without colour tells apart.
MARKERS, DASHES = "os^DvPX", ("-", (0, (5, 2)), (0, (1.3, 1.5)), (0, (6, 2, 1.3, 2)))
# In points, which are user units of the image: about the width of a phone, where text keeps its size.
WIDTH, LEFT, TOP, PLOT, FONT, LINE = 380, 60, 30, 210, 12, 18
CHARACTER = 0.62 * FONT  # width of a letter, of the wider fonts
SPOKEN = 8  # values in a caption; the label has them all
_RC: Any = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": FONT, "text.color": INK, "axes.linewidth": 0},
    **{"xtick.labelsize": FONT, "ytick.labelsize": FONT, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "axes.facecolor": "none"},
    **{"xtick.major.size": 0, "ytick.major.size": 0, "axes.labelcolor": MUTED, "font.family": "DejaVu Sans Mono"},
}
# Of what matplotlib writes: groups keep the names they were given, numbers a digit, and fonts are the style sheet's.
_SMALLER = (
    (r"font-(size|family): [^;\"]*;? ?|; stroke-linecap: square", ""),
    (r" transform=\"rotate\(-0 [^)]*\)\"| clip-path=\"[^\"]*\"|xlink:", ""),
    (r'(?<=<g) id="(?:(line|band|bar|limit)|[^"]*)"', lambda found: f' class="{found[1]}"' if found[1] else ""),
    (r"(\.\d)\d+", r"\1"),
    (r"\s+(?=[LzM\"])", ""),
)
# Of each figure against N or intensity: the value of a row, and how it is written. No memory has no logarithm.
_OF_KIND: dict[str, tuple[Callable[[Row], float | None], Callable[[float], str]]] = {
    "time": (lambda row: row.median_ms, format.milliseconds),
    "memory": (lambda row: None if row.peak_bytes is None else max(row.peak_bytes, 1024.0), format.memory),
    "roofline": (lambda row: row.tflops and row.tflops * 1e12, lambda rate: format.rate(rate, "FLOP/s")),
}
_LEGEND: dict[str, Any] = {
    **{"loc": "lower left", "bbox_to_anchor": (0, 0), "borderaxespad": 0.2, "borderpad": 0, "frameon": False},
    **{"handlelength": 2.2, "handletextpad": 0.6, "columnspacing": 1.0, "labelspacing": 0.4},
}
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


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

    def __str__(self) -> str:
        """For a heading."""
        return f"{self.case}, D = {self.d}, {self.setting}"

    @property
    def timed(self) -> bool:
        """Whether there is a time to show."""
        return any(row.status == "ok" for row in self.rows)

    @property
    def sizes(self) -> list[int]:
        """Every N, in order."""
        return sorted({row.n for row in self.rows})


class Mark(NamedTuple):
    """How one implementation looks, in every figure of a page; our own in bold."""

    number: int
    own: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Of its line and markers, for matplotlib."""
        color, hollow = COLORS[f"s{self.number % 8}"][0], self.number // len(MARKERS) % 2
        face, edge = (GROUND, color) if hollow else (color, GROUND)
        return {
            **{"color": color, "linestyle": DASHES[self.number % len(DASHES)], "linewidth": 3.2 if self.own else 1.6},
            **{"marker": MARKERS[self.number % len(MARKERS)], "markersize": 8, "markerfacecolor": face},
            **{"markeredgecolor": edge, "markeredgewidth": 1.6 if hollow else 0.8},
        }

    @property
    def swatch(self) -> str:
        """Line and marker, as an image that says nothing to a reader who does not see it."""
        figure = Figure(figsize=(34 / 72, 16 / 72))
        figure.add_artist(Line2D([0.1, 0.5, 0.9], [0.5] * 3, markevery=[1], **self.style))
        return _svg(figure, "")


def unique(values: Iterable[T]) -> list[T]:
    """Every value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def panels(result: Result) -> list[Panel]:
    """The panels, by case and setting in the order of the file, and D."""
    found: dict[tuple[str, Setting, int], list[Row]] = {}
    for row in result.rows:
        found.setdefault((row.case, Setting(row.mode, row.execution, row.dtype), row.d), []).append(row)
    order = [unique(key[i] for key in found) for i in (0, 1)]
    keys = sorted(found, key=lambda key: (order[0].index(key[0]), order[1].index(key[1]), key[2]))
    return [Panel(*key, found[key]) for key in keys]


def marks(result: Result) -> dict[str, Mark]:
    """One look for each implementation, the same in every figure: our own first, then in the order of the file."""
    rows = sorted(result.rows, key=lambda row: row.package != "hyperkern")
    own = {row.implementation for row in rows if row.package == "hyperkern"}
    return {name: Mark(i, name in own) for i, name in enumerate(unique(row.implementation for row in rows))}


def style() -> str:
    """The style sheet of the figures, for a page or a file of its own; on paper they are light."""
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in COLORS.items()) for i in (0, 1))
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}.chart text{{font:{FONT}px "
        "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;"
        "paint-order:stroke;stroke:var(--ground);stroke-width:3px;stroke-linejoin:round}"  # where a line crosses words
    )


def printable(text: object) -> str:
    """Text without what neither XML nor a reader takes."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


def draw(
    kind: str, panel: Panel, looks: Mapping[str, Mark], limit: Limit | None, *, alone: bool = False
) -> tuple[str, str]:
    """Draws one figure.

    Args:
        kind: one of `TITLES`.
        panel: what it shows.
        looks: from `marks`.
        limit: what the machine reaches in the panel's dtype, if it was measured.
        alone: whether it is a file of its own, with a heading, a ground and a margin.

    Returns:
        An SVG element that carries title and values as its label, and a caption.
    """
    with warnings.catch_warnings(), matplotlib.style.context(["default", _RC]):  # whatever a user has set
        warnings.simplefilter("ignore")  # of letters that the font lacks: it measures and does not draw
        figure, caption, label = _ratio(panel, looks) if kind == "ratio" else _curves(kind, panel, looks, limit)
        heading = (f"{panel.case}, D = {panel.d}", str(panel.setting)) if alone else ()
        image = _svg(figure, f"{panel}. {label}", heading)
    whole = [printable(text) for text in (*heading, *(row.implementation for row in panel.rows))]

    def with_tooltip(found: re.Match[str]) -> str:
        title = next((text for text in whole if text.startswith(html.unescape(found[1]))), "")
        return f"><title>{html.escape(title)}</title>{found[0][1:]}"

    return re.sub(">([^<>]+)…</text>", with_tooltip, image), caption


def _curves(kind: str, panel: Panel, looks: Mapping[str, Mark], limit: Limit | None) -> tuple[Figure, str, str]:
    """A line for each implementation; the figure, its caption and its label."""
    value, unit = _OF_KIND[kind]
    rows = {(row.implementation, row.n): row for row in panel.rows if row.status == "ok"}
    values = {place: found for place, row in rows.items() if (found := value(row))}
    if not values:
        return _empty(kind, "No value was recorded.")
    last = {name: (-n, -values[name, n]) for name, n in sorted(values, key=lambda place: place[1])}
    names = sorted(last, key=lambda name: (not looks[name].own, last[name]))  # the topmost first
    roof = limit if kind == "roofline" else None
    bound: dict[str, Any] = {"color": INK, "linewidth": 1.6, "linestyle": "-" if roof else (0, (1, 2))}
    entries = {name: looks[name].style for name in names}
    if kind == "time" or roof:
        entries[f"limit, copy {format.rate(roof.bytes, 'B/s')}" if roof else "floor"] = bound
    figure, axes = _with_legend(TITLES[kind], entries, sum(looks[name].own for name in names))
    axes.set(xscale="log", yscale="log")
    for name in reversed(names):  # our own last, above the others
        own, look = {n: rows[of, n] for of, n in values if of == name}, looks[name].style
        across = [own[n].flops / own[n].bytes if kind == "roofline" and n in own else n for n in panel.sizes]
        # No line crosses a size without a time.
        axes.plot(across, [values.get((name, n), math.nan) for n in panel.sizes], gid="line", **look)
        if kind == "time":
            low, high = ([getattr(row, side) for row in own.values()] for side in ("p20_ms", "p80_ms"))
            axes.vlines(list(own), low, high, look["color"], linewidth=9, alpha=0.25, gid="band")
    left, right = _wider(axes.get_xlim(), 2.5)
    if kind == "time":
        floor = [min(row.floor_ms for row in panel.rows if row.n == n) for n in panel.sizes]
        alone = len(floor) == 1
        axes.plot((left, right) if alone else panel.sizes, floor * 2 if alone else floor, gid="limit", **bound)
    if roof:
        ridge = roof.flops / roof.bytes
        left, right = min(left, ridge / 2), max(right, 2 * ridge)
        begin = max(left, min(axes.get_ylim()[0] / roof.bytes, ridge))
        axes.plot([begin, ridge, right], [begin * roof.bytes, roof.flops, roof.flops], gid="limit", **bound)
        label = f"matrix rate {format.rate(roof.flops, 'FLOP/s')}"
        axes.annotate(label, (right, roof.flops), (0, 5), textcoords="offset points", ha="right")
    axes.set(xlim=(left, right), ylim=_wider(axes.get_ylim(), 6.0))
    label = "FLOP per byte" if kind == "roofline" else "N"
    axes.text(1, -28 / PLOT, label, transform=axes.transAxes, ha="right", color=MUTED)
    if kind == "roofline":
        _ticks(axes.xaxis, format.digits, 10, 5)
        _ticks(axes.yaxis, lambda rate: format.rate(rate, ""), 10)
    else:
        _ticks(axes.xaxis, "{:.0f}".format, 2, 6)
        _ticks(axes.yaxis, unit, 2 if kind == "memory" else 10)
    unit_x = (WIDTH - LEFT) / math.log(right / left)
    touch = (unit_x * math.log(b / a) < CHARACTER * (len(str(b)) + 1) for a, b in pairwise(panel.sizes))
    if kind != "roofline" and len(panel.sizes) <= 6 and not any(touch):
        axes.xaxis.set_major_locator(FixedLocator(panel.sizes))
    largest = max(n for _, n in values)
    best = sorted(((values[name, n], name) for name, n in values if n == largest), reverse=kind == "roofline")
    said = [f"{name} {unit(found)}" for found, name in best]
    rest = f" and {len(said) - SPOKEN} more" if len(said) > SPOKEN else ""
    at = f"At N = {largest}: "
    return figure, f"{at}{', '.join(said[:SPOKEN])}{rest}.", f"{TITLES[kind]}. {at}{', '.join(said)}."


def _ratio(panel: Panel, looks: Mapping[str, Mark]) -> tuple[Figure, str, str]:
    """A bar for each implementation, at the largest size that has a ratio."""
    n = max((row.n for row in panel.rows if row.vs_baseline), default=None)
    if n is None:
        return _empty("ratio", "The baseline was not timed.")
    rows = [row for row in panel.rows if row.n == n]
    ranked = sorted(((row.vs_baseline, row) for row in rows if row.vs_baseline), key=lambda pair: -pair[0])
    others = [row for row in rows if not row.vs_baseline]
    baseline = " and ".join(unique(row.baseline for _, row in ranked))
    title, height = f"Speed relative to {baseline}, N = {n}", 34 * len(ranked) + 8
    figure, axes = _axes(title, height, 26 + LINE * len(others), left=4)
    ends = min(1.0, ranked[-1][0]) / 1.1, max(1.0, ranked[0][0]) * 1.1
    axes.set(xscale="log", xlim=_wider(ends, 4.0), ylim=(height, 0), yticks=[])
    _ticks(axes.xaxis, lambda tick: f"{format.digits(tick)}×", 10, 5)
    axes.axvline(1, color=INK, linewidth=1.6, gid="limit")
    for i, (ratio, row) in enumerate(ranked):
        place: dict[str, Any] = {"y": 34 * i + 14, "transform": axes.get_yaxis_transform()}
        place["weight"] = "bold" if looks[row.implementation].own else "normal"
        axes.barh(34 * i + 24, ratio - 1, 12, left=1, color=looks[row.implementation].style["color"], gid="bar")
        axes.text(0, s=_short(row.implementation, WIDTH - 90), **place)
        axes.text(1, s=format.times(ratio), ha="right", **place)
    for i, row in enumerate(reversed(others)):
        text = _short(f"{row.implementation}: {'no ratio' if row.status == 'ok' else row.status}", WIDTH)
        figure.text(0.01, (i * LINE + 5) / figure.bbox.height, text, color=MUTED)
    caption = f"Time of {baseline} divided by the own time at N = {n}; to the right is faster."
    said = ", ".join(f"{row.implementation} {format.times(ratio)}" for ratio, row in ranked)
    return figure, caption, f"{title}: {said}. {caption}"


def _empty(kind: str, why: str) -> tuple[Figure, str, str]:
    figure, axes = _axes(TITLES[kind], 60, 0)
    axes.set_axis_off()
    figure.text(0.5, 0.35, "nothing to show", ha="center", color=MUTED)
    return figure, why, f"{TITLES[kind]}: {why}"


def _axes(title: str, plot: float, below: float, left: float = LEFT) -> tuple[Figure, Axes]:
    """A plot of a height, with its title above it and room below."""
    total = TOP + plot + below
    figure = Figure(figsize=(WIDTH / 72, total / 72), dpi=72)
    figure.text(0, 1 - 16 / total, _short(title, WIDTH), weight="bold")
    return figure, figure.add_axes((left / WIDTH, below / total, (WIDTH - left - 10) / WIDTH, plot / total))


def _with_legend(title: str, entries: Mapping[str, dict[str, Any]], bold: int) -> tuple[Figure, Axes]:
    """Axes with a legend below, the first entries bold, in two columns where the names allow it."""
    names, half = list(entries), math.ceil(len(entries) / 2)
    wide = sum(max(map(len, side), default=0) for side in (names[:half], names[half:]))
    columns = 2 if wide * CHARACTER + 2 * 40 <= WIDTH else 1
    figure, axes = _axes(title, PLOT, 48 + LINE * math.ceil(len(names) / columns))
    handles = [Line2D([], [], label=_short(name, WIDTH - 40), **style) for name, style in entries.items()]
    for text in figure.legend(handles=handles, ncols=columns, **_LEGEND).get_texts()[:bold]:
        text.set_fontweight("bold")
    return figure, axes


def _wider(ends: tuple[float, float], least: float) -> tuple[float, float]:
    """Ends of a logarithmic axis that are a factor of ``least`` apart at least."""
    pad = math.sqrt(max(1.0, least * ends[0] / ends[1]))
    return ends[0] / pad, ends[1] * pad


def _ticks(axis: Any, label: Callable[[float], str], base: int, most: int = 7) -> None:
    """Powers of the base; with their double and quintuple where few powers of ten are on the axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(base, (1, 2, 5) if base == 10 and high / low < 1000 else (1,), numticks=most))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, place: label(value))


def _short(text: str, width: float) -> str:
    text, most = printable(text), int(width / CHARACTER)
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(figure: Figure, label: str, heading: tuple[str, ...] = ()) -> str:
    """The image: what matplotlib writes, made smaller, its colours by name; with a heading a file of its own."""
    figure.patch.set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label or "swatch"}):  # no two have equal ids
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = file.getvalue().split("</defs>", 1)[1].rsplit("</svg>", 1)[0]
    body = re.sub(r"<defs>\s*<clipPath.*?</defs>", "", re.sub("<[^>]*>", _smaller, body), flags=re.DOTALL)
    body = re.sub(r">\s+<", "><", re.sub(r"<g/>|<g>\s*</g>", "", body))
    width, height = (round(inches * 72) for inches in figure.get_size_inches())
    spoken = f'role="img" aria-label="{html.escape(printable(label))}"' if label else 'aria-hidden="true"'
    box = f'viewBox="0 0 {width} {height}"'
    if heading:
        size = f'width="{width + 24}" height="{height + 62}"'
        box = f'viewBox="-12 -50 {width + 24} {height + 62}" {size}'
        title, beside = (html.escape(_short(text, width)) for text in heading)
        body = (
            f'<style>{style()}</style><rect x="-12" y="-50" {size} rx="8" style="fill:var(--ground)"/>'
            f'<text y="-26" style="font-weight:bold;fill:var(--ink)">{title}</text>'
            f'<text y="-8" style="fill:var(--muted)">{beside}</text>{body}'
        )
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {box} {spoken}>{body}</svg>'


def _smaller(tag: re.Match[str]) -> str:
    text = tag[0]
    for pattern, new in _SMALLER:
        text = re.sub(pattern, new, text)
    for name, (light, _) in COLORS.items():
        text = text.replace(light, f"var(--{name})")
    return text
