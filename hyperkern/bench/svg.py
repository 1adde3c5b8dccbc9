"""What the figures are drawn with: logarithmic axes, marks that differ without colour, text, a legend."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

WIDTH = 380  # user units; about the width of a phone, so that text keeps its size there
FONT = 12
CHARACTER = 0.57 * FONT  # mean width of a letter, of the wider fonts
LEGEND_ROW = 18
SWATCH = 34

# After Okabe and Ito, whose colours stay apart under the common colour-vision deficiencies; darker on white and
# lighter on black, until each has the contrast of 3 that graphics need.
LIGHT = ("#0072b2", "#c95800", "#00825f", "#a8478a", "#826600", "#4d5560", "#2389bf", "#7a52c7")
DARK = ("#5ab8ee", "#f58a42", "#35c79b", "#e48fc2", "#e0c445", "#b9c1cb", "#86d5ef", "#b49af2")
LIGHT_GROUND, DARK_GROUND = "#ffffff", "#171b21"
LIGHT_INK, DARK_INK = "#1b1f24", "#e8ebef"
_LIGHT_MUTED, _DARK_MUTED = "#59616b", "#a3acb8"
_LIGHT_GRID, _DARK_GRID = "#dfe3e8", "#333a44"

# Seven shapes and four dashes: 28 implementations that a reader without colour tells apart.
_MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6H3.6V3.6H-3.6Z",
    "M0,-4.8L4.4,3.4H-4.4Z",
    "M0,-5.2L4.6,0L0,5.2L-4.6,0Z",
    "M0,4.8L4.4,-3.4H-4.4Z",
    "M-1.5,-4.6H1.5V-1.5H4.6V1.5H1.5V4.6H-1.5V1.5H-4.6V-1.5H-1.5Z",
    "M0,-2L2.7,-4.7L4.7,-2.7L2,0L4.7,2.7L2.7,4.7L0,2L-2.7,4.7L-4.7,2.7L-2,0L-4.7,-2.7L-2.7,-4.7Z",
)
_DASHES = ("", "7 3", "2 2.5", "8 3 2 3")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

Point = tuple[float, float]
Entry = tuple[str, str, Callable[[float, float], str]]  # of a legend: name, classes, what draws the swatch at a point


class Mark(NamedTuple):
    """How one implementation looks, in every figure of a page."""

    number: int
    own: bool = False

    @property
    def classes(self) -> str:
        """Its colour, and its weight."""
        return f"s{self.number % len(LIGHT)}" + (" own" if self.own else "")

    def line(self, points: Sequence[Point]) -> str:
        """A line through points."""
        dash = _DASHES[self.number % len(_DASHES)]
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        return f'<polyline class="line {self.classes}" points="{_points(points)}"{dashes}/>'

    def marker(self, x: float, y: float) -> str:
        """A marker at a point; hollow from the eighth implementation on."""
        hollow = " hollow" if self.number // len(_MARKERS) % 2 else ""
        path = _MARKERS[self.number % len(_MARKERS)]
        return f'<path class="mark {self.classes}{hollow}" transform="translate({x:.1f} {y:.1f})" d="{path}"/>'

    def swatch(self, x: float, y: float) -> str:
        """Line and marker, for a legend."""
        return self.line([(x, y), (x + SWATCH - 8, y)]) + self.marker(x + SWATCH / 2 - 4, y)


class Axis(NamedTuple):
    """A logarithmic axis from ``low`` at ``start`` to ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, *, least: float = 6.0) -> Axis:
        """An axis with room on both sides of the values, spanning a factor of ``least`` if they span less."""
        values = list(values)
        low, high = min(values), max(values)
        pad = math.sqrt(max((high / low) ** 1.1, least) * low / high)
        return cls(low / pad, high * pad, start, end)

    def at(self, value: float) -> float:
        """Where a value is."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def powers(self, base: int, most: int) -> list[float]:
        """Powers of ``base`` on the axis, evenly spaced, at most ``most`` of them."""
        first = math.ceil(math.log(self.low, base) - 1e-9)
        last = math.floor(math.log(self.high, base) + 1e-9)
        step = max(1, math.ceil((last - first + 1) / most))
        return [float(base) ** power for power in range(first, last + 1) if power % step == 0]

    def decimals(self, most: int = 7) -> list[float]:
        """Powers of ten, with their double and quintuple where fewer than three powers are on the axis."""
        powers = self.powers(10, most)
        if len(powers) > 2:
            return powers
        around = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [factor * 10.0**power for power in around for factor in (1, 2, 5)]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def style() -> str:
    """The style sheet of the figures, for a page or a file of its own; on paper they are light."""

    def colors(series: Sequence[str], ground: str, ink: str, muted: str, grid: str) -> str:
        rules = [f".chart .s{index}{{color:{color}}}" for index, color in enumerate(series)]
        rules += [
            f".chart .ground{{fill:{ground}}}",
            f".chart text{{fill:{ink};stroke:{ground}}}",  # a halo, where a line would cross the words
            f".chart .muted{{fill:{muted}}}",
            f".chart .grid{{stroke:{grid}}}",
            f".chart .limit{{stroke:{ink}}}",
            f".chart .mark{{stroke:{ground}}}",
            f".chart .hollow{{fill:{ground};stroke:currentColor}}",
        ]
        return "".join(rules)

    return (
        f".chart text{{font:{FONT}px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}}"
        ".chart text{paint-order:stroke;stroke-width:3px;stroke-linejoin:round}"
        ".chart .name{font-weight:600}.chart .middle{text-anchor:middle}.chart .end{text-anchor:end}"
        ".chart .grid,.chart .limit,.chart .line{fill:none;vector-effect:non-scaling-stroke}"
        ".chart .grid{stroke-width:1}.chart .limit{stroke-width:1.6;stroke-dasharray:1.5 3;stroke-linecap:round}"
        ".chart .roof{stroke-dasharray:none}"
        ".chart .line{stroke:currentColor;stroke-width:1.6;stroke-linejoin:round}.chart .line.own{stroke-width:3.2}"
        ".chart .band{fill:currentColor;opacity:.16}.chart .bar{fill:currentColor}"
        ".chart .mark{fill:currentColor;stroke-width:.8}.chart .hollow{stroke-width:1.6}"
        + colors(LIGHT, LIGHT_GROUND, LIGHT_INK, _LIGHT_MUTED, _LIGHT_GRID)
        + "@media screen and (prefers-color-scheme:dark){"
        + colors(DARK, DARK_GROUND, DARK_INK, _DARK_MUTED, _DARK_GRID)
        + "}"
    )


def document(parts: Iterable[str], height: float, label: str) -> str:
    """An SVG image.

    Args:
        parts: its elements.
        height: in user units; the width is `WIDTH`.
        label: what a reader who does not see it is told.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def stand_alone(image: str, heading: str, beside: str) -> str:
    """What `document` gave as a file of its own: with the style sheet, a ground and a margin.

    Args:
        image: the element.
        heading: what the figure is of, as the heading over it in a page says.
        beside: the same, in less need of notice.

    Returns:
        The image.
    """
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', image)[0])
    size = f'width="{width + 24}" height="{height + 62}"'
    box = f'viewBox="-12 -50 {width + 24} {height + 62}" {size}'
    head, rest = image.replace(f'viewBox="0 0 {width} {height}"', box, 1).split(">", 1)
    ground = f'<rect class="ground" x="-12" y="-50" {size} rx="8"/>'
    words_above = words(0, -26, heading, "name", width) + words(0, -8, beside, "muted", width)
    return f"{head}><style>{style()}</style>{ground}{words_above}{rest}"


