"""Two runs side by side: what has become slower, beyond what the machine and chance explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import child
from .matrix import Matrix
from .registry import BenchError
from .result import Provenance, Result, Row, quantile

RESAMPLES = 10_000
# The chance that any row of a comparison is called slower by chance.
ERROR_RATE = 0.01
# Fewer samples say nothing about their spread.
FEWEST = 5
# What must agree for times to be comparable.
SAME = ("device", "processor", "threads")
# How often what looks slower is measured again, in other processes.
TIMES = 2
# What of a matrix is which column of a row.
_OPTIONS = {
    **{"cases": "case", "names": "implementation", "sizes": "n", "dims": "d"},
    **{"dtypes": "dtype", "modes": "mode", "executions": "execution"},
}


class Change(NamedTuple):
    """A row of both runs.

    Attributes:
        row: the new row.
        ratio: new time over old; ``None`` where one of them has no time.
        low: lower end of its interval, ``None`` where there are too few samples.
        high: upper end.
        corrected: what the drift of the machine was taken from: a baseline, the machine's rates, or nothing.
        verdict: ``slower``, ``faster``, ``same``, ``too few samples``, or what became of the row.
    """

    row: Row
    ratio: float | None
    low: float | None
    high: float | None
    corrected: str
    verdict: str

    @property
    def regression(self) -> bool:
        """Whether it counts as one."""
        return self.verdict == "slower" or self.verdict.startswith("fails")


def check_comparable(old: Result, machine: Provenance) -> None:
    """Whether a file is of this machine.

    Raises:
        BenchError: it is not.
    """
    for name in SAME:
        before, now = getattr(old.machine, name), getattr(machine, name)
        if before != now:
            raise BenchError(f"the runs are of different machines: {name} {before!r}, {now!r}")


def compare(old: Result, new: Result, threshold: float) -> list[Change]:
    """Sets the rows that both runs have side by side.

    A row counts as slower if the whole bootstrap interval of its ratio lies above ``1 + threshold``. The times are
    taken relative to those of the baseline in the same run, round by round where both have been measured in turns;
    those of the baseline itself relative to the machine's own rate. The intervals are wide enough for all rows at once.

    Args:
        old: the run that is the measure.
        new: the other.
        threshold: of the ratio, 0.05 for 5 %.

    Raises:
        BenchError: the runs are of different machines, or have no row in common.
    """
    check_comparable(old, new.machine)
    before, after = ({row.key: row for row in result.rows} for result in (old, new))
    shared = [found for found in after if found in before and before[found].status == "ok"]
    if not shared:
        raise BenchError("the runs have no row in common that the first of them has measured")
    changes = []
    for i, place in enumerate(shared):
        was, now = ((rows[place], rows[place].baseline_in(rows)) for rows in (before, after))
        rates = [result.limits[now[0].dtype].flops for result in (old, new) if now[0].dtype in result.limits]
        changes.append(_change(was, now, rates, threshold, ERROR_RATE / len(shared), seed=i))
    return changes


def _change(
    before: tuple[Row, Row | None],
    now: tuple[Row, Row | None],
    rates: Sequence[float],
    threshold: float,
    confidence: float,
    seed: int,
) -> Change:
    """What became of a row, each with its baseline."""
    (old, old_base), (new, new_base) = before, now
    if new.status != "ok":
        # A package that is not installed has not become slower; a wrong result is worse than a slow one.
        verdict = f"fails: {new.reason}" if new.status == "failed" else f"skipped: {new.reason}"
        return Change(new, None, None, None, "", verdict)
    if old_base and new_base and old.implementation != old.baseline:
        corrected, drift = f"by {new.baseline}", 1.0
    else:
        old_base = new_base = None
        corrected, drift = ("by the machine's rate", rates[0] / rates[1]) if len(rates) == 2 else ("not", 1.0)
    generator = torch.Generator().manual_seed(seed)
    old_median, old_medians = _resampled(old, old_base, generator)
    median, medians = _resampled(new, new_base, generator)
    ratio = (median / drift / old_median).item()
    if min(len(old.samples_ms), len(new.samples_ms)) < FEWEST:
        return Change(new, ratio, None, None, corrected, "too few samples")
    spread = (medians / drift / old_medians).tolist()
    low, high = quantile(spread, confidence / 2), quantile(spread, 1 - confidence / 2)
    verdict = "slower" if low > 1 + threshold else "faster" if high < 1 / (1 + threshold) else "same"
    return Change(new, ratio, low, high, corrected, verdict)


def _resampled(row: Row, base: Row | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A median, and those of resampled samples: of ratios to the baseline's where they were taken in turns."""
    times = torch.tensor(row.samples_ms, dtype=torch.float64)
    if base is None:
        return times.quantile(0.5), _medians(times, generator)
    others = torch.tensor(base.samples_ms, dtype=torch.float64)
    if len(times) == len(others):
        return (times / others).quantile(0.5), _medians(times / others, generator)
    median = times.quantile(0.5) / others.quantile(0.5)
    return median, _medians(times, generator) / _medians(others, generator)


def _medians(values: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    return values[chosen].quantile(0.5, dim=1)


def confirmed(
    old: Result, changes: Sequence[Change], threshold: float, again: Callable[[Sequence[Row]], Result]
) -> list[Change]:
    """The changes, of which those count as slower that are slower every time.

    Addresses, the order of pages in memory and what else differs between two processes move a median by more than the
    samples within one of them tell.

    Args:
        old: the run that is the measure.
        changes: of the first new run.
        threshold: as for `compare`.
        again: measures rows again.
    """
    found = list(changes)
    for _ in range(TIMES):
        slower = [change.row for change in found if change.verdict == "slower"]
        if not slower:
            break
        seen = {change.row.key: change for change in compare(old, again(slower), threshold)}
        for i, change in enumerate(found):
            if change.verdict == "slower" and (other := seen.get(change.row.key)) and not other.regression:
                found[i] = change._replace(verdict="slower, but not every time")
    return found


def measure_again(matrix: Matrix, rows: Sequence[Row]) -> Result:
    """Measures those rows of a matrix, in a process of its own.

    Raises:
        BenchError: the process failed.
    """
    options: dict[str, Any] = {
        option: tuple(dict.fromkeys(getattr(row, name) for row in rows)) for option, name in _OPTIONS.items()
    }
    results, death = child.run(_measured, replace(matrix, memory=False, **options), files=matrix.files)
    if death is not None:
        raise BenchError(f"measuring again failed: {death}")
    found: Result = results[0]
    return found


def _measured(matrix: Matrix) -> Iterator[Result]:
    from .run import run

    yield run(matrix)
