"""No implementation is timed before it has passed, and what fails is shown as failed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_runs import TINY, WRONG, with_peers, written
from torch import Tensor

from benchmarks.studies import PEERS
from hyperkern.bench import gate
from hyperkern.bench.load import load_file
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, Implementation, Setup
from hyperkern.cli import main
from hyperkern.textbook import dense_uniformity

pytestmark = pytest.mark.usefixtures("registry_as_it_was", "small_rates")
SETUP = Setup("uniformity", "float32", 40, 8, "both")


def check(loss: Callable[[Tensor], Tensor], setup: Setup = SETUP) -> float | None:
    return gate.check(CASES["uniformity"], Implementation("uniformity", "it", lambda: loss), lambda: loss, setup)


def wrong_gradient(x: Tensor) -> Tensor:
    value = dense_uniformity(x)
    return value.detach() + 1.01 * (value - value.detach())


def test_the_right_formula_passes() -> None:
    error = check(dense_uniformity)
    assert error is not None
    assert error < 1e-5


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda x: 1.01 * dense_uniformity(x), "wrong: relative error 0.01 of float64 at N 40"),
        (wrong_gradient, "wrong: relative error 0.01"),
        (lambda x: dense_uniformity(x) * torch.nan, "wrong: relative error inf"),
        (lambda x: dense_uniformity(x.detach()), "RuntimeError: element 0 of tensors does not require grad"),
        (lambda x: dense_uniformity(x).expand(2), r"shape \(2,\), expected \(\)"),
        (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_does_not(loss: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(gate.GateFailure, match=reason):
        check(loss)


def test_a_wrong_gradient_does_not_matter_to_the_value_alone() -> None:
    assert check(wrong_gradient, SETUP._replace(mode="forward")) is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y, scale: (x, y, scale.detach()), "2 gradients, expected 3"),
        # The value stays, the gradients of the sides too.
        (lambda x, y, scale: (x, y, scale.detach() + 0.99 * (scale - scale.detach())), "relative error 0.01 of"),
    ],
)
def test_the_gradient_of_a_learned_number_counts(change: Callable[..., tuple[Tensor, ...]], reason: str) -> None:
    loss = IMPLEMENTATIONS["clip_learned", "dense"].make()
    learned = Implementation("clip_learned", "it", lambda: loss)
    with pytest.raises(gate.GateFailure, match=reason):
        gate.check(
            CASES["clip_learned"], learned, lambda: lambda *of: loss(*change(*of)), SETUP._replace(case="clip_learned")
        )


def test_the_truth_is_given_labels_as_they_are() -> None:
    kinds = []

    def truth(x: Tensor, labels: Tensor) -> Tensor:
        kinds.append((x.dtype, labels.dtype))
        return x.square().sum()

    case = replace(CASES["sup_con"], truth=truth)
    found = Implementation("sup_con", "it", lambda: truth)
    gate.check(case, found, found.make, SETUP._replace(case="sup_con"))
    assert kinds == [(torch.float64, torch.int64), (torch.float32, torch.int64)]


def test_a_gradient_that_is_missing_is_named() -> None:
    setup = SETUP._replace(case="clip")
    loss = IMPLEMENTATIONS["clip", "dense"].make()
    of_one = Implementation("clip", "it", lambda: loss)
    with pytest.raises(gate.GateFailure, match="1 gradients, expected 2"):
        gate.check(CASES["clip"], of_one, lambda: lambda x, y: loss(x, y.detach()), setup)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.truth is not None])
@pytest.mark.parametrize("name", ["dense", "chunked", "pdist", "hyperkern"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_peers_of_torch_pass(case: str, name: str, dtype: str) -> None:
    if (case, name) in IMPLEMENTATIONS:
        found = IMPLEMENTATIONS[case, name]
        error = gate.check(CASES[case], found, found.make, Setup(case, dtype, 70, 16, "both"))
        assert error is not None
        assert error <= gate.TOLERANCES[dtype] / 4


@pytest.mark.parametrize(("case", "name"), [key for key in with_peers() if key[1] not in ("compiled", "keops")])
def test_the_libraries_pass_where_they_are_installed(case: str, name: str) -> None:
    load_file(PEERS)
    found, setup = IMPLEMENTATIONS[case, name], Setup(case, "float32", 70, 16, "both")
    if (reason := found.refusal(setup)) is not None:
        pytest.skip(reason)
    gate.check(CASES[case], found, found.make, setup)


def test_the_gate_draws_from_a_state_of_its_own() -> None:
    state = torch.random.get_rng_state()
    check(dense_uniformity)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_wrong_implementation_gets_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    options = ["--cases", "uniformity", "--implementations", "wrong,hyperkern", "--json", str(out)]
    assert main(["bench", *TINY, "--load", written(tmp_path / "mine.py", WRONG), *options]) == 0
    rows = {row["implementation"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["wrong"]["status"] == "failed"
    assert rows["wrong"]["samples_ms"] == []
    assert all(rows["wrong"][name] is None for name in ("median_ms", "p20_ms", "tflops", "of_limit", "vs_baseline"))
    assert rows["wrong"]["error"] == pytest.approx(0.01, rel=0.1)
    assert rows["hyperkern"]["status"] == rows["dense"]["status"] == "ok"
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("uniformity") and " wrong " in line)
    assert line.split()[-1] == "FAILED"
    assert "failed: uniformity, wrong: wrong: relative error 0.01 of float64" in printed


def test_what_is_wrong_at_full_size_only_gets_no_time(tmp_path: Path) -> None:
    source = WRONG.replace("1.01 * dense_uniformity(x)", "dense_uniformity(x[:500])")
    out = tmp_path / "result.json"
    options = ["--cases", "uniformity", "--implementations", "wrong", "--sizes", "700", "--json", str(out)]
    assert main(["bench", *TINY, "--load", written(tmp_path / "mine.py", source), *options]) == 0
    wrong = json.loads(out.read_text())["rows"][-1]
    assert wrong["status"] == "failed"
    assert "at N 700 its value is" in wrong["reason"]