def escape(text: object) -> str:
    """Text for HTML and XML, elements and attributes alike."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)))


def words(x: float, y: float, text: str, classes: str = "", most: float = math.inf) -> str:
    """Text at a point, shortened to a width; its whole is then in the tooltip."""
    letters = max(2, int(most / CHARACTER)) if most < math.inf else len(text)
    title = f"<title>{escape(text)}</title>" if letters < len(text) else ""
    short = escape(text if letters >= len(text) else text[: letters - 1] + "…")
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{title}{short}</text>'


def grid(x: Axis, y: Axis, labels_x: Sequence[tuple[float, str]], labels_y: Sequence[tuple[float, str]]) -> list[str]:
    """Grid lines and tick labels of a plot."""
    parts = []
    for value, label in labels_y:
        at = y.at(value)
        parts.append(f'<path class="grid" d="M{x.start:.1f},{at:.1f}H{x.end:.1f}"/>')
        parts.append(words(x.start - 6, at + 4, label, "tick end muted"))
    for value, label in labels_x:
        at = x.at(value)
        parts.append(f'<path class="grid" d="M{at:.1f},{y.start:.1f}V{y.end:.1f}"/>')
        parts.append(tick(at, y.start + 17, label))
    return parts


def tick(at: float, y: float, label: str) -> str:
    """A label below a place on an axis, moved as far as it would leave the figure."""
    half = CHARACTER * len(label) / 2
    if at + half > WIDTH:
        return words(WIDTH, y, label, "tick end muted")
    return words(0, y, label, "tick muted") if at < half else words(at, y, label, "tick middle muted")


def area(lower: Sequence[Point], upper: Sequence[Point], mark: Mark) -> str:
    """The band between two lines; of one point, a bar."""
    if len(lower) == 1:
        (x, low), (_, high) = lower[0], upper[0]
        lower, upper = [(x - 3, low), (x + 3, low)], [(x - 3, high), (x + 3, high)]
    return f'<polygon class="band {mark.classes}" points="{_points([*lower, *reversed(upper)])}"/>'


def legend(entries: Sequence[Entry], top: float) -> tuple[list[str], float]:
    """A legend below a plot, in two columns where the names allow it.

    Args:
        entries: what it explains.
        top: where it begins.

    Returns:
        The elements, and where it ends.
    """
    half = math.ceil(len(entries) / 2)
    wide = [max((len(entry[0]) for entry in side), default=0) * CHARACTER for side in (entries[:half], entries[half:])]
    columns = 2 if sum(wide) + 2 * SWATCH <= WIDTH else 1
    rows = half if columns == 2 else len(entries)
    second = max(wide[0] + SWATCH, min(WIDTH / 2, WIDTH - wide[1] - SWATCH))
    parts = []
    for index, (name, classes, swatch) in enumerate(entries):
        left = index // rows * second
        y = top + (index % rows + 0.5) * LEGEND_ROW
        parts += [swatch(left, y), words(left + SWATCH, y + 4, name, classes, WIDTH - left - SWATCH)]
    return parts, top + rows * LEGEND_ROW


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
