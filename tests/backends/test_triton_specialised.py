"""Kernels with specialised warps: right where a configuration chooses them, and chosen nowhere else.

What the compiler makes of them is looked at on the version of Triton that is installed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICE, needs_triton

pytest.importorskip("triton")

import compiled_specialised
import triton

from hyperkern import losses
from hyperkern.backends import load
from hyperkern.backends.triton import config, operands, primitives, specialised
from hyperkern.backends.triton import launch as launching
from hyperkern.backends.triton.config import Architecture, Config, Entry
from hyperkern.backends.triton.launch import Launch
from hyperkern.correctness import primitives as exact
from hyperkern.spec import PairSpec, PairTerms

ON_GPU = torch.cuda.is_available()
MARKS = [needs_triton, *([pytest.mark.gpu] if ON_GPU else [])]


def choosing(architecture: Architecture) -> Architecture:
    """The same, with specialised warps wherever there are any: tiny tiles in the interpreter."""
    entries = architecture.entries
    if architecture.name == "interpreter":
        entries = tuple(
            Entry(kernel, "bfloat16", dim, mode, Config(16, 16, None, 4, 1, mode == "exp"))
            for kernel, modes in (("contract", ("exp", None)), ("sums", ("exp", None)), ("two_way", (None,)))
            for dim in (64, 128)
            for mode in modes
        )
    else:
        uses = [(k, "bfloat16", dim, "exp") for k in ("contract", "sums") for dim in (64, 128)]
        chosen = tuple(Entry(*use, config.specialised(architecture.name, *use)[0]) for use in uses)
        entries = (*chosen, *(e for e in entries if e[:4] not in uses))
    return architecture._replace(name=f"{architecture.name} specialised", entries=entries)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Files choose specialised warps; those of the kernels that are launched."""
    if ON_GPU:
        if torch.cuda.get_device_capability()[0] not in (9, 10):
            pytest.skip("there are no specialised warps for this GPU")
        found = config.of_device(torch.cuda.current_device())
        monkeypatch.setattr(operands.config, "of_device", lambda index: choosing(found))
    else:
        monkeypatch.setattr(
            operands, "_INTERPRETER", {least: choosing(a) for least, a in operands._INTERPRETER.items()}
        )
    launched: list[Any] = []
    parts = launching._launch_parts
    monkeypatch.setattr(
        launching,
        "_launch_parts",
        lambda of, device, pointers: (launched.extend(part.kernel for part in of), parts(of, device, pointers)),
    )
    return launched


