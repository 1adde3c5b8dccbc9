"""What every test shares: the backends of this machine, seeds, the Hypothesis profile, poisoned allocations."""

import contextlib
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

# Threads that wait sleep, here and in every process that a test starts: others have work for the core. Read when the
# libraries are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from interpreter import interpret_faster

# Without a GPU the Triton kernels run in Triton's interpreter, chosen when they are defined. That of Triton 3.6 cannot
# count a loop with new versions of NumPy.
with contextlib.suppress(PackageNotFoundError):
    if not torch.cuda.is_available() and not version("triton").startswith("3.6."):
        os.environ["TRITON_INTERPRET"] = "1"
        interpret_faster()
# What deterministic algorithms ask of the matrix library, read when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Every process that a test starts takes warnings for errors, as pytest does in this one, with the same exceptions.
os.environ.setdefault(
    "PYTHONWARNINGS",
    "error,ignore::RuntimeWarning:triton.runtime.interpreter,ignore:torch.distributed.nn.functional.:FutureWarning,"
    "ignore:`torch._prims_common.check` is deprecated:FutureWarning,"
    "ignore:`torch.jit.script` is deprecated:FutureWarning,ignore:To copy construct from a tensor:UserWarning",
)

from ranks import Ranks

from hyperkern import backends
from hyperkern.spec import PairSpec
from tools.kernels.cubin import find_tool
from tools.kernels.cuda import LIBRARY

REPORT = Path(__file__).parents[1] / "benchmarks/results/kernels_report.json"

# Where the kernels are tested.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The tests are thousands of small problems: waking a second thread for each costs ten times what it saves on a
# busy machine. The tests of threads and of determinism ask for more.
torch.set_num_threads(1)
# For what modules draw when they are imported: the first seed of PyTorch 2.14 is another one in every process.
torch.manual_seed(0)

