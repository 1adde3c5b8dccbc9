"""What a check has found: a table for people, and a file that can be attached to an issue."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..check import records
from ..check.process import Row
from .everything import Job, Result

SCHEMA = 1
_ROOT = Path(__file__).parents[2]
HEADS = ("backend", "what", "sizes", "products", "error", "allowed", "of allowed", "s", "")
WORDS = 4  # columns that are no figures
# The folders of a path, and somebody's home, which is named after a person.
_FOLDERS = re.compile(r"(?:[A-Za-z]:\\|~|/)(?:[^\s/\\'\"`;,]+[/\\]+)+")
_HOMES = re.compile(r"/(?:home|Users)/[^/\s'\"`:;,]+(?![^\s'\"`:;,]*/)")


def described(backend: str, device: torch.device) -> str:
    """What was checked, with all that its record depends on."""
    machine = records.machine(backend, device)
    words = [machine.device, f"compute capability {machine.capability}", f"driver {machine.driver}"]
    of_device = words if machine.capability else ["a CPU, interpreted" if backend == "triton" else "a CPU"]
    triton = f", triton {machine.triton}" if machine.triton else ""
    return f"{backend} {machine.digest[:12]} on {', '.join(of_device)}; torch {machine.torch}{triton}"


def line(job: Job, row: Row) -> dict[str, Any]:
    """A case, as it ends."""
    fields = row._asdict() | {"reason": without_folders(row.reason)}
    of_job = {"backend": job.backend, "device": str(job.device), "scope": job.scope.key, "products": job.scope.kind}
    return of_job | fields


def as_json(results: Sequence[Result], missing: dict[str, list[str]], depth: str) -> bytes:
    """The file. It names the GPU and the versions, and nobody: no folder, no name of a machine."""
    from .. import __version__

    keys = {(job.backend, job.device) for job, _ in results}
    content = {
        "schema": SCHEMA,
        "depth": depth,
        "on": sorted({"GPU" if device.type == "cuda" else "CPU, interpreted or emulated" for _, device in keys}),
        "hyperkern": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": torch.version.cuda,
        "machines": [records.machine(*key)._asdict() for key in sorted(keys, key=str)],
        "not_usable": {name: [without_folders(reason) for reason in reasons] for name, reasons in missing.items()},
        "checks": [
            {
                "backend": job.backend,
                "device": str(job.device),
                "scope": job.scope.key,
                "dims": list(job.dims),
                "status": outcome.status,
                "reason": without_folders(outcome.reason),
                "seconds": round(outcome.seconds, 1),
                "cases": [line(job, row) for row in outcome.rows],
            }
            for job, outcome in results
        ],
    }
    return files.as_json(content)


def without_folders(text: str) -> str:
    """A text whose files are named without the folders that they are in."""
    known = [str(Path.home()), os.path.abspath(os.curdir), sys.prefix, tempfile.gettempdir(), str(_ROOT)]
    for folder in sorted(known, key=len, reverse=True):
        text = text.replace(folder, "...") if len(folder) > 1 else text
    text = _FOLDERS.sub(".../", _HOMES.sub("...", text))
    return text.replace(platform.node(), "...") if len(platform.node()) > 3 else text


def cells(results: Sequence[Result]) -> list[list[str]]:
    """A row for each kind of case of a backend: its largest error, by what is allowed."""
    found: dict[tuple[str, str], list[tuple[Job, Row]]] = {}
    for job, outcome in results:
        for row in outcome.rows:
            found.setdefault((job.backend, _kind(row)), []).append((job, row))
    table = []
    for (backend, what), cases in found.items():
        failed = sum(row.status == "failed" for _, row in cases)
        # One that raised, or that is no number, is as bad as can be.
        job, worst = max(cases, key=lambda case: (case[1].status == "failed", case[1].share))
        table.append(
            [
                *(backend, what, f"{len(cases)}: {worst.shape}" if len(cases) > 1 else worst.shape, job.scope.kind),
                "" if worst.error is None else f"{worst.error:.2g}",
                "" if worst.allowed is None else f"{worst.allowed:.2g}",
                f"{100 * worst.share:.0f} %" if worst.error is not None and worst.allowed else "",
                f"{sum(row.seconds for _, row in cases):.1f}",
                f"FAILED {failed}" if failed else "ok",
            ]
        )
    return table


def _kind(row: Row) -> str:
    """What a case is one of many of: of a primitive its name, of repeats not how many."""
    head, _, tail = row.what.partition(", ")
    return f"{head}, {tail.lstrip('0123456789 ')}" if tail.endswith(("repeats", "many rows")) else head


def summary(results: Sequence[Result], where: str) -> str:
    """A sentence."""
    total, kinds = sum(len(outcome.rows) for _, outcome in results), len(results)
    statuses = [outcome.status for _, outcome in results]
    unknown = sum(status in ("not checked", "no memory") for status in statuses)
    wrong = kinds - unknown - statuses.count("passed")
    found = [*([f"{wrong} NOT right"] if wrong else []), *([f"{unknown} not checked"] if unknown else [])]
    return f"{total} cases of {kinds} kind{'s' if kinds > 1 else ''} on {where}: {', '.join(found) or 'all right'}"


def print_failures(results: Sequence[Result]) -> None:
    """Everything that is wrong, each on a line."""
    for job, outcome in results:
        if outcome.status == "passed":
            continue
        print(f"{job.backend}, {job.scope}: {outcome.status}: {outcome.reason}", file=sys.stderr)
        for row in [row for row in outcome.rows if row.status == "failed"][1:]:  # the reason is of the first
            print(f"  {row.what} ({row.shape}): {row.reason}", file=sys.stderr)
