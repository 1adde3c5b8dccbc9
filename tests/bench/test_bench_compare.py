"""Two runs side by side: a slower implementation is found, noise is not."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bench_runs import TINY, machine, result, row, simulated, written
from torch import Tensor

from hyperkern.bench import clock
from hyperkern.bench import compare as comparison
from hyperkern.bench import machine as machine_of_run
from hyperkern.bench import run as runs
from hyperkern.bench.compare import check_comparable, compare, confirmed, measure_again
from hyperkern.bench.matrix import Matrix, Point
from hyperkern.bench.registry import IMPLEMENTATIONS, BenchError
from hyperkern.bench.result import Result, Row
from hyperkern.cli import main
from hyperkern.files import as_json

pytestmark = pytest.mark.usefixtures("registry_as_it_was", "small_rates")


def test_noise_alone_is_no_regression() -> None:
    for seed in range(20):
        changes = compare(simulated(2 * seed), simulated(2 * seed + 1), 0.05)
        assert not [c for c in changes if c.regression], f"seed {seed}"
        assert len(changes) == 9


@pytest.mark.parametrize("seed", range(5))
def test_what_is_slower_is_found_and_nothing_else(seed: int) -> None:
    changes = compare(simulated(2 * seed), simulated(2 * seed + 1, slower=2.0), 0.05)
    assert {c.row.implementation for c in changes if c.regression} == {"hyperkern"}
    assert sum(c.regression for c in changes) == 3
    found = next(c for c in changes if c.regression)
    assert found.low is not None
    assert found.high is not None
    assert found.ratio is not None
    assert 1.05 < found.low < found.ratio < found.high
    assert found.corrected == "by dense"


def test_what_is_faster_is_no_regression() -> None:
    changes = compare(simulated(1, slower=2.0), simulated(2), 0.05)
    assert {c.verdict for c in changes if c.row.implementation == "hyperkern"} == {"faster"}
    assert not any(c.regression for c in changes)


def test_a_slower_machine_is_not_a_slower_kernel() -> None:
    old, new = simulated(1), simulated(1)
    limit = new.limits["float32"]
    slower = [replace(row, samples_ms=tuple(3 * sample for sample in row.samples_ms)) for row in new.rows]
    new = replace(new, rows=slower, limits={"float32": replace(limit, flops=limit.flops / 3)})
    assert {c.verdict for c in compare(old, new, 0.05)} == {"same"}
    assert {c.corrected for c in compare(old, new, 0.05)} == {"by dense", "by the machine's rate"}


def test_without_baseline_the_rate_of_the_machine_corrects() -> None:
    times = [10.0, 10.1, 9.9, 10.0, 10.2]
    old = result([row("hyperkern", times)], rate=2e11)
    new = result([row("hyperkern", [2 * time for time in times])], rate=1e11)
    (change,) = compare(old, new, 0.05)
    assert (change.verdict, change.corrected) == ("same", "by the machine's rate")
    assert change.ratio == pytest.approx(1)


def test_unequal_numbers_of_samples_are_no_pairs() -> None:
    base, times = row("dense", [30.0, 30.1, 29.9, 30.2, 30.0, 30.0]), [10.0, 10.1, 9.9, 10.0, 10.2]
    old = result([base, row("hyperkern", times)])
    new = result([base, row("hyperkern", [1.3 * time for time in times])])
    slower = compare(old, new, 0.05)[1]
    assert slower.verdict == "slower"
    assert slower.ratio == pytest.approx(1.3)


def test_the_threshold_counts() -> None:
    times = [10.0, 10.01, 9.99, 10.0, 10.02]
    old, new = result([row("a", times)]), result([row("a", [1.1 * time for time in times])])
    assert compare(old, new, 0.05)[0].verdict == "slower"
    assert compare(old, new, 0.2)[0].verdict == "same"


def test_few_samples_say_nothing() -> None:
    (change,) = compare(result([row("a", [10.0])]), result([row("a", [30.0])]), 0.05)
    assert (change.verdict, change.regression, change.low) == ("too few samples", False, None)
    assert change.ratio == pytest.approx(3)


def test_what_fails_now_is_a_regression_and_what_is_absent_is_not() -> None:
    old = result([row("a", [10.0] * 5), row("b", [10.0] * 5), row("gone", [10.0] * 5)])
    failed = row("a", [], status="failed", reason="wrong")
    skipped = row("b", [], status="skipped", reason="not installed")
    changes = compare(old, result([failed, skipped, row("new", [1.0] * 5)]), 0.05)
    assert [(c.verdict, c.regression) for c in changes] == [("fails: wrong", True), ("skipped: not installed", False)]


@pytest.mark.parametrize(("name", "other"), [("device", "another"), ("processor", "another"), ("threads", 2)])
def test_runs_of_different_machines_are_refused(name: str, other: object) -> None:
    with pytest.raises(BenchError, match=f"different machines: {name} "):
        check_comparable(result([]), machine(**{name: other}))


def test_runs_without_a_common_row_are_refused() -> None:
    with pytest.raises(BenchError, match="no row in common"):
        compare(result([row("a", [1.0])]), result([row("b", [1.0])]), 0.05)


def test_comparing_changes_nothing() -> None:
    old, new = simulated(1), simulated(2)
    before = copy.deepcopy((old, new))
    compare(old, new, 0.05)
    assert (old, new) == before


def files(tmp_path: Path, *results: Result) -> list[str]:
    paths = [tmp_path / f"{i}.json" for i in range(len(results))]
    for path, of_path in zip(paths, results, strict=True):
        path.write_bytes(as_json(of_path))
    return [str(path) for path in paths]


def test_the_command_ends_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, same, slower = files(tmp_path, simulated(1), simulated(2), simulated(3, slower=2.0))
    assert main(["bench", "compare", old, same]) == 0
    assert "9 rows compared, 0 slower by more than 5 %" in capsys.readouterr().out
    assert main(["bench", "compare", old, slower]) == 3
    assert capsys.readouterr().out.count("slower\n") == 3
    assert main(["bench", "compare", old, slower, "--fail-over", "150%"]) == 0
    assert main(["bench", "--fail-over", "150%", "compare", old, slower]) == 0


@pytest.mark.parametrize(
    ("speeds", "regressions"),
    [([2.0, 1.0], 0), ([2.0, 2.0, 1.0], 0), ([2.0, 2.0, 2.0], 3), ([1.0], 0)],
    ids=["once", "twice", "always", "never"],
)
def test_slower_is_what_is_slower_every_time(speeds: list[float], regressions: int) -> None:
    old, first, *others = simulated(1), *(simulated(i, slower=speed) for i, speed in enumerate(speeds, 2))
    asked = []

    def measured_again(rows: Sequence[Row]) -> Result:
        asked.append(len(rows))
        return others[len(asked) - 1]

    changes = confirmed(old, compare(old, first, 0.05), 0.05, measured_again)
    assert asked == [3] * len(others)
    assert sum(change.regression for change in changes) == regressions
    assert [change.verdict for change in changes].count("slower, but not every time") == (
        3 if asked else 0
    ) - regressions


def test_what_fails_when_measured_again_is_a_regression() -> None:
    old, first, second = simulated(1), simulated(2, slower=2.0), simulated(3)
    failed = [replace(row, status="failed", reason="wrong", samples_ms=()) for row in second.rows]
    second = replace(second, rows=failed)
    changes = confirmed(old, compare(old, first, 0.05), 0.05, lambda rows: second)
    assert sum(change.regression for change in changes) == 3


def test_measured_again_are_those_rows_in_another_process(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    written(mine, MINE)
    matrix = Matrix(
        "cpu", ("clip", "uniformity"), (20, 30), (8, 16), ("float32",), rounds=5, seconds=1e3, files=(mine,)
    )
    found = measure_again(matrix, [row("mine", [1.0], n=30, d=8)])
    assert [(r.implementation, r.n, r.d, len(r.samples_ms)) for r in found.rows] == [
        ("dense", 30, 8, 5),
        ("mine", 30, 8, 5),
    ]
    assert found.rows[0].status == "ok"
    with pytest.raises(BenchError, match=r"measuring again failed: .*no\.py"):
        measure_again(replace(matrix, files=(tmp_path / "no.py",)), [row("mine", [1.0])])


MINE = """
from hyperkern.bench import implementation
from hyperkern.textbook import dense_uniformity

