"""Collects what the benchmarks measured and prints it as one table; ``--record FILE`` writes it as JSON."""

import json
import platform
from pathlib import Path

import pytest
import torch

import hyperkern

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
    # Speed-ups are filled in here, when all of a case has been measured.
    times = {(row["case"], row["implementation"]): row["median_ms"] for row in _rows}
    for row in _rows:
        baseline = times.get((row["case"], "pdist")) or times.get((row["case"], "dense"))
        row["speedup"] = baseline / row["median_ms"] if baseline else None
    terminalreporter.section("loss + gradient, one run on this machine")
    terminalreporter.write_line(
        f"{'case':<34}{'implementation':<15}{'median ms':>10}{'iqr ms':>9}{'GFLOP/s':>9}{'of sgemm':>9}"
        f"{'speed-up':>9}{'peak MB':>9}"
    )
    for row in _rows:
        cells = (
            f"{row['median_ms']:>10.1f}",
            f"{row['iqr_ms']:>9.1f}",
            f"{row['gflops']:>9.0f}" if row.get("gflops") else f"{'':>9}",
            f"{row['of_sgemm']:>9.2f}" if row.get("of_sgemm") else f"{'':>9}",
            f"{row['speedup']:>8.1f}x" if row["speedup"] else f"{'':>9}",
            f"{row['peak_bytes'] / 1e6:>9.0f}" if row.get("peak_bytes") else f"{'':>9}",
        )
        terminalreporter.write_line(f"{row['case']:<34}{row['implementation']:<15}{''.join(cells)}")
    terminalreporter.write_line(
        "GFLOP/s counts the symmetric minimum 3 N^2 D (two-way contrastive: 8 N^2 D); 'of sgemm' is its ratio to the "
        "median rate of the library's float32 product, timed between the rounds; speed-up is over pdist, else dense."
    )
    if path := config.getoption("--record"):
        machine = {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "hyperkern": hyperkern.__version__,
        }
        Path(path).write_text(json.dumps({"machine": machine, "rows": _rows}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
