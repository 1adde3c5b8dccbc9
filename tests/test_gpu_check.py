"""The plan for a GPU machine without a GPU: its arithmetic, what runs it, and a walk through all of its steps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import interpreter
import pytest
import torch
from conftest import usable
from torch import Tensor

from benchmarks.plan import command
from benchmarks.plan.run import GRACE, PYTHON, ROOT, ROWS, Run, Session, Step, run_plan
from benchmarks.plan.steps import BUDGETS, PLAN
from hyperkern import backends
from hyperkern.bench.load import load_all
from hyperkern.cli import main
from tools import first_tile

load_all()  # before tests are collected that run over all of them
SCRIPT = ROOT / "benchmarks/gpu_check.sh"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would measure")


def started(*words: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    # Warnings are no errors there: a step's own tests decide, and a benchmark prints them.
    environment = {**os.environ, "PYTHON": sys.executable, "OUT_DIR": str(out), "PYTHONWARNINGS": "default"}
    return subprocess.run([SCRIPT, *words], env=environment | variables, capture_output=True, text=True)


@without_gpu
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    for words in ([], ["--smoke"], ["large-*"]):
        result = started(*words, out=tmp_path / "out")
        assert result.returncode == 2
        assert "gpu_check.sh: no CUDA GPU found by PyTorch; without one, run `make test`" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fast"], "unrecognized arguments: --fast"),
        (["--cpu", "--smoke"], "not allowed with argument"),
        (["large-*", "fast"], "argument STEP: there is no step 'fast'; there are build, info, tile-cuda, "),
    ],
)
def test_a_wrong_argument_is_named(words: list[str], message: str, tmp_path: Path) -> None:
    result = started(*words, out=tmp_path / "out")
    assert result.returncode == 2
    assert "usage: benchmarks/gpu_check.sh [-h] [--smoke | --cpu] [STEP ...]" in result.stderr
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["full", "smoke"])
def test_limits_fit_into_the_run(mode: str) -> None:
    runs = [run for step in PLAN if (run := step.of(mode)) is not None]
    of_probe = 0 if mode == "smoke" else 5  # what smoke has none left for, its last step lacks
    assert sum(run.limit for run in runs) + of_probe + GRACE <= BUDGETS[mode]
    assert BUDGETS == {"full": 540, "smoke": 60, "cpu": 3600}
    assert all(run.limit > 0 for run in runs)


def test_steps_are_in_the_order_of_evidence() -> None:
    names = [step.name for step in PLAN]
    assert len(set(names)) == len(names)
    groups = list(
        dict.fromkeys(name.rsplit("-", 1)[0] if name.endswith(("-cuda", "-triton")) else name for name in names)
    )
    assert groups == [
        *("build", "info", "tile", "warm", "large", "candidates", "specialised", "small"),
        *(
            "warm-compiled",
            "compiled-first",
            "compiled-others",
            "panels",
            "moco",
            "gate",
            "tests",
            "million",
            "memcheck",
            "initcheck",
            "synccheck",
        ),
    ]


def test_every_step_has_what_it_needs() -> None:
    known = command.missing_on("cpu").keys()
    for step in PLAN:
        assert step.full is not None
        assert set(step.needs) <= known
        # What cannot be walked through without a GPU is little.
        assert step.cpu is not None or step.name.split("-")[0] in (
            "build",
            "moco",
            "memcheck",
            "initcheck",
            "synccheck",
        )
        for run in (step.full, step.smoke, step.cpu):
            if run is not None and {"hyperkern", "tools.first_tile", "tools.candidates"} & {*run.command}:
                measures = "bench" in run.command or "check" in run.command or "tools" in run.command[2]
                assert (ROWS in run.command) == (measures and step.name != "warm-compiled")


@pytest.mark.parametrize("mode", ["full", "smoke"])
def test_benchmarks_have_something_to_measure(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their arguments as the command takes them, with the plan of a GPU that need not be here."""
    words = {step.name: list(run.command) for step in PLAN if (run := step.of(mode)) and "bench" in run.command}
    assert words
    for name, command_of in words.items():
        arguments = [w.replace("EACH", "siglip") for w in command_of[command_of.index("bench") :]]
        if name != "warm-compiled":
            assert (arguments.pop(), arguments.pop()) == (ROWS, "--jsonl")
        assert main([*arguments, "--plan"]) == 0
        rows = int(capsys.readouterr().out.strip().split("\n")[-1].split(" rows, about ")[0])
        assert rows >= 1 + name.startswith(("large", "small", "compiled", "panels")), name


