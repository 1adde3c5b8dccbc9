"""The studies ask for what there is, their files keep what was promised, and their cases pass the gate."""

from pathlib import Path

import pytest
import torch
from bench_runs import TINY
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import shown, studies
from benchmarks.measured import Measured, read
from hyperkern.bench import child, gate
from hyperkern.bench.load import load_file
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, Setup
from hyperkern.bench.result import read as read_result

pytestmark = pytest.mark.usefixtures("registry_as_it_was", "small_rates")
VARIANTS, STEPS = (studies.FOLDER / name for name in ("variants.py", "steps.py"))


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_is_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert command.main([name, "--plan", "--sizes", "256"]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for case in studies.STUDIES[name].cases or ("uniformity", "siglip", "sup_con"):
        assert f"\n{case}: counted " in printed


def test_a_study_measures(tmp_path: Path) -> None:
    out = tmp_path / "large.json"
    assert command.main(["large", *TINY, "--cases", "siglip", "--implementations", "dense", "--json", str(out)]) == 0
    assert [(row.implementation, row.n, row.status) for row in read_result(out).rows] == [("dense", 40, "ok")]


def test_without_a_study_the_peers_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--device", "cpu", "--cases", "clip", "--sizes", "64", "--dims", "8", "--plan"]) == 0
    assert "clip, liger: runs on cuda only" in capsys.readouterr().out


def test_studies_are_listed_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["ordnary"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "there is no study 'ordnary'; there are"
    assert [line.split(":")[0].strip() for line in lines[1:]] == list(studies.STUDIES)


def test_two_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_names_are_those_of_the_files() -> None:
    load_file(studies.PEERS)
    assert tuple(case for case, name in IMPLEMENTATIONS if name == "original") == studies.DROP_INS
    load_file(VARIANTS)
    assert tuple(name for name, case in CASES.items() if case.baseline == "hyperkern") == studies.VARIANTS
    load_file(STEPS)
    assert {name for name, case in CASES.items() if case.own is not None} == {*studies.STEPS}


@pytest.mark.parametrize("case", [*studies.VARIANTS, "paper's uniform_loss"])
def test_variants_pass(case: str) -> None:
    load_file(VARIANTS if case in studies.VARIANTS else studies.PEERS)
    found = IMPLEMENTATIONS[case, "hyperkern"]
    error = gate.check(CASES[case], found, found.make, Setup(case, "float32", 70, 16, "both"))
    assert error is not None
    assert error < 1e-5


@pytest.mark.parametrize("case", studies.STEPS)
def test_steps_pass_and_a_wrong_one_does_not(case: str) -> None:
    load_file(STEPS)
    setup = Setup(case, "float64", 37, 64, "both")  # two chunks, of which one is shorter
    for name in ("one-shot", "cached_step", "by-hand"):
        found = IMPLEMENTATIONS[case, name]
        error = gate.check(CASES[case], found, found.make, setup)
        assert error is not None
        assert error < 1e-12
    inputs = CASES[case].draw(8, 64, "float32", "cpu")
    assert [x.requires_grad for x in inputs] == [False, False, *[True] * (len(inputs) - 2)]

    right = IMPLEMENTATIONS[case, "one-shot"].make()

    def with_half_of_a_gradient(*inputs: Tensor) -> Tensor:
        return right(*inputs[:-1], inputs[-1].detach() + (inputs[-1] - inputs[-1].detach()) / 2)

    with pytest.raises(gate.GateFailure, match=r"relative error 0\.5"):
        gate.check(CASES[case], found, lambda: with_half_of_a_gradient, setup)


def test_a_peak_is_that_of_a_process_of_its_own() -> None:
    case, n, d = "nt_xent + third view", 2048, 64
    load_file(VARIANTS)
    (found,) = child.each_alone("hyperkern", "eager", [Setup(case, "float32", n, d, "both")], [VARIANTS])
    assert isinstance(found, child.Alone), found
    # Three gradients at the least, and far from the matrix of all pairs.
    assert found.peak_bytes is None or 3 * n * d * 4 < found.peak_bytes < 100 << 20


class TestCommittedResults:
    def test_every_drop_in_was_measured(self) -> None:
        rows = read("drop_ins_cpu").rows
        assert {(row.case, row.implementation) for row in rows if row.median_ms} == {
            (case, name) for case in studies.DROP_INS for name in ("original", "hyperkern")
        }

    def test_the_memory_that_is_promised_was_kept(self) -> None:
        rows = [row for row in read("peaks_cpu").rows if row.implementation == "hyperkern"]
        assert {row.case for row in rows} == {*studies.PAIRED, *studies.VARIANTS}
        for row in rows:
            assert (row.n, row.d) == (32768, 256)
            assert row.peak_bytes is not None
            assert row.peak_bytes < shown.MOST_BYTES, row.case


def made(case: str, name: str, n: int, ms: float, mib: float) -> Measured:
    return Measured.of([ms] * 3, case=case, implementation=name, n=n, d=8, peak_bytes=mib * (1 << 20))


def test_a_slower_drop_in_is_named() -> None:
    first, second = studies.DROP_INS[:2]
    rows = [made(first, "original", 64, 1.0, 9.0), made(first, "hyperkern", 64, 2.0, 3.0)]
    rows += [made(second, "original", 64, 4.0, 1.0), made(second, "hyperkern", 64, 2.0, 3.0)]
    assert shown.worse(rows) == f"Slower than the original: {first}. Larger: {second}."
    # At the largest size that both have.
    rows += [made(first, "original", 128, 5.0, 9.0), *(made(first, "hyperkern", n, 2.0, 3.0) for n in (128, 256))]
    assert shown.worse(rows) == f"Slower than the original: none. Larger: {second}."


def test_a_time_and_its_spread() -> None:
    found = Measured.of([5.0, 1.0, 2.0, 4.0, 3.0], case="a", implementation="b", n=1, d=1, peak_bytes=3 << 20)
    assert (found.median_ms, found.iqr_ms, found.fastest_ms) == (3.0, 2.0, 1.0)
    assert (found.time, found.time_and_memory) == ("3 ± 1 (1)", "3 ± 1 ms, 3 MiB")
    assert Measured(case="a", implementation="b", n=1, d=1, samples_ms=(1.0, 2.0, 3.0, 4.0, 5.0)).half_ms == 1.0
