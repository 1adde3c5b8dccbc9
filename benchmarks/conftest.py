"""Collects what the benchmarks measured and prints it as one table; ``--record FILE`` writes it as JSON."""

import json
import platform
from pathlib import Path

import pytest
import torch

import hyperkern
from hyperkern.bench.machine import processor

_rows: list[dict] = []


def pytest_addoption(parser):
    parser.addoption("--record", metavar="FILE", help="write the measured table to this JSON file")


@pytest.fixture
def record():
    """Call with the figures of one measurement."""
    return lambda **row: _rows.append(row)


def pytest_terminal_summary(terminalreporter, config):
    if not _rows:
        return
    # Ratios to the baselines of the same run, when all of a case has been measured.
    times = {(row["case"], row["implementation"]): row["median_ms"] for row in _rows}
    for row in _rows:
        for baseline in ("pdist", "dense"):
            time = times.get((row["case"], baseline))
            row[f"vs_{baseline}"] = time / row["median_ms"] if time and row["implementation"] != baseline else None
    columns = {
        "median ms": lambda row: f"{row['median_ms']:.2f}",
        "iqr ms": lambda row: f"{row['iqr_ms']:.2f}" if "iqr_ms" in row else "",
        "GFLOP/s": lambda row: f"{row['gflops']:.0f}",
        "of sgemm": lambda row: f"{row['of_sgemm']:.2f}",
        "vs pdist": lambda row: f"{row['vs_pdist']:.1f}x" if row["vs_pdist"] else "",
        "vs dense": lambda row: f"{row['vs_dense']:.1f}x" if row["vs_dense"] else "",
        "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "",
    }
    terminalreporter.section("loss + gradient, one run on this machine")
    terminalreporter.write_line(f"{'case':<36}{'implementation':<20}" + "".join(f"{name:>10}" for name in columns))
    for row in _rows:
        cells = "".join(f"{cell(row):>10}" for cell in columns.values())
        terminalreporter.write_line(f"{row['case']:<36}{row['implementation']:<20}{cells}")
    terminalreporter.write_line(
        "GFLOP/s counts the least arithmetic: 3 N^2 D for uniformity, 6 N^2 D for the two-way loss, 12 N^2 D for "
        "NT-Xent. 'of sgemm' is its ratio to the median rate of the library's float32 product, timed between the "
        "rounds; 'vs' are speed-ups."
    )
    if path := config.getoption("--record"):
        machine = {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "hyperkern": hyperkern.__version__,
        }
        Path(path).write_text(json.dumps({"machine": machine, "rows": _rows}, indent=1) + "\n")
