"""Every shipped configuration, compiled for its architecture: no spills, within shared memory, on the tensor cores.

All problems on sm_90; on the others the largest one of each configuration, the rest by `make kernels-report`.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import REPORT

pytest.importorskip("triton")

from hyperkern.backends.triton import config
from tools.kernels import triton as report
from tools.kernels.report import still_made

# Each compiler spills a few registers of a few kernels: Triton 3.8 at most 16 bytes in 7 of 875 cases and none on
# sm_90, 3.9 there at most 72 in 4 of 99.
TRITON = ".".join(version("triton").split(".")[:2])
ALLOWED_SPILLS, ALLOWED_ON_SM_90 = {"3.6": 128, "3.7": 128}.get(TRITON, 24), {"3.8": 0, "3.9": 72}.get(TRITON, 16)
PAIRWISE = {"contract", "contract_sides", "sums", "two_way", "panel"}
ARCHITECTURES = [architecture.name for architecture in config.shipped()]


def configurations(cases: list[report.Case]) -> set[tuple]:
    blocks = ("BLOCK_M", "BLOCK_N", "BLOCK_D")
    return {
        (*case[1:4], *(case.constants[name] for name in blocks), *case.options.values())
        for case in cases
        if case.kernel in PAIRWISE
    }


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_configuration_compiles_well(triton_report: dict, architecture: str) -> None:
    rows = [row for row in triton_report["rows"] if row["architecture"] == architecture]
    of_architecture = config.of_name(architecture)
    cases = list(report.cases(of_architecture))
    taken = report.chosen([architecture], quick=True)
    fields = ("architecture", "kernel", "operand", "dim", "problem")
    assert [tuple(row[name] for name in fields) for row in rows] == [case[:5] for case in taken]
    assert configurations(taken) == configurations(cases)  # none is left out
    assert len(configurations(taken)) > len(of_architecture.entries)
    limit = of_architecture.shared_bytes
    allowed = ALLOWED_ON_SM_90 if architecture == "sm_90" else ALLOWED_SPILLS
    assert [row for row in rows if row["spill_bytes"] > allowed] == []
    assert [row for row in rows if row["shared_bytes"] > limit] == []
    pairwise = [row for row in rows if row["kernel"] in PAIRWISE]
    assert {row["kernel"] for row in pairwise} == PAIRWISE
    instruction = {"sm_90": "wgmma"}.get(architecture)
    if instruction:
        assert {row["instruction"] for row in pairwise} == {instruction}
    else:
        assert "" not in {row["instruction"] for row in pairwise}


@pytest.mark.slow
def test_what_is_compiled_is_what_is_interpreted(triton_report: dict) -> None:
    # The tests of the values run in the interpreter: they say something about the kernels only if the source is one.
    from triton.runtime.interpreter import InterpretedFunction

    assert triton_report["digests"] == report.source_digests()
    assert set(triton_report["digests"]) == set(report.KERNELS)
    if os.environ.get("TRITON_INTERPRET") == "1":
        assert all(isinstance(kernel, InterpretedFunction) for kernel in report.KERNELS.values())
    sources = {path.stem: path.read_text() for path in config.FOLDER.parent.glob("*.py")}
    # One tile: the product, the exponential and the exclusion stand in tile.py alone; reductions are no tiles.
    for name in ("contract", "panel", "sums", "two_way"):
        assert "tl.dot" not in sources[name]
        assert 'same_id" ' not in sources[name].replace('EXCLUDE == "same_id"', "").replace('EXCLUDE != "same_id"', "")
    assert sources["tile"].count("tl.dot(") == 2  # one of them in the interpreter


def printed(code: str) -> str:
    """What a process prints in which kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_the_report_is_readable() -> None:
    code = (
        "from hyperkern.backends.triton import config; from tools.kernels import triton as report;"
        "a = config.of_name('sm_90'); rows = report.compile_cases([next(report.cases(a))]); report.print_rows(rows)"
    )
    assert "wgmma" in printed(code)


# One of each kernel for sm_90, one for each other architecture.
SAMPLES = """
import json
from hyperkern.backends.triton import config
from tools.kernels import triton as report

samples = {}
for architecture in config.shipped():
    hopper = architecture.name == "sm_90"
    for case in report.cases(architecture) if hopper else report.heaviest(architecture)[:1]:
        samples[architecture.name, hopper and case.kernel] = case
print(json.dumps([row._asdict() for row in report.compile_cases([*samples.values()])]))
"""


@pytest.mark.slow
def test_the_committed_report_is_what_the_compiler_makes() -> None:
    committed = still_made(REPORT)
    if committed is None:
        pytest.skip("the committed report is of other kernels or of another Triton: all tests compile them anew")
    rows = json.loads(printed(SAMPLES))
    assert {row["kernel"] for row in rows} == set(report.KERNELS)
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    assert [row for row in rows if row not in committed["rows"]] == []


@pytest.mark.parametrize("change", ["torn", "missing", "another Triton", "other kernels", "one architecture"])
def test_a_report_of_something_else_is_not_taken(change: str, tmp_path: Path) -> None:
    path, content = tmp_path / "report.json", json.loads(REPORT.read_text())
    of_now = {"triton": version("triton"), "triton_inputs": report.inputs()}
    other = {"another Triton": {"triton": "3.0.0"}, "other kernels": {"triton_inputs": "0"}}.get(change, {})
    if change == "one architecture":
        other = {"rows": [row for row in content["rows"] if "sm_90" in row]}
    path.write_text(json.dumps(content | of_now))
    assert still_made(path) is not None
    path.write_text(json.dumps(content | of_now | other)[: -1 if change == "torn" else None])
    if change == "missing":
        path.unlink()
    assert still_made(path) is None