def rows(*shape: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.nn.functional.normalize(torch.randn(shape, generator=draw), dim=-1).to(DEVICE)


# Tiles without a mask alone, none of these, a diagonal within and across tiles, ragged ends, and a single row.
SHAPES = [(32, 64), (37, None), (50, 33), (33, 70), (16, 16), (1, 5), (128, None)]
SIZE = 8 if ON_GPU else 1  # tiles of 128 rows, or of 16


@pytest.mark.parametrize("exclude", ["none", "self"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("precision", "dim", "cuts"),
    [("bfloat16", 64, 1), ("bfloat16", 128, 3), ("float16", 40, 1), ("float16", 128, 3)],
)
class TestValues:
    pytestmark = MARKS

    def test_against_float64(
        self,
        chosen: list[Any],
        exclude: str,
        shape: tuple,
        precision: str,
        dim: int,
        cuts: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        m, n = shape
        monkeypatch.setattr(primitives, "cut", lambda *_: cuts)
        x, y = rows(2, m * SIZE, dim), None if n is None else rows(2, n * SIZE + 3, dim)
        spec = PairSpec(4.0, True, exclude, precision)
        operand = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
        a, b = (t.to(operand).double() for t in (x, x if y is None else y))
        logits = 4 * a @ b.mT
        if exclude == "self":
            logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        weights = logits.exp()
        backend = load("triton")
        total, grad_x, sum_x, grad_y, sum_y = backend.energy(
            x, y, PairTerms(), spec, "exp", need_x=True, need_y=y is not None
        )
        value, *_ = backend.energy(x, y, PairTerms(), spec, "exp", need_x=False, need_y=False)
        alone = backend.row_lse(x, y, PairTerms(), spec, need_cols=False).row
        assert {*chosen} == {specialised.contract_specialised_kernel, specialised.sums_specialised_kernel}
        for found, wanted in ((total, weights.sum((1, 2))), (value, weights.sum((1, 2))), (sum_x, weights.sum(2))):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.double(), logits.logsumexp(2), rtol=1e-5, atol=1e-5)
        # Weights are rounded to the dtype of the second product.
        allowed = torch.finfo(operand).eps * (weights @ b.abs()).max().item()
        torch.testing.assert_close(grad_x.double(), weights @ b, rtol=0, atol=allowed)
        if y is not None:
            torch.testing.assert_close(sum_y.double(), weights.sum(1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(grad_y.double(), weights.mT @ a, rtol=0, atol=allowed)


@pytest.mark.parametrize("loss", ["uniformity", "queue", "align_uniform"])
class TestLosses:
    pytestmark = MARKS

    def test_whole_losses(self, chosen: list[Any], loss: str) -> None:
        x, y = rows(37 * SIZE, 64).bfloat16().requires_grad_(), rows(21 * SIZE, 64).bfloat16()
        calls = {
            "uniformity": lambda x, backend: losses.uniformity(x, backend=backend),
            "queue": lambda x, backend: losses.uniformity(x, y.to(x.dtype), backend=backend),
            "align_uniform": lambda x, backend: losses.align_uniform(x, x.roll(1, 0), backend=backend).loss,
        }
        kernel = specialised.contract_sides_specialised_kernel
        if loss == "align_uniform":
            kernel = specialised.contract_specialised_kernel
        found = []
        for backend, dtype in (("triton", torch.bfloat16), ("reference", torch.float64)):
            value = calls[loss](x.to(dtype), backend)
            found.append((value.double(), torch.autograd.grad(value, x)[0].double()))
        assert {*chosen} == {kernel}
        torch.testing.assert_close(*(value for value, _ in found), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(*(grad for _, grad in found), rtol=0, atol=2e-2 * found[1][1].abs().max().item())


class TestChoice:
    """Which problems go the ordinary way, although a file has an entry."""

    pytestmark = MARKS

    @pytest.mark.parametrize(
        ("problem", "taken"),
        [
            ({}, True),
            ({"kind": "tf32"}, False),
            ({"dim": 32}, False),
            ({"dim": 60}, False),  # rows of 120 bytes
            ({"dim": 136}, False),
            ({"u": True}, False),
            ({"ids": True}, False),
            ({"unaligned": True}, False),
            ({"apart": 4}, False),  # rows that start at multiples of 8 bytes
            ({"apart": 8}, True),
            ({"none": True}, False),
            ({"mode": "bounded"}, False),
        ],
    )
    def test_what_descriptors_can_load(self, problem: dict[str, Any], taken: bool) -> None:
        dim, dtype = problem.get("dim", 64), torch.float32 if problem.get("kind") == "tf32" else torch.bfloat16
        storage = torch.zeros(1, 40, dim + 8, dtype=dtype, device=DEVICE)
        x = storage[..., :dim] if "unaligned" not in problem else storage[..., 4 : 4 + dim]
        if "apart" in problem:
            x = storage.view(-1).as_strided((1, 30, dim), (0, dim + problem["apart"], 1))
        x = x[:, :0] if "none" in problem else x
        vector = torch.zeros(1, x.shape[1], device=DEVICE)
        terms = PairTerms(vector if "u" in problem else None, None, *(2 * (vector.long(),) if "ids" in problem else ()))
        spec = PairSpec(4.0, True, "same_id" if "ids" in problem else "none")
        architecture = choosing(config.of_name("sm_90") if ON_GPU else operands._INTERPRETER[0])
        o = operands.Operands(x, x, terms, spec, True, problem.get("kind", "bfloat16"), "tf32", architecture)
        mode = problem.get("mode", "exp")
        found = [o.find("contract", mode), o.find("sums", mode)]
        assert [choice is not None and choice.specialised for choice in found] == [taken, taken]

    def test_another_triton_goes_the_ordinary_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.zeros(1, 40, 64, dtype=torch.bfloat16, device=DEVICE)
        architecture = choosing(config.of_name("sm_90"))
        o = operands.Operands(x, x, PairTerms(), PairSpec(4.0, True), True, "bfloat16", "tf32", architecture)
        choice = o.find("contract", "exp")
        assert choice is not None
        assert choice.specialised
        monkeypatch.setattr(operands, "SPECIALISING", False)
        assert o.find("contract", "exp") == config.find(config.of_name("sm_90"), "contract", "bfloat16", 64, "bounded")


def test_no_shipped_file_chooses_them() -> None:
    assert not any(entry.config.specialised for one in config.shipped() for entry in one.entries)


class TestFiles:
    """What a file may ask for."""

    ENTRY = Entry("contract", "bfloat16", 128, "exp", Config(128, 128, None, 4, 2, True))

    def written(self, folder: Path, entry: Entry, name: str = "sm_90", *, alone: bool = False) -> Path:
        base = config.of_name(name)
        path = folder / f"{name}.json"
        config.write(base._replace(entries=(entry,) if alone else (entry, *base.entries)), path)
        return path

    @pytest.mark.parametrize(("name", "warps"), [("sm_90", 4), ("sm_100", 8)])
    def test_what_is_written_is_read(self, tmp_path: Path, name: str, warps: int) -> None:
        for kernel in ("contract", "sums"):
            for dim in (64, 128):
                for choice in config.specialised(name, kernel, "bfloat16", dim, "exp"):
                    assert choice.num_warps == warps
                    entry = Entry(kernel, "bfloat16", dim, "exp", choice)
                    path = self.written(tmp_path, entry, name)
                    assert path.read_text().count('"specialised": true') == 1
                    assert "false" not in path.read_text()
                    found = config.read(path)
                    assert entry in found.entries
                    for operand in ("bfloat16", "float16"):
                        assert config.find(found, kernel, operand, dim, "exp", True) == choice
                    ordinary = config.find(found, kernel, "bfloat16", dim, "exp")
                    assert ordinary == config.find(config.of_name(name), kernel, "bfloat16", dim, "exp")

    @pytest.mark.parametrize("value", [None, 0, 1, 1.0, "", [], {}])
    def test_what_is_neither_true_nor_false_is_refused(self, tmp_path: Path, value: Any) -> None:
        content = json.loads((config.FOLDER / "sm_90.json").read_text())
        content["entries"][0]["specialised"] = value
        (tmp_path / "sm_90.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="'specialised' must be true or false, got "):
            config.read(tmp_path / "sm_90.json")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kernel": "panel"}, r"not for kernel 'panel'"),
            ({"operand": "tf32"}, r"operand 'tf32'"),
            ({"dim": 256}, r"dim 256"),
            ({"dim": None}, r"dim None"),
            ({"mode": None}, r"mode None on sm_90"),
            ({"config": Config(128, 128, None, 8, 2, True)}, r"needs one of .*num_warps=4.*, got .*num_warps=8"),
            ({"config": Config(64, 128, None, 4, 2, True)}, r"needs one of"),
        ],
    )
    def test_a_wrong_entry_is_named(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        path = self.written(tmp_path, self.ENTRY._replace(**changes))
        with pytest.raises(ValueError, match=r"sm_90.json: 'specialised' .*" + message):
            config.read(path)

    @pytest.mark.parametrize("name", ["sm_80", "sm_86"])
    def test_an_architecture_without_them_is_named(self, tmp_path: Path, name: str) -> None:
        path = self.written(tmp_path, self.ENTRY, name)
        with pytest.raises(ValueError, match=rf"{name}.json: 'specialised' .* on {name}$"):
            config.read(path)

    def test_other_problems_need_an_entry_too(self, tmp_path: Path) -> None:
        path = self.written(tmp_path, self.ENTRY, alone=True)
        with pytest.raises(ValueError, match=r"sm_90.json: 'specialised' .* needs an ordinary entry beside it"):
            config.read(path)


class TestMemory:
    """Descriptors need memory at each launch: of PyTorch, and of nobody else's allocator."""

    def test_the_allocator_is_there_for_the_parts_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime import _allocation

        seen: list[Any] = []
        of_user = lambda size, alignment, stream: None  # noqa: E731
        part, ordinary = (Launch(name, 1, (), None) for name in ("part", "ordinary"))
        both = Launch("both", 1, (), None)
        both.parts = (part, part)
        one = launching.launch

        def noted(planned: Launch, device: torch.device, *pointers: Any) -> None:
            if planned.parts:
                one(planned, device, *pointers)
            else:
                seen.append((planned.kernel, _allocation._allocator.get(), pointers))

        monkeypatch.setattr(launching, "launch", noted)
        before = _allocation._allocator.get()
        try:
            for given in (before, of_user):
                triton.set_allocator(given)
                noted(both, torch.device("cpu"), 1)
                noted(ordinary, torch.device("cpu"), 2)
                assert _allocation._allocator.get() is given
                scratch = launching._scratch
                assert seen == [("part", scratch, (1,)), ("part", scratch, (1,)), ("ordinary", given, (2,))]
                seen.clear()
        finally:
            triton.set_allocator(before)

    @pytest.mark.gpu
    @pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
    @needs_triton
    def test_in_a_graph_and_on_a_side_stream(self, chosen: list[Any]) -> None:
        x = rows(1, 700, 128).bfloat16().float()
        spec = PairSpec(4.0, True, "self", precision="bfloat16")

        def run() -> tuple[torch.Tensor, ...]:
            return load("triton").energy(x, None, PairTerms(), spec, "exp", need_x=True, need_y=False)[:3]

        first, stream = run(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other = run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        for a, b, c in zip(first, other, results, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.skipif(ON_GPU, reason="runs on the CPU")
@needs_triton
def test_the_check_of_a_first_use_runs_them(chosen: list[Any]) -> None:
    for pattern in exact.PATTERNS:
        for name in exact.functions_of(pattern):
            given = exact.drawn(pattern, 40, 35, 64, "bfloat16", torch.device(DEVICE))
            chosen.clear()
            exact.FUNCTIONS[name](load("triton"), given)
            plain = pattern.bounded and not pattern.weighted and pattern.exclude != "same_id"
            taken = name == "energy exp" or (name == "row_lse" and not pattern.symmetric)  # without column sums
            assert bool(chosen) == (plain and taken), (pattern, name)


@pytest.fixture(scope="module")
def compiled(once: Callable[[str, Callable[[], str]], str]) -> list[dict[str, Any]]:
    """What the compiler makes of them, in a process of its own, where nothing is interpreted."""

    def described() -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(config.__file__).parents[3]), *sys.path])
        command = [sys.executable, str(Path(compiled_specialised.__file__))]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout

    return json.loads(once("triton_specialised", described))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_warps_are_specialised(compiled: list[dict[str, Any]], architecture: str) -> None:
    taken = [one for one in compiled if one["case"][0] == architecture]
    assert {(one["case"][1], *one["case"][3:]) for one in taken} == {
        (f"{kernel}_specialised", dim, "uniformity", stages)
        for kernel in ("contract", "contract_sides", "sums")
        for dim in (64, 128)
        for stages in (2, 3)
    }
    for one in taken:
        contracts = one["case"][1] != "sums_specialised"
        assert one["specialised"] == 1, one
        # Two groups compute, each half of the rows; or one computes, and one warp starts the products.
        assert one["partitions"] >= 2, one
        assert one["registers_moved"] > 0, one
        assert one["fetched"] >= 2, one
        assert one["loaded"] == 0, one  # rows come by descriptors alone
        assert one["matrix"] > 0, one
        assert one["stack"] == 0, one
        assert one["shared"] <= 232448, one
        assert one["scratch"] > 0, one
        assert len(one["rounds"]) == (2 if architecture == "sm_90" else 1), one
        for of_round in one["rounds"]:
            assert of_round["spilled"] == 0, one
            # A thread takes one exponential for each of its pairs.
            assert of_round["instructions"] <= (5.5 if contracts else 4.5) * of_round["exponentials"], one
            if architecture == "sm_90":  # a wait behind each instruction would be one after the other
                assert of_round["products"] >= 4 * of_round["waits"] > 0, one
                assert of_round["waits"] == (2 if contracts else 1), one


@pytest.mark.slow
def test_each_group_of_warps_has_its_own_rows(compiled: list[dict[str, Any]]) -> None:
    assert [one["wrong_rows"] for one in compiled] == [""] * len(compiled)
