"""The choice of a backend: forced, by environment, by falling back; and the report of it."""

import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import needs_triton
from torch import Tensor

import hyperkern
from hyperkern import backends
from hyperkern.backends import Problem, select
from hyperkern.cli import main
from hyperkern.spec import PairSpec

pytestmark = pytest.mark.usefixtures("chosen_anew")

PROBLEM = Problem("energy", torch.device("cpu"), torch.float32, 16, PairSpec(4.0, True))


class Fake(SimpleNamespace):
    """A backend that computes by the reference and refuses for the given reasons."""

    LOSSES: tuple[str, ...] = ()

    def __init__(self, *reasons: str, unverified: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.reasons, self.doubts, self.calls = list(reasons), list(unverified), []

    def unsupported(self, problem: Problem) -> list[str]:
        return self.reasons

    def unverified(self, problem: Problem) -> list[str]:
        return self.doubts

    def evidence(self, device: torch.device) -> str:
        return "these tests"

    def __getattr__(self, primitive: str) -> object:
        if primitive.startswith("_"):
            raise AttributeError(primitive)
        self.calls.append(primitive)
        return getattr(backends.importlib.import_module("hyperkern.backends.reference"), primitive)


def install(monkeypatch: pytest.MonkeyPatch, fake: object) -> None:
    """Puts a backend named "fake" before the others; an exception instead of one is what its import raises."""
    load = backends.load

    def with_fake(name: str) -> object:
        if name != "fake":
            return load(name)
        if isinstance(fake, Exception):
            raise fake
        return fake

    monkeypatch.setattr(backends, "PRIORITY", ("fake", *backends.PRIORITY))
    monkeypatch.setattr(backends, "load", with_fake)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(9, 4)


def test_unknown_name(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"backend='nonsense' is unknown; choose one of .*reference"):
        select("nonsense", PROBLEM)
    with pytest.raises(ValueError, match="backend='nonsense'"):
        hyperkern.uniformity(x, backend="nonsense")


def test_unknown_name_in_the_environment(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    monkeypatch.setenv("HYPERKERN_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=r"HYPERKERN_BACKEND='nonsense' is unknown; choose one of .*reference"):
        hyperkern.uniformity(x)
    # The argument is stronger than the environment.
    assert hyperkern.uniformity(x, backend="reference").isfinite()


def test_empty_environment_forces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERKERN_BACKEND", "")
    assert select(None, PROBLEM) is select("reference", PROBLEM)
    assert hyperkern.backend_info()["forced"] is None


def test_environment_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    install(monkeypatch, fake)
    assert select(None, PROBLEM) is fake
    monkeypatch.setenv("HYPERKERN_BACKEND", "reference")
    assert select(None, PROBLEM) is backends.load("reference")
    assert hyperkern.backend_info()["forced"] == "reference"


@pytest.mark.parametrize("by_environment", [False, True])
def test_forced_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch, by_environment: bool, x: Tensor) -> None:
    fake = Fake("it needs a quantum computer", "and D = 4 is too small")
    install(monkeypatch, fake)
    if by_environment:
        monkeypatch.setenv("HYPERKERN_BACKEND", "fake")
    source = "HYPERKERN_BACKEND" if by_environment else "backend"
    pattern = f"{source}='fake' cannot compute .*quantum computer; and D = 4 is too small"
    name = None if by_environment else "fake"
    with pytest.raises(ValueError, match=pattern):
        select(name, PROBLEM)
    for loss in (
        lambda: hyperkern.uniformity(x, backend=name),
        lambda: hyperkern.alignment(x, x, backend=name),
        lambda: hyperkern.align_uniform(x, x, backend=name),
        lambda: hyperkern.info_nce(x, x, backend=name),
        lambda: hyperkern.clip_loss(x, x, logit_scale=1.0, backend=name),
        lambda: hyperkern.pairwise_logsumexp(x, logit_scale=1.0, backend=name),
    ):
        with pytest.raises(ValueError, match=pattern):
            loss()
    assert fake.calls == []


def test_falls_back_with_the_reason_visible(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, capsys: pytest.CaptureFixture
) -> None:
    expected = hyperkern.uniformity(x)
    install(monkeypatch, Fake("no GPU"))
    assert hyperkern.uniformity(x) == expected
    assert hyperkern.backend_info()["backends"]["fake"]["cpu"] == ["no GPU"]
    assert main(["info"]) == 0
    assert "no: no GPU" in capsys.readouterr().out


def test_a_backend_that_is_not_verified_here_is_taken_by_name_alone(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, capsys: pytest.CaptureFixture
) -> None:
    fake = Fake(unverified=("not yet verified on sm_123",))
    install(monkeypatch, fake)
    assert select(None, PROBLEM) is not fake
    assert select("fake", PROBLEM) is fake
    monkeypatch.setenv("HYPERKERN_BACKEND", "fake")
    assert select(None, PROBLEM) is fake
    assert hyperkern.backend_info()["backends"]["fake"]["cpu"] == ["not yet verified on sm_123"]
    assert main(["info"]) == 0
    assert "no: not yet verified on sm_123" in capsys.readouterr().out


def test_nobody_can(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Fake("no GPU"))
    with pytest.raises(ValueError, match=r"no backend can compute energy: fake: no GPU \| .*reference: .*int64"):
        select(None, PROBLEM._replace(dtype=torch.int64))


def test_the_first_usable_backend_serves_forward_and_backward(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    fake = Fake()
    install(monkeypatch, fake)
    x.requires_grad_()
    (hyperkern.uniformity(x) + hyperkern.info_nce(x, x.flip(0))).backward()
    assert set(fake.calls) == {"prepare", "normalize_backward", "energy", "row_lse", "pair_grad"}


@pytest.mark.parametrize("whole", [(), ("uniformity", "info_nce")])
def test_a_backend_is_shielded_from_autocast(whole: tuple, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    # A backend may use any product; autocast must not send it to half precision behind its back.
    seen = []

    class Watching(Fake):
        LOSSES = whole

        def __getattr__(self, function: str) -> object:
            if function not in ("__iter__", "loss_grad"):  # in a backward pass autocast is off
                seen.append((torch.is_autocast_enabled("cpu"), torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype))
            return super().__getattr__(function)

    install(monkeypatch, Watching())
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (hyperkern.uniformity(x) + hyperkern.info_nce(x, x.flip(0))).backward()
    assert set(seen) == {(False, torch.float32)}


@pytest.mark.parametrize("path", ["normalize", "raw"])
@pytest.mark.parametrize("loss", ["alignment", "align_uniform", "uniformity", "info_nce"])
def test_a_bad_name_never_goes_unseen(loss: str, path: str, x: Tensor) -> None:
    args = (x,) if loss == "uniformity" else (x, x.flip(0))
    with pytest.raises(ValueError, match="nonsense"):
        getattr(hyperkern, loss)(*args, normalize=path == "normalize", backend="nonsense")


def test_backend_info() -> None:
    info = hyperkern.backend_info()
    assert set(info) == {"versions", "gpus", "forced", "check", "backends", "records"}
    assert info["versions"]["torch"] == torch.__version__
    assert set(info["versions"]) == {"torch", "cuda", "triton"}
    assert list(info["backends"]) == list(backends.PRIORITY)
    devices = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    assert all(set(by_device) == devices for by_device in info["backends"].values())
    assert info["backends"]["reference"] == {device: [] for device in devices}
    assert len(info["gpus"]) == torch.cuda.device_count()


def test_info_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for text in ("hyperkern", hyperkern.__version__, torch.__version__, "HYPERKERN_BACKEND is not set"):
        assert text in printed
    for name in backends.PRIORITY:
        assert name in printed
    assert "usable" in printed


def test_case_22_a_backend_whose_import_fails(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, capsys: pytest.CaptureFixture
) -> None:
    # Without Triton or the compiled extension the module of a backend may not even import.
    expected = hyperkern.uniformity(x)
    install(monkeypatch, ImportError("No module named 'triton'"))
    assert hyperkern.uniformity(x) == expected
    assert "triton" in str(hyperkern.backend_info()["backends"]["fake"]["cpu"])
    assert main(["info"]) == 0
    assert "No module named 'triton'" in capsys.readouterr().out


def test_a_missing_package_is_looked_for_once(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    # Python does not remember a failed import, and to look again at every call takes twenty times as long as the call.
    looked_for = []

    def import_module(name: str, package: str) -> object:
        looked_for.append(name)
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(backends, "PRIORITY", ("missing", *backends.PRIORITY))
    monkeypatch.setattr(backends.importlib, "import_module", import_module)
    for _ in range(3):
        assert hyperkern.uniformity(x).isfinite()
        with pytest.raises(ImportError, match="triton"):
            backends.load("missing")
    assert looked_for == [".missing"]
    backends._imported.cache_clear()


def test_case_22_forced_backend_whose_import_fails(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    install(monkeypatch, ImportError("No module named 'triton'"))
    with pytest.raises((ValueError, ImportError), match="triton"):
        hyperkern.uniformity(x, backend="fake")


TRITON_WITHOUT_A_GPU = """
import torch, hyperkern
from hyperkern import backends
x = torch.randn(8, 4)
assert hyperkern.uniformity(x).isfinite()
reasons = hyperkern.backend_info()["backends"]["triton"]["cpu"]
assert "needs a GPU" in reasons[0] and "TRITON_INTERPRET" in reasons[0], reasons
try:
    hyperkern.uniformity(x, backend="triton")
except ValueError as error:
    assert "backend='triton' cannot compute loss: needs a GPU" in str(error), error
else:
    raise AssertionError("a forced backend fell back")
"""


def test_case_22_triton_without_a_gpu() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    result = subprocess.run(
        [sys.executable, "-c", TRITON_WITHOUT_A_GPU], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@needs_triton
def test_what_triton_refuses() -> None:
    triton = pytest.importorskip("hyperkern.backends.triton")
    if torch.cuda.is_available():
        pytest.skip("on a GPU the CPU is refused before anything else")
    assert "float64" in triton.unsupported(PROBLEM._replace(dtype=torch.float64))[0]
    assert "D = 16385" in triton.unsupported(PROBLEM._replace(dim=16385))[0]
    assert "needs a CUDA device, got meta" in triton.unsupported(PROBLEM._replace(device=torch.device("meta")))[0]
    assert triton.unsupported(PROBLEM._replace(dim=16384)) == []
    # The interpreter is for tests: nobody gets it without asking.
    assert "interpreter" in triton.unverified(PROBLEM)[0]
    assert select(None, PROBLEM) is backends.load("reference")


def test_the_choice_on_a_gpu_follows_its_capability_and_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("hyperkern.backends.triton")
    on_gpu = PROBLEM._replace(device=torch.device("cuda", 0))
    triton.config.of_device.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "needs compute capability 8.0 or more, cuda:0 has 7.5" in triton.unsupported(on_gpu)[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert triton.unsupported(on_gpu) == []
    assert triton.unverified(on_gpu) == []
    assert triton.evidence(on_gpu.device) == triton.config.of_name("sm_90").checked
    monkeypatch.setattr(triton.config, "of_device", lambda index: triton.config.of_name("sm_90")._replace(checked="x"))
    assert triton.evidence(on_gpu.device) == "x"
    # What a committed result has shown is checked no more.
    asked = []
    monkeypatch.setattr(backends.first_use, "verdict", lambda *given: asked.append(given))
    monkeypatch.setattr(backends, "PRIORITY", ("triton", "reference"))
    assert select(None, on_gpu) is triton
    assert asked == []
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "AMD" in triton.unsupported(on_gpu)[0]


def test_each_problem_is_asked_once(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    asked = []

    class Asked(Fake):
        def unsupported(self, problem: Problem) -> list[str]:
            asked.append(problem)
            return []

    install(monkeypatch, Asked())
    monkeypatch.setattr(backends, "chosen", functools.lru_cache(backends.chosen))
    for _ in range(3):
        hyperkern.uniformity(x.requires_grad_()).backward()
    assert asked
    assert len(asked) == len(set(asked))