settings.register_profile(
    "hyperkern",
    derandomize=True,
    deadline=None,
    max_examples=10,
    print_blob=True,
    # The backend fixture is a constant for all the examples of one test.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("hyperkern")


_ORDINARY = backends.Problem("energy", torch.device(DEVICE), torch.float32, 128, PairSpec(4.0, True))


def usable(name: str) -> pytest.MarkDecorator:
    """Skips where a backend cannot compute, with the reason."""
    reasons = backends.objections(name, _ORDINARY, forced=True)
    return pytest.mark.skipif(bool(reasons), reason=f"{name}: {'; '.join(reasons)}")


def interpreted(backend: str, device: torch.device) -> bool:
    """Whether kernels run in Triton's interpreter or the emulator: right, and a thousand times slower."""
    return backend != "reference" and device.type == "cpu"


def on_device(test: Callable) -> Callable:
    """A test that computes on `DEVICE`: one of a GPU's where that is one."""
    return pytest.mark.gpu(test) if DEVICE == "cuda" else test


needs_triton = usable("triton")
needs_cuda_kernels = usable("cuda")


def _targets() -> list:
    """Every (backend, device) of this machine that computes an ordinary problem."""
    targets = []
    for name in backends.PRIORITY:
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            problem = backends.Problem("energy", torch.device(device), torch.float32, 128, PairSpec(4.0, True))
            if not backends.objections(name, problem, forced=True):
                marks = [pytest.mark.gpu] if device == "cuda" else []
                targets.append(pytest.param((name, torch.device(device)), id=f"{name}-{device}", marks=marks))
    return targets


# Tests of losses: a loss may be one function of the backend or a composition of its primitives.
OF_LOSSES = ("losses", "test_compile.py", "test_rows.py", "test_short_rows.py", "test_distributed_losses.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every backend for the tests of a backend, and the composition for those of losses."""
    if "target" in metafunc.fixturenames:
        targets = _targets()
        if not {*OF_LOSSES}.isdisjoint(metafunc.definition.path.parts):
            targets.append(pytest.param(("reference", torch.device("cpu"), "composition"), id="composition-cpu"))
        metafunc.parametrize("target", targets, indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, torch.device]:
    name, device, *composition = request.param
    if composition:
        monkeypatch.setattr(backends.load(name), "LOSSES", ())
    return name, device


@pytest.fixture
def chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend is asked for each problem again: tests change what there is."""
    monkeypatch.setattr(backends, "chosen", backends.chosen.__wrapped__)


@pytest.fixture
def composition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss is made of the primitives."""
    for name in backends.PRIORITY:
        monkeypatch.setattr(backends.load(name), "LOSSES", ())


@pytest.fixture
def backend(target: tuple[str, torch.device]) -> str:
    """The name of a backend, to be forced."""
    return target[0]


@pytest.fixture
def device(target: tuple[str, torch.device]) -> torch.device:
    """A device that `backend` serves."""
    return target[1]


class Exact(NamedTuple):
    """The widest dtype that a backend computes in."""

    dtype: torch.dtype

    def tolerance(self, in_float64: float, in_float32: float = 1e-5) -> float:
        """What may be lost to rounding, relative to 1 or to the value."""
        return in_float64 if self.dtype == torch.float64 else in_float32


@pytest.fixture
def exact(backend: str, device: torch.device) -> Exact:
    """The dtype in which `backend` is held against the truth, and how closely."""
    problem = backends.Problem("energy", device, torch.float64, 128, PairSpec(4.0, True))
    return Exact(torch.float32 if backends.load(backend).unsupported(problem) else torch.float64)


class _FailuresAtOnce:
    """What failed, as soon as it has, for a run that may be ended before its end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\nFAILED {report.nodeid}\n{report.longreprtext[-1500:]}")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps memory that is freed, but not in processes that tests start, some of which measure theirs.

    Thousands of small problems would ask the system for it again and again, a quarter of the time of the losses' tests.
    """
    with contextlib.suppress(AttributeError, TypeError):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of the GNU C library
        for option, size in {-3: 2**30, -1: 2**31 - 1}.items():
            ctypes.CDLL(None).mallopt(option, size)
    if os.environ.get("HYPERKERN_FAILURES") == "at once" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_FailuresAtOnce(config))


# Ten thousand tests and three libraries are a million objects, none of which ever goes: the garbage collector is spared
# looking at them again and again, a tenth of the time of all tests.
@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        return (yield)
    finally:
        if enabled:
            gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute to set up comes first: at the end one process would wait for the other."""
    items.sort(key=lambda item: "once" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def _fixed_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """``ranks(4).run(function, *args)``: what ``function(rank, *args)`` gives in each of four processes, one group.

    They are kept for all tests: starting them takes longer than what they are asked.
    """
    started = Ranks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], str]:
    """``once(name, make)``: what ``make()`` gives, made by one of the processes that share the tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def found(name: str, make: Callable[[], str]) -> str:
        path = folder / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                path.write_text(make(), encoding="utf-8")
            return path.read_text(encoding="utf-8")

    return found


@pytest.fixture(scope="session")
def triton_report(once: Callable[[str, Callable[[], str]], str]) -> dict:
    """The committed report, where it is of this compiler and these kernels; a test compiles samples of it.

    Else what a process of its own compiles, where nothing is interpreted: minutes.
    """
    pytest.importorskip("triton")
    from tools.kernels.report import still_made

    if (committed := still_made(REPORT)) is not None:
        return committed

    def report_of_all() -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "tools.kernels.triton", "--quick", "--json"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout

    return json.loads(once("triton_report", report_of_all))


@pytest.fixture(scope="session")
def cuda_report(once: Callable[[str, Callable[[], str]], str]) -> list[dict]:
    """The report of a process of its own, which loads the library."""
    if not LIBRARY.exists():
        pytest.skip("the CUDA extension is not built")
    if find_tool("cuobjdump") is None:
        pytest.skip("cuobjdump is missing: it comes with Triton and with the CUDA toolkit")

    def report_of_all() -> str:
        command = [sys.executable, "-m", "tools.kernels.cuda", "--json"]
        result = subprocess.run(command, capture_output=True, text=True)
        if "OSError" in result.stderr:
            pytest.skip(f"this PyTorch cannot load the extension: {result.stderr.splitlines()[-1]}")
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout

    found = json.loads(once("cuda_report", report_of_all))
    assert found
    return found


@pytest.fixture(params=["whole", "composition"])
def either_way(request: pytest.FixtureRequest) -> None:
    """A loss as one function where there is one, and made of the primitives."""
    if request.param == "composition":
        request.getfixturevalue("composition")


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark measures the machine's own rates on little: what they are is nothing to a test."""
    from hyperkern.bench import machine

    monkeypatch.setitem(machine.SIDE, "cpu", 64)
    monkeypatch.setitem(machine.COPIED, "cpu", 1 << 16)


@pytest.fixture
def poisoned_allocations() -> Iterator[None]:
    """Fresh memory holds NaN (floats) or the largest integer, so that an element never written is seen.

    Not with ``HYPERKERN_POISON=off``, for a tool that looks for elements never written itself.
    """
    if os.environ.get("HYPERKERN_POISON") == "off":
        yield
        return
    fill = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 in the reference: small shapes walk over many blocks with ragged ends."""
    monkeypatch.setattr(backends.load("reference").primitives, "_BLOCK_CPU", 8)


@pytest.fixture
def registry_as_it_was() -> Iterator[None]:
    """What a test adds to the benchmarks is gone behind it."""
    from hyperkern.bench import registry

    tables = (registry.CASES, registry.IMPLEMENTATIONS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
