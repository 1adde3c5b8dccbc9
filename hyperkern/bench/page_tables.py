"""Every number of a benchmark in tables, and what has no time with the reason."""

from __future__ import annotations

from collections.abc import Callable

from .figures import Panel, panels, unique
from .result import Result, Row
from .svg import escape


def _fixed(places: int, scale: float = 1.0) -> Callable[[float], str]:
    """One number of decimals for a whole column, so that larger numbers look larger."""
    return lambda value: f"{value * scale:,.{places}f}".replace(",", "\u202f")


# Heading, value, how it is written.
_COLUMNS: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
    ("median, ms", lambda row: row.median_ms, _fixed(3)),
    ("speed to baseline", lambda row: row.vs_baseline, lambda value: f"{value:.2f}×"),
    ("peak, MiB", lambda row: row.peak_bytes, _fixed(1, 2.0**-20)),
    ("20 %, ms", lambda row: row.p20_ms, _fixed(3)),
    ("80 %, ms", lambda row: row.p80_ms, _fixed(3)),
    ("GFLOP/s", lambda row: row.tflops, _fixed(1, 1e3)),
    ("GB/s", lambda row: row.gbs, _fixed(3)),
    ("of limit", lambda row: row.of_limit, lambda value: f"{100 * value:.1f} %"),
    ("error", lambda row: row.error, lambda value: f"{value:.1e}"),
]


def untimed(result: Result, case: str) -> list[str]:
    """What of a case has no time: each implementation and reason once, with the sizes."""
    rows = [row for row in result.rows if row.case == case]
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.status != "ok":
            found.setdefault((row.status, row.implementation, _reason(row)), []).append(row)
    if not found:
        return []
    parts = ["<p>Without a time:</p>", '<ul class="untimed">']
    for (status, name, reason), those in sorted(found.items()):
        all_of_it = len(those) == sum(row.implementation == name for row in rows)
        where = "" if all_of_it else f" ({_sizes(those)})"
        parts.append(
            f'<li>{escape(name)} <span class="{status}">{status}</span>: {escape(reason)}'
            f'<span class="muted">{escape(where)}</span></li>'
        )
    return [*parts, "</ul>"]


def numbers(result: Result) -> list[str]:
    """The section of all tables, one for each case, setting and D."""
    parts = ['<section id="numbers">', "<h2>All numbers</h2>"]
    parts.append(
        "<p>The fastest of each size first. <em>Speed to baseline</em>: the baseline's time over the own. <em>Of "
        "limit</em>: the floor over the own time, which is the share reached of the rate that bounds the work. "
        "<em>Error</em>: relative to the result in float64.</p>"
    )
    for panel in panels(result):
        parts += _table(panel)
    return [*parts, "</section>"]


def _table(panel: Panel) -> list[str]:
    caption = escape(f"{panel.case}, D = {panel.d}, {panel.setting}")
    baselines = unique(row.baseline for row in panel.rows if row.baseline)
    if baselines:
        caption += f' <span class="muted">baseline: {escape(", ".join(baselines))}</span>'
    heads = "".join(f'<th scope="col">{head}</th>' for head, _, _ in _COLUMNS)
    label = escape(f"Numbers of {panel.case}, D = {panel.d}, {panel.setting}")
    parts = [
        # The table scrolls by itself on a narrow screen, by the keyboard too.
        f'<div class="table" role="region" tabindex="0" aria-label="{label}"><table>',
        f"<caption><div>{caption}</div></caption>",
        f'<thead><tr><th scope="col" class="who">implementation</th>{heads}</tr></thead>',
    ]
    for n in panel.sizes:
        rows = sorted((row for row in panel.rows if row.n == n), key=_rank)
        parts.append(
            f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(_COLUMNS) + 1}">'
            f"<span>N = {n}</span></th></tr>"
        )
        parts += [_line(row) for row in rows]
        parts.append("</tbody>")
    return [*parts, "</table></div>"]


def _line(row: Row) -> str:
    own = ' class="own"' if row.package == "hyperkern" else ""
    head = f'<tr{own}><th scope="row" class="who">{escape(row.implementation)}</th>'
    if row.status != "ok":
        error = "" if row.error is None else f" (error {row.error:.1e})"
        reason = escape(_reason(row) + error)
        why = f'<span class="{row.status}">{row.status}</span>: {reason}'
        return f'{head}<td class="why" colspan="{len(_COLUMNS)}"><div>{why}</div></td></tr>'
    cells = ((value(row), written) for _, value, written in _COLUMNS)
    return head + "".join(f"<td>{'–' if value is None else written(value)}</td>" for value, written in cells) + "</tr>"


def _reason(row: Row) -> str:
    return row.reason or "no reason was recorded"


def _rank(row: Row) -> tuple[int, float, str]:
    if row.status == "ok":
        return 0, row.median_ms or 0.0, row.implementation
    return (1 if row.status == "failed" else 2), 0.0, row.implementation


def _sizes(rows: list[Row]) -> str:
    by_d = {d: sorted({row.n for row in rows if row.d == d}) for d in sorted({row.d for row in rows})}
    return "; ".join(f"D\u00a0=\u00a0{d}: N\u00a0=\u00a0{', '.join(map(str, n))}" for d, n in by_d.items())
