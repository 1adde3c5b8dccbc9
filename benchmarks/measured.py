"""Rows of result files as scripts write them and the documentation shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hyperkern.bench.result import Provenance, quantile, read_as
from hyperkern.files import as_json, write_files

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")
Own = TypeVar("Own", bound="Measured")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An implementation at a size: what a row of `hyperkern bench` has too, or what is known of one measured otherwise.

    Attributes:
        case: what was measured.
        implementation: how it was computed.
        n: rows.
        d: their dimension.
        package: the distribution that it comes from, where that is one.
        version: of the package.
        samples_ms: times; none where a file has only what follows.
        median_ms: of the times; ``None`` where none was taken.
        iqr_ms: their interquartile range, where it stands in the file.
        fastest_ms: the least, likewise.
        peak_bytes: extra memory; ``None`` where it was not measured.
    """

    case: str
    implementation: str
    n: int
    d: int
    package: str | None = None
    version: str | None = None
    samples_ms: tuple[float, ...] = ()
    median_ms: float | None = None
    iqr_ms: float | None = None
    fastest_ms: float | None = None
    peak_bytes: float | None = None

    @classmethod
    def of(cls: type[Own], samples_ms: Sequence[float], **fields: Any) -> Own:
        """A row of some times."""
        low, median, high = (quantile(samples_ms, q) for q in (0.25, 0.5, 0.75))
        fields |= {"samples_ms": tuple(samples_ms), "median_ms": median, "iqr_ms": high - low}
        return cls(fastest_ms=min(samples_ms), **fields)

    @property
    def ms(self) -> float:
        """The median of a row that has one."""
        assert self.median_ms is not None, self
        return self.median_ms

    @property
    def half_ms(self) -> float:
        """Half of the interquartile range."""
        if self.iqr_ms is not None:
            return self.iqr_ms / 2
        return (quantile(self.samples_ms, 0.75) - quantile(self.samples_ms, 0.25)) / 2

    @property
    def mib(self) -> float:
        """Extra memory."""
        assert self.peak_bytes is not None, self
        return self.peak_bytes / (1 << 20)

    @property
    def time(self) -> str:
        """Median ± half of the interquartile range (fastest)."""
        return f"{self.ms:.3g} ± {self.half_ms:.2g} ({self.fastest_ms:.3g})"

    @property
    def time_and_memory(self) -> str:
        """For a cell."""
        return f"{self.ms:.0f} ± {self.half_ms:.0f} ms, {self.mib:.0f} MiB"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """A result file: where, and the rows."""

    machine: Provenance
    rows: Sequence[Measured]


def read(name: str) -> Measurements:
    """A committed result file of rows like these."""
    return read_committed(name, Measurements)


def read_committed(name: str, kind: type[T]) -> T:
    """A committed result file."""
    return read_as(RESULTS / f"{name}.json", kind)


def write(path: Path, content: object) -> None:
    """Writes a result file."""
    write_files({path: as_json(content)})
