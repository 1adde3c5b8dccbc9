"""The table and the machine-readable results."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import rich.box
import rich.console
import rich.table
import sklearn
import torch

from hyperkern import __version__
from hyperkern.bench.machine import describe

from .config import DemoConfig
from .huge_batch import HugeBatch
from .objectives import ALPHA, OBJECTIVES, TEMPERATURE, UNTRAINED, T
from .results import CircleRun, Finding, Run, Spread, Summary
from .train import LEARNING_RATE


class Results(NamedTuple):
    """Everything that the demo found.

    Attributes:
        config: the options.
        device: where it ran.
        train_size: number of training images.
        held_out_size: number of held-out images.
        runs: every encoder of dimension `config.dim`.
        summary: mean and spread of `runs` over seeds.
        circle: the two-dimensional runs of the picture.
        limit: uniformity of the uniform distribution on the sphere of dimension `config.dim`.
        huge: the huge batch.
        finding: the verdict.
        seconds: time of the whole demo up to the writing of the files.
    """

    config: DemoConfig
    device: str
    train_size: int
    held_out_size: int
    runs: Sequence[Run]
    summary: Summary
    circle: Sequence[CircleRun]
    limit: float
    huge: HugeBatch
    finding: Finding
    seconds: float


HEADER = ("objective", "alignment ↓", "uniformity ↓", "linear probe % ↑", "standardised % ↑", "5-NN % ↑")


def table_rows(summary: Summary, limit: float) -> list[tuple[str, ...]]:
    """Build the cells below `HEADER`: each objective, the untrained encoder, the uniform distribution."""
    labels = {objective.name: objective.label for objective in OBJECTIVES}
    labels[UNTRAINED] = "untrained encoder"
    rows: list[tuple[str, ...]] = []
    for name, label in labels.items():
        metrics = summary[name]
        rows.append(
            (
                label,
                _cell(metrics["alignment"], 1, 4),
                _cell(metrics["uniformity"], 1, 3),
                _cell(metrics["linear_probe"], 100, 1),
                _cell(metrics["scaled_probe"], 100, 1),
                _cell(metrics["knn"], 100, 1),
            )
        )
    rows.append(("uniform distribution (exact)", "", f"{limit:.3f}", "", "", ""))
    return rows


def _cell(spread: Spread, scale: float, digits: int) -> str:
    cell = f"{round(scale * spread.mean, digits) + 0.0:.{digits}f}"  # the sum makes -0.0 a plain zero
    return cell if spread.std is None else f"{cell} ± {scale * spread.std:.{digits}f}"


def table_title(config: DemoConfig, held_out_size: int) -> str:
    """Say what the table shows."""
    seeds = "1 seed" if config.seeds == 1 else f"mean ± standard deviation over {config.seeds} seeds"
    return f"{held_out_size} held-out images, {config.dim} dimensions, {seeds}"


def print_table(console: rich.console.Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a drawn table on a terminal that is wide enough, plain aligned lines elsewhere."""
    widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in range(len(HEADER))]
    # A figure that is cut off says nothing: lines that wrap do.
    if console.is_terminal and sum(widths) + 4 * len(widths) <= console.width:
        table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
        for index, name in enumerate(HEADER):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    print(title)
    for row in (HEADER, *rows):
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def markdown(title: str, rows: Sequence[Sequence[str]], finding: Finding) -> str:
    """Write the table and the finding in Markdown."""
    rule = ["---", *["---:"] * (len(HEADER) - 1)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (HEADER, rule, *rows))
    comparisons = "\n".join(f"- {line}" for line in finding.lines[:-1])
    return f"{title}\n\n{table}\n\n{comparisons}\n\n{finding.lines[-1]}\n"


def to_json(results: Results) -> str:
    """Write all figures, the configuration and the versions as JSON."""
    config = dataclasses.asdict(results.config)
    del config["out"]  # says where, not what
    on_gpu = not results.device.startswith("cpu")
    content = {
        "machine": dataclasses.asdict(describe("cuda" if on_gpu else "cpu")),
        "config": config,
        "recipe": {"alpha": ALPHA, "t": T, "temperature": TEMPERATURE, "learning_rate": LEARNING_RATE},
        "objectives": {objective.name: objective.formula for objective in OBJECTIVES},
        "device": results.device,
        "versions": {
            "hyperkern": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "matplotlib": matplotlib.__version__,
        },
        "images": {"train": results.train_size, "held_out": results.held_out_size},
        "uniform_distribution": {"dim": results.config.dim, "t": T, "uniformity": results.limit},
        "runs": [_run_json(run) for run in results.runs],
        "summary": {
            objective: {metric: spread._asdict() for metric, spread in metrics.items()}
            for objective, metrics in results.summary.items()
        },
        "circle_runs": [_run_json(circle.run) for circle in results.circle],
        "huge_batch": results.huge._asdict(),
        "finding": results.finding._asdict(),
        "seconds": results.seconds,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "objective": run.objective,
        "seed": run.seed,
        "dim": run.dim,
        **run.evaluation._asdict(),
        "seconds": run.seconds,
    }