# Collects what several runs of pytest on a GPU would run, one line of JSON for each.
COLLECTS = """
import contextlib, io, json, sys
import pytest, torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda *_: (9, 0)
for words in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = pytest.main([*words, "--collect-only"])
    print(json.dumps([status, [line for line in output.getvalue().split("\\n") if "::" in line]]))
"""


@without_gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a PyTorch for GPUs")
def test_steps_of_tests_have_some() -> None:
    """A pattern that nothing matches would show nothing of a GPU, and be seen there."""
    missing = command.missing_on("full")
    words = {
        step.name: step.full.command[step.full.command.index("pytest") + 1 :]
        for step in PLAN
        if step.full is not None
        and "pytest" in step.full.command
        and not any(missing[need]() for need in step.needs if need != "sanitizer")
    }
    if not words:
        pytest.skip("neither the extension nor Triton is here")
    distinct = list(dict.fromkeys(words.values()))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", COLLECTS, json.dumps(distinct)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT), "HYPERKERN_CHECK": "off"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = dict(zip(distinct, map(json.loads, ran.stdout.strip().split("\n")), strict=True))
    for name, of_step in words.items():
        status, tests = found[of_step]
        assert status == 0, (name, tests[-1:], ran.stderr)
        backend = name.split("-")[1]
        assert len(tests) >= (1000 if name.startswith("tests") else 20), (name, len(tests))
        assert all(f"{backend}-cuda" in test or f"test_{backend}" in test for test in tests), name


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["alone", "parallel"])
def test_a_failure_is_told_of_at_once(parallel: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_right(): pass\ndef test_wrong(): assert 1 + 1 == 3\n")
    words = ("-q", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "test_some.py")
    for told in (True, False):
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *parallel, *words],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
                "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
                "HYPERKERN_FAILURES": "at once" if told else "",
            },
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 1, ran.stderr
        before, _, _ = ran.stdout.partition("= FAILURES =")
        assert ("FAILED test_some.py::test_wrong\n" in before and "assert (1 + 1) == 3" in before) == told, ran.stdout


# What made-up steps do.
PRINTS = "print('hello'); open(sys.argv[1], 'a').write('{\"n\": 1}\\n')"
FAILS = "print('about to fail'); sys.exit('no such thing')"
HANGS = "print('hanging', flush=True); time.sleep(600)"
# Ctrl-C is nothing to it, it has a child that holds on to its output, and its last row is torn.
KILLED = """
import signal, subprocess
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
with open(sys.argv[1], 'a') as file:
    file.write('{"n": 2}\\n{"n": %d}\\nno row\\n{"n": 4, "torn' % child.pid)
print('written', flush=True)
time.sleep(600)
"""
STRANGE = "sys.stdout.buffer.write(b'strange \\xff\\xfe\\n')"
ENDS = "time.sleep(0.2); signal.raise_signal(signal.SIGKILL)"
AT_CTRL_C = """
try:
    time.sleep(600)
except KeyboardInterrupt:
    open(sys.argv[1], 'a').write('{"n": 5}\\n')
    print('what there is')
    sys.exit(130)
"""


