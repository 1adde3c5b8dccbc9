"""A benchmark result as one page: ``python -m hyperkern.bench.page RESULT.json --out page.html``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from .. import format
from ..files import check_outputs, write_files
from . import figures, page_tables, svg
from .figures import Panel, Setting, panels, unique
from .result import Result, read
from .svg import escape

_SHORT_COMMIT = 12
_GUIDE = {
    "Time": "The median of all runs, with a band from the 20th to the 80th percentile. The dotted line is the floor: "
    "what the arithmetic and the traffic of inputs and outputs take at the rates measured on this machine.",
    "Peak memory": "The most that was held while running. What needs less than 1 KiB is drawn at 1 KiB.",
    "Roofline": "FLOPs done in a second against FLOPs for each byte of inputs and outputs; N grows along each line. "
    "The solid line is the most that this machine was measured to do: its copy rate bounds, then its matrix rate.",
    "Speed relative to the baseline": "The baseline's time divided by the own time, at the largest size.",
}


def render(result: Result) -> str:
    """Show a benchmark result as an HTML page that needs nothing beside it.

    Args:
        result: of the benchmark.

    Returns:
        The page: what was measured and where, figures for each case and D, and every number in tables.

    """
    title = f"hyperkern benchmark: {_machine_name(result)}"
    sections = [_case(result, index, case) for index, case in enumerate(_cases(result))]
    styles = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{styles}{svg.style()}</style>",
            "</head>",
            "<body>",
            _header(result),
            "<main>",
            *_reading(result),
            *sections,
            *page_tables.numbers(result),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def figure(result: Result, kind: str, case: str, d: int, *, setting: Setting | None = None) -> str:
    """Draw one figure of the page as an SVG file of its own.

    Args:
        result: of the benchmark.
        kind: ``time``, ``memory``, ``roofline`` or ``ratio``.
        case: name of the case.
        d: feature dimension.
        setting: mode, execution and dtype; the first that the case was run in by default.

    Returns:
        The file's content; light or dark as the reader's screen.

    Raises:
        ValueError: a kind, case, D or setting that is not in it.
    """
    if kind not in figures.KINDS:
        raise ValueError(f"kind must be one of {', '.join(figures.KINDS)}, got {kind!r}")
    for panel in panels(result, case):
        if panel.d == d and setting in (None, panel.setting):
            return _stand_alone(result, kind, panel)
    found = ", ".join(f"{panel.case} at D = {panel.d} ({panel.setting})" for panel in panels(result))
    wanted = f"{case} at D = {d}" + (f" ({Setting(*setting)})" if setting else "")
    raise ValueError(f"the result has no rows of {wanted}; it has {found or 'none'}")


def files(result: Result) -> dict[str, str]:
    """Every figure that has something to show, by file name.

    Args:
        result: of the benchmark.

    Returns:
        The contents; names are of case, D and kind, and of the setting where there are several.
    """
    contents: dict[str, str] = {}
    for panel in panels(result):
        if not any(row.status == "ok" for row in panel.rows):
            continue
        setting = panel.setting if len(figures.settings(result)) > 1 else ()
        stem = "-".join(_slug(part) for part in (panel.case, f"d{panel.d}", *setting))
        while f"{stem}-time.svg" in contents:  # two names that differ in signs alone
            stem += "_"
        contents |= {f"{stem}-{kind}.svg": _stand_alone(result, kind, panel) for kind in figures.KINDS}
    return contents


def _cases(result: Result) -> list[str]:
    return unique(row.case for row in result.rows)


def _stand_alone(result: Result, kind: str, panel: Panel) -> str:
    drawing = figures.draw(kind, panel, figures.marks(result), result.limits.get(panel.setting.dtype))
    return svg.stand_alone(drawing.image, f"{panel.case}, D = {panel.d}", str(panel.setting)) + "\n"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "case"


def _machine_name(result: Result) -> str:
    device, processor = result.machine.device, result.machine.processor
    return str(processor if processor and device in (None, "", "cpu") else device or "unknown machine")


def _together(text: str) -> str:
    """Text in which no line breaks within ``N = 512``."""
    return escape(text).replace(" = ", "\u00a0=\u00a0")


def _header(result: Result) -> str:
    facts = asdict(result.machine)
    if re.fullmatch("[0-9a-f]{40}", str(facts["commit"])):
        facts["commit"] = facts["commit"][:_SHORT_COMMIT]
    limits = [
        f"<div><dt>measured limits, {escape(dtype)}</dt><dd>"
        f"{format.rate(limit.flops, 'FLOP/s') if limit.flops else 'no matrix rate'}, "
        f"{format.rate(limit.bytes, 'B/s') if limit.bytes else 'no copy rate'}</dd></div>"
        for dtype, limit in result.limits.items()
    ]
    links = [f'<li><a href="#case-{index}">{escape(case)}</a></li>' for index, case in enumerate(_cases(result))]
    return "\n".join(
        [
            "<header>",
            f"<h1>hyperkern benchmark: {escape(_machine_name(result))}</h1>",
            f'<p class="lead">{_summary(result)}</p>',
            f"<p>{_gate(result)}</p>",
            '<dl class="facts">',
            *(
                f"<div><dt>{key}</dt><dd>{'–' if value in (None, '') else escape(value)}</dd></div>"
                for key, value in facts.items()
            ),
            *limits,
            "</dl>",
            '<nav aria-label="Contents"><ul>',
            *links,
            '<li><a href="#numbers">all numbers</a></li>',
            "</ul></nav>",
            "</header>",
        ]
    )


def _reading(result: Result) -> list[str]:
    looks = figures.marks(result)
    parts = ['<section id="reading">', "<h2>How to read the figures</h2>", '<ul class="key">']
    for name, mark in looks.items():
        row = next(row for row in result.rows if row.implementation == name)
        origin = " ".join(part for part in (row.package, row.version) if part)
        swatch = f'<svg class="chart" viewBox="0 0 34 16" aria-hidden="true">{mark.swatch(4, 8)}</svg>'
        muted = f' <span class="muted">{escape(origin)}</span>' if origin else ""
        parts.append(f"<li>{swatch}<span>{escape(name)}{muted}</span></li>")
    parts += ["</ul>", '<dl class="guide">']
    parts += [f"<dt>{term}</dt><dd>{text}</dd>" for term, text in _GUIDE.items()]
    return [*parts, "</dl>", "</section>"]


def _summary(result: Result) -> str:
    if not result.rows:
        return "Nothing was measured."
    n = sorted({row.n for row in result.rows})
    d = sorted({row.d for row in result.rows})
    count = len(figures.marks(result))
    settings = "; ".join(str(setting) for setting in figures.settings(result))
    return _together(
        f"{count} implementation{'s' if count > 1 else ''} of {', '.join(_cases(result))}, "
        f"at N = {format.sizes(n)} and D = {format.sizes(d)} ({settings})."
    )


def _gate(result: Result) -> str:
    counts = {status: sum(row.status == status for row in result.rows) for status in ("ok", "failed", "skipped")}
    return (
        "Correctness came first: each implementation was compared with the result in float64, and only those that "
        f"agreed were timed. Of {len(result.rows)} measurements {counts['ok']} passed, {counts['failed']} failed and "
        f"are shown without a time, and {counts['skipped']} were skipped, each with its reason."
    )


def _case(result: Result, index: int, case: str) -> str:
    looks = figures.marks(result)
    parts = [f'<section id="case-{index}">', f"<h2>{escape(case)}</h2>", *page_tables.untimed(result, case)]
    for panel in panels(result, case):
        setting = f", {panel.setting}" if len(figures.settings(result)) > 1 else ""
        parts.append(f"<h3>{_together(f'{case}: D = {panel.d}{setting}')}</h3>")
        if not any(row.status == "ok" for row in panel.rows):
            parts.append("<p>No implementation was timed.</p>")
            continue
        parts.append('<div class="charts">')
        for kind in figures.KINDS:
            drawing = figures.draw(kind, panel, looks, result.limits.get(panel.setting.dtype))
            parts.append(f"<figure>{drawing.image}<figcaption>{_together(drawing.caption)}</figcaption></figure>")
        parts.append("</div>")
    return "\n".join([*parts, "</section>"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, and the figures as files.

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
        write_files({path: text.encode(errors="backslashreplace") for path, text in contents.items()})
    except (ImportError, OSError, ValueError) as error:  # of the result, or of a file that cannot be written
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