@implementation("uniformity", "mine")
def mine():
    return dense_uniformity
"""


@pytest.fixture
def milliseconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the calls of an implementation take, give or take some percent, whatever the machine does meanwhile."""
    times, draw, ready = {"dense": 3.0, "mine": 1.0}, random.Random(0), runs._ready

    def warmed_up(point: Point, inputs: list[Tensor], matrix: Matrix) -> clock.Runner:
        return ready(point, inputs, matrix)._replace(settled_ms=times[point.implementation.name])

    monkeypatch.setattr(runs, "_ready", warmed_up)
    monkeypatch.setattr(clock, "sample", lambda runner, *_: [runner.settled_ms * draw.lognormvariate(0, 0.03)])
    monkeypatch.setattr(machine_of_run, "once", lambda *_: 1.0)
    return times


@pytest.mark.parametrize(
    ("now", "then", "status"),
    [(1.0, None, 0), (30.0, 30.0, 3), (30.0, 1.0, 0)],
    ids=["its like", "a slower one", "slower once"],
)
def test_a_run_against_another(
    now: float,
    then: float | None,
    status: int,
    tmp_path: Path,
    milliseconds: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def measured_again(matrix: Matrix, rows: Sequence[Row]) -> Result:
        asked.append([row.implementation for row in rows])
        milliseconds["mine"] = then
        return runs.run(matrix)

    monkeypatch.setattr(comparison, "measure_again", measured_again)
    base, mine = tmp_path / "base.json", written(tmp_path / "mine.py", MINE)
    options = [*TINY, "--cases", "uniformity", "--implementations", "mine", "--rounds", "11", "--load", mine]
    assert main(["bench", *options, "--json", str(base)]) == 0
    del IMPLEMENTATIONS["uniformity", "mine"]
    milliseconds["mine"] = now
    assert main(["bench", *options, "--baseline", str(base), "--fail-over", "100%"]) == status
    assert asked == [["mine"]] * {None: 0, 30.0: comparison.TIMES, 1.0: 1}[then]