def made_up(name: str, code: str, limit: float = 60.0, most: float = 0.0, needs: tuple[str, ...] = ()) -> Step:
    words = (PYTHON, "-c", "import signal, sys, time\n" + code, ROWS)
    run = Run(words, limit, most)
    return Step(name, f"what {name} shows", run, run, run, {"PYTHONWARNINGS": "ignore"}, needs)


def session(folder: Path, budget: float = 300.0) -> Session:
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    missing = {"there": lambda: None, "extension": lambda: "kernels.so is not built"}
    return Session("full", budget, folder / "out", folder / "scratch", {"device": "none"}, missing)


def runs(process: int) -> bool:
    """Whether a process is there, and no more than an entry that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def result_of(folder: Path) -> dict:
    assert {path.name for path in (folder / "out").iterdir()} == {"rows.jsonl", "log.txt", "result.json"}
    found = json.loads((folder / "out/result.json").read_text(encoding="utf-8"))
    lines = (folder / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found["rows"]
    return found


def test_what_one_step_loses_no_other_does(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    steps = [
        made_up("prints", PRINTS),
        made_up("fails", FAILS),
        made_up("hangs", HANGS, limit=2),
        made_up("killed", KILLED, limit=3),
        made_up("strange", STRANGE),
        made_up("ends", ENDS),
        made_up("patient", AT_CTRL_C, limit=2),
        made_up("lacks", PRINTS, needs=("there", "extension")),
        Step("absent", "nothing", Run(("no-such-program",), 9), None, None),
        Step("other", "in other modes", None, Run(("no-such-program",), 9), None),
        made_up("last", PRINTS, needs=("there",)),
    ]
    assert run_plan(session(tmp_path), steps) == 1
    found = result_of(tmp_path)
    assert found.keys() == {"schema", "machine", "mode", "steps", "rows"}
    assert (found["schema"], found["machine"], found["mode"]) == (1, {"device": "none"}, "full")
    of = {step["name"]: step for step in found["steps"]}
    assert [(step["name"], step["status"], step["rows"]) for step in found["steps"]] == [
        ("prints", "passed", 1),
        ("fails", "failed", 0),
        ("hangs", "timed out", 0),
        ("killed", "timed out", 2),
        ("strange", "passed", 0),
        ("ends", "failed", 0),
        ("patient", "timed out", 1),
        ("lacks", "skipped", 0),
        ("absent", "failed", 0),
        ("last", "passed", 1),
    ]
    keys = {"name", "shows", "command", "status", "reason", "seconds", "limit_s", "rows", "compiled"}
    assert all(step.keys() == keys for step in found["steps"])
    assert of["prints"]["reason"] is None
    assert of["fails"]["reason"] == "exit status 1: no such thing"
    assert of["hangs"]["reason"] == "took longer than 2 s; the last line: hanging"
    assert of["ends"]["reason"] == "exit status -9"
    assert of["patient"]["reason"] == "took longer than 2 s"
    assert of["lacks"]["reason"] == "kernels.so is not built"
    assert of["absent"]["reason"].startswith("cannot be started: No such file")
    child = found["rows"][2]["n"]
    numbers = [("prints", 1), ("killed", 2), ("killed", child), ("patient", 5), ("last", 1)]
    assert found["rows"] == [{"step": step, "n": n} for step, n in numbers]
    assert not runs(child)
    log = (tmp_path / "out/log.txt").read_bytes()
    assert b"strange \xff\xfe\n" in log
    assert b"== killed: what killed shows\nwritten\n" in log
    assert b"\nwhat there is\n== patient: timed out" in log
    assert b"a row that was not written to its end is left out" in log
    printed = capfdbinary.readouterr().out
    assert log in printed
    assert b"\n== summary\n" in printed


def test_a_result_has_no_folders_of_the_machine(tmp_path: Path) -> None:
    of_machine = "\n".join((str(ROOT / "here"), sys.prefix + "/there", str(Path.home() / "mine")))
    code = f"import json\nopen(sys.argv[1], 'a').write(json.dumps({{'at': {of_machine!r}}}) + '\\n')"
    code += f"\nsys.exit(sys.argv[1] + ' in ' + {str(ROOT)!r})"
    assert run_plan(session(tmp_path), [made_up("speaks", code)._replace(shows="")]) == 1
    found = result_of(tmp_path)
    found["steps"][0].pop("command")  # it has the code above, which names them
    assert found["steps"][0]["reason"] == "exit status 1: SCRATCH/0.jsonl in ."
    assert found["rows"][0]["at"].split("\n")[0] == "./here"
    text = json.dumps(found)
    assert not any(folder in text for folder in (str(ROOT), sys.prefix, str(Path.home()) + "/", str(tmp_path)))


def test_compilations_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    make = (
        "import os, pathlib\nfolder = pathlib.Path(os.environ['TRITON_CACHE_DIR'], '{0}')\nfolder.mkdir(parents=True)"
    )
    make += "\nfor i in range({0}): (folder / f'{{i}}.cubin').touch()\n(folder / 'kernel.ptx').touch()"
    assert run_plan(session(tmp_path), [made_up("two", make.format(2)), made_up("three", make.format(3))]) == 0
    assert [step["compiled"] for step in result_of(tmp_path)["steps"]] == [2, 3]


def test_time_that_is_left_goes_to_those_that_can_use_it(tmp_path: Path) -> None:
    steps = [
        made_up("short", "", limit=50),
        made_up("long", "", limit=10, most=60),
        made_up("greedy", "", limit=10, most=1000),
        made_up("last", "", limit=20),
    ]
    assert run_plan(session(tmp_path, budget=100 + GRACE), steps) == 0
    limits = [step["limit_s"] for step in result_of(tmp_path)["steps"]]
    assert (limits[0], limits[1], limits[3]) == (50, 60, 20)
    assert 60 < limits[2] <= 80


def test_what_is_asked_before_a_step_is_within_the_run(tmp_path: Path) -> None:
    """A look at what a step needs may take as long as the step."""
    run = session(tmp_path, GRACE + 4)
    run.missing["slow"] = lambda: time.sleep(3)
    assert run_plan(run, [made_up("hanging", HANGS, needs=("slow",))]) == 1
    assert run.steps[0]["status"] == "timed out"
    assert run.left > GRACE - 2


def test_what_there_is_no_time_for_is_skipped(tmp_path: Path) -> None:
    assert run_plan(session(tmp_path, budget=GRACE), [made_up("late", PRINTS)]) == 0
    step = result_of(tmp_path)["steps"][0]
    assert (step["status"], step["reason"]) == ("skipped", "no time left of 5 s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_interrupted_has_what_it_has(number: signal.Signals, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from benchmarks.plan import command
from test_gpu_check import AT_CTRL_C, PRINTS, made_up
command.probe = lambda device: {"device": "none", "commit": "none"}
sys.exit(command.main(["--cpu"], [made_up("first", PRINTS), made_up("second", AT_CTRL_C), made_up("third", PRINTS)]))
"""
    environment = {**os.environ, "OUT_DIR": str(tmp_path / "out"), "PYTHONWARNINGS": "default"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    log = tmp_path / "out/log.txt"
    while not log.exists() or b"== second" not in log.read_bytes():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # until the step, a Python that imports nothing, sleeps
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 130
    found = result_of(tmp_path)
    steps = [(step["name"], step["status"], step["reason"]) for step in found["steps"]]
    assert steps == [("first", "passed", None), ("second", "failed", "interrupted")]
    assert [row["n"] for row in found["rows"]] == [1, 5]


class Wrong:
    """A backend that is right but for one element."""

    def __init__(self, function: str, output: int, index: tuple[int, ...], change: float) -> None:
        self.right, self.wrong = backends.load("reference"), (function, output, index, change)

    def __getattr__(self, name: str):
        function, output, index, change = self.wrong
        if name != function:
            return getattr(self.right, name)

        def changed(*args, **options):
            results = [t.clone() for t in getattr(self.right, name)(*args, **options)]
            if results[output].dim() > len(index) - 1 and all(
                i < size for i, size in zip(index, results[output].shape, strict=False)
            ):
                results[output][index] += change
            return backends.LogSumExp(*results) if name == "row_lse" else tuple(results)

        return changed


def tile(backend: object) -> first_tile.Tile:
    return first_tile.Tile(backend, "cpu", "float32", 9, 7, 6)


@pytest.mark.parametrize("kernel", first_tile.KERNELS)
def test_the_first_tile_passes_what_is_right(kernel: str) -> None:
    for precision in ("float32", "bfloat16", "float16"):
        right = tile(backends.load("reference"))._replace(precision=precision)
        assert first_tile.run_kernel(kernel, [right]) is None


@pytest.mark.parametrize(
    ("kernel", "function", "output", "index", "row_and_column"),
    [
        # The logit of row 5 and column 3 is read from problem 3, or on the other side from problem 5.
        ("row_lse of rows, bounded", "row_lse", 0, (3, 5), (5, 3)),
        ("row_lse of rows, running", "row_lse", 0, (3, 5), (5, 3)),
        ("row_lse of columns, running", "row_lse", 1, (5, 3), (5, 3)),
        ("row_lse, y = x, bounded", "row_lse", 0, (0, 4), (4,)),
        ("pair_grad of rows, bounded", "pair_grad", 0, (3, 5, 2), (5, 3, 2)),
        ("pair_grad of columns, running", "pair_grad", 2, (5, 3, 5), (5, 3, 5)),
        ("pair_grad, y = x, bounded", "pair_grad", 0, (2, 5, 1), (5, 2, 1)),
        ("energy exp, of rows", "energy", 1, (3, 5, 2), (5, 3, 2)),
        ("energy exp, y = x, value alone", "energy", 0, (0,), (0,)),
        ("energy softplus, of columns", "energy", 3, (5, 3, 5), (5, 3, 5)),
        ("prepare", "prepare", 0, (0, 4, 2), (4, 2)),
        ("prepare", "prepare", 1, (0, 4), (4,)),
    ],
)
def test_the_first_tile_names_the_element(
    kernel: str, function: str, output: int, index: tuple[int, ...], row_and_column: tuple[int, ...]
) -> None:
    found = first_tile.run_kernel(kernel, [tile(Wrong(function, output, index, 5.0))])
    assert found is not None
    assert (found["shape"], found["index"]) == ((9, 7), row_and_column)
    assert found["got"] == pytest.approx(found["expected"] + 5.0, rel=1e-3)
    assert f"at {row_and_column}: " in found["reason"]
    nan = first_tile.run_kernel(kernel, [tile(Wrong(function, output, index, float("nan")))])
    assert nan is not None
    assert (nan["index"], nan["got"]) == (row_and_column, "nan")


def test_the_first_of_several_wrong_elements_is_named() -> None:
    want = torch.arange(12.0).view(3, 4)
    got = want.clone()
    got[1, 2] = got[2, 0] = -1
    found = first_tile.first_wrong(first_tile.Check(got, want, 0))
    assert found is not None
    assert (found["index"], found["expected"], found["got"]) == ((1, 2), 6.0, -1.0)
    assert found["reason"] == "at (1, 2): -1, expected 6; 2 of 12 wrong"
    other = first_tile.first_wrong(first_tile.Check(got[:2], want, 0))
    assert other == {"reason": "shape (2, 4), expected (3, 4)"}


def test_logits_of_the_first_tile_are_apart() -> None:
    for m, n, d in ((128, 128, 64), (100, 77, 100), (128, 128, 256)):
        logits = first_tile.Tile(None, "cpu", "float32", m, n, d).logits
        assert logits.abs().max() < first_tile.SCALE  # as on unit rows, which kernels rely on
        steps = logits.sort(1).values.diff(dim=1)
        assert steps.min() > 10 * first_tile.LOGIT
        for rows in (first_tile.integer_rows(n, d), first_tile.one_hot_rows(m, d), first_tile.sparse_rows(m, d)):
            assert torch.equal(rows.bfloat16().double(), rows)


def test_what_differs_between_runs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def unsteady(x: Tensor, backend: str) -> Tensor:
        nonlocal calls
        calls += backend != "reference"
        return (x * x).sum() * (1 + 1e-4 * (calls == 2 and backend != "reference"))

    monkeypatch.setitem(first_tile.LOSSES, "unsteady", (1, unsteady))
    run = first_tile.LossRun("unsteady", "made up", "cpu", "float32", 6, 4)
    assert run.repeated(3) == "repeat 2: 1 of 1 elements of the value differ from those of the first run"
    assert run.repeated(3) is None
    calls = 1
    assert str(run.against_float64()).startswith("relative error 0.0001 of the value, 2e-05 is allowed")
    assert run.against_float64() is None
    for way in first_tile.loss_runs("reference", "cpu", "float32", 4, first_tile.SIZES["small"]).items():
        assert "unsteady" in way[0] or way[1]() is None
    assert len(first_tile.loss_runs("cuda", "cuda", "float32", 4, first_tile.SIZES["full"])) == 3 * 5


@pytest.mark.parametrize("fatal", [False, True])
def test_a_kernel_that_fails_is_reported(fatal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    monkeypatch.setattr(first_tile, "KERNELS", {"a": lambda t: iter(()), "b": fails, "c": lambda t: iter(())})
    monkeypatch.setattr(first_tile, "LOSSES", {})
    monkeypatch.setattr(first_tile, "usable", lambda device: not fatal)
    out = tmp_path / "rows.jsonl"
    assert not first_tile.run_class("reference", "cpu", "float32", 4, first_tile.SIZES["small"], out)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["kernel"], row["status"]) for row in found] == [
        ("a", "ok"),
        ("b", "failed"),
        ("c", "skipped" if fatal else "ok"),
    ]
    assert found[1]["reason"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert found[2]["reason"] == ("the GPU's context was lost in b" if fatal else None)


@pytest.mark.slow
@without_gpu
@pytest.mark.parametrize("backend", [pytest.param(name, marks=usable(name)) for name in ("cuda", "triton")])
def test_every_step_runs(backend: str, tmp_path: Path) -> None:
    """The plan as it is, walked through; with one thread, since the processes of a step share two cores."""
    # Steps of both backends differ in a name: of Triton's, which is interpreted, those that are its own.
    own = ["info", "tile-triton", "warm-triton", "candidates", "specialised", "warm-compiled", "compiled-first"]
    own.append("large-triton")
    asked = own if backend == "triton" else [s.name for s in PLAN if s.cpu and s.name.endswith("-cuda")]
    faster = {"OMP_NUM_THREADS": "1", "PYTHONPATH": interpreter.site(tmp_path / "site")}
    result = started("--cpu", *asked, out=tmp_path / "out", **faster)
    found = result_of(tmp_path)
    of = {step["name"]: step for step in found["steps"]}
    assert of.keys() == {*asked}
    assert found["machine"]["device"] == "cpu"
    for name, step in of.items():
        assert step["status"] == "passed", (name, step["reason"], result.stdout[-3000:])
        measures = any(word in step["command"] for word in ("--jsonl ROWS",))
        assert (step["rows"] > 0) == measures, step
    assert all(row.get("status") in (None, "ok", "skipped", "passed") for row in found["rows"])
    assert {row["backend"] for row in found["rows"] if row["step"] == f"large-{backend}"} == {backend}
    text = json.dumps(found)
    assert not any(folder in text for folder in (str(ROOT), sys.prefix, str(tmp_path)))
