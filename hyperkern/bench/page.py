"""A benchmark result as one page: ``python -m hyperkern.bench.page RESULT.json --out page.html``."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from .. import format
from ..files import check_outputs, write_files
from . import figures
from .figures import TITLES, Panel, Setting, draw, marks, panels, printable, unique
from .result import Result, Row, read


def _fixed(places: int, scale: float = 1.0) -> Callable[[float], str]:
    """One number of decimals for a whole column, so that larger numbers look larger."""
    return lambda value: f"{value * scale:,.{places}f}".replace(",", "\u202f")


# Heading, value, how it is written.
COLUMNS: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
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


def render(result: Result) -> str:
    """Shows a benchmark result as an HTML page that needs nothing beside it.

    Args:
        result: of the benchmark.

    Returns:
        The page: what was measured and where, figures for each case and D, and every number in tables.
    """
    looks, found = marks(result), panels(result)
    machine = asdict(result.machine)
    if re.fullmatch("[0-9a-f]{40}", str(machine["commit"])):
        machine["commit"] = machine["commit"][:12]
    on_gpu = machine["device"] not in (None, "", "cpu")
    rates = {
        f"measured limits, {dtype}": f"{format.rate(limit.flops, 'FLOP/s')}, {format.rate(limit.bytes, 'B/s')}"
        for dtype, limit in result.limits.items()
    }
    origins = {row.implementation: f"{row.package} {row.version or ''}" for row in result.rows}
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    # Text in which no line breaks within ``N = 512``.
    environment.filters["together"] = lambda text: str(text).replace(" = ", "\u00a0=\u00a0")
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(
        style=figures.style(),
        machine_name=machine["device"] if on_gpu else machine["processor"] or "unknown machine",
        rows=result.rows,
        counts=Counter(row.status for row in result.rows),
        facts=machine | rates,
        key=[(name, mark, origins[name]) for name, mark in looks.items()],
        cases={
            case: (case, _untimed(result, case), [(p, _drawings(result, p)) for p in found if p.case == case])
            for case in unique(row.case for row in result.rows)
        },
        panels=found,
        columns=COLUMNS,
        sizes={name: format.sizes(sorted({getattr(row, name) for row in result.rows})) for name in ("n", "d")},
        ranked=_ranked,
    )
    return printable(page) + "\n"


def figure(result: Result, kind: str, case: str, d: int, *, setting: Setting | None = None) -> str:
    """Draws one figure of the page as an SVG file of its own.

    Args:
        result: of the benchmark.
        kind: ``time``, ``memory``, ``roofline`` or ``ratio``.
        case: name of the case.
        d: feature dimension.
        setting: mode, execution and dtype; the first that the case was run in by default.

    Returns:
        The file's content; light or dark as the reader's screen.

    Raises:
        ValueError: a kind, case, D or setting that is not in the result.
    """
    if kind not in TITLES:
        raise ValueError(f"kind must be one of {', '.join(TITLES)}, got {kind!r}")
    found = panels(result)
    for panel in found:
        if (panel.case, panel.d) == (case, d) and setting in (None, panel.setting):
            return draw(kind, panel, marks(result), result.limits.get(panel.setting.dtype), alone=True)[0] + "\n"
    there = ", ".join(f"{panel.case} at D = {panel.d} ({panel.setting})" for panel in found) or "none"
    wanted = f"{case} at D = {d}" + (f" ({Setting(*setting)})" if setting else "")
    raise ValueError(f"the result has no rows of {wanted}; it has {there}")


def files(result: Result) -> dict[str, str]:
    """Every figure that has something to show, by file name.

    Args:
        result: of the benchmark.

    Returns:
        The contents; names are of case, D and kind, and of the setting where there are several.
    """
    contents: dict[str, str] = {}
    for panel in panels(result):
        if not panel.timed:
            continue
        setting = panel.setting if len({panel.setting for panel in panels(result)}) > 1 else ()
        stem = "-".join(_slug(part) for part in (panel.case, f"d{panel.d}", *setting))
        while f"{stem}-time.svg" in contents:  # two names that differ in signs alone
            stem += "_"
        images = _drawings(result, panel, alone=True)
        contents |= {f"{stem}-{kind}.svg": image + "\n" for kind, (image, _) in zip(TITLES, images, strict=True)}
    return contents


def _drawings(result: Result, panel: Panel, *, alone: bool = False) -> list[tuple[str, str]]:
    looks, limit = marks(result), result.limits.get(panel.setting.dtype)
    return [draw(kind, panel, looks, limit, alone=alone) for kind in TITLES if panel.timed]


def _ranked(panel: Panel, n: int) -> list[Row]:
    """The rows of one N, the fastest first, then what failed and what was skipped."""
    order = ("ok", "failed", "skipped")
    rows = (row for row in panel.rows if row.n == n)
    return sorted(rows, key=lambda row: (order.index(row.status), row.median_ms or 0.0, row.implementation))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "case"


def _untimed(result: Result, case: str) -> list[tuple[str, str, str, str]]:
    """What of a case has no time: each implementation, status and reason once, with the sizes if there are others."""
    found: dict[tuple[str, str, str], dict[int, list[int]]] = {}
    rows = [row for row in result.rows if row.case == case]
    for row in rows:
        if row.status != "ok":
            key = row.implementation, row.status, row.reason or "no reason was recorded"
            found.setdefault(key, {}).setdefault(row.d, []).append(row.n)
    lines = []
    for (name, status, reason), sizes in sorted(found.items(), key=lambda item: (item[0][1], item[0])):
        all_of_it = sum(map(len, sizes.values())) == sum(row.implementation == name for row in rows)
        where = "; ".join(f"D = {d}: N = {', '.join(map(str, unique(sorted(n))))}" for d, n in sorted(sizes.items()))
        lines.append((name, status, reason, "" if all_of_it else f"({where})"))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, and the figures as files.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m hyperkern.bench.page", description=(__doc__ or "").split(":")[0])
    parser.add_argument("result", type=Path, metavar="RESULT.json", help="what a benchmark wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html", help="the page; replaced if it exists")
    parser.add_argument("--svg-dir", type=Path, metavar="DIR", help="also write every figure there, as SVG")
    options = parser.parse_args(arguments)
    try:
        check_outputs({"out": options.out}, [options.result])
        result = read(options.result)
        contents = {options.out: render(result)}
        if options.svg_dir:
            options.svg_dir.mkdir(parents=True, exist_ok=True)
            contents |= {options.svg_dir / name: image for name, image in files(result).items()}
        write_files({path: text.encode() for path, text in contents.items()})
    except (ImportError, OSError, ValueError) as error:  # of the result, or of a file that cannot be written
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
