"""The frame of the paper's reproduction: jobs that are kept, results, page, command line."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from rich.console import Console

import examples.paper.parts
from examples.paper import __main__ as command
from examples.paper import page, results, statistics
from examples.paper.claim import Claim, verdict
from examples.paper.job import Job
from examples.paper.part import Part
from examples.paper.parts import PARTS
from examples.paper.runner import Done, JobError, processes, run_jobs
from examples.paper.sources import sources
from hyperkern.files import as_json

QUIET = Console(quiet=True)


def noted(path: str, value: float) -> dict[str, float]:
    """A job that leaves a trace of each call."""
    with open(path, "a") as file:
        file.write("x")
    return {"value": value}


def refusing(path: str) -> dict[str, float]:
    raise ValueError(f"nothing in {path}")


def waiting(seconds: float) -> dict[str, float]:
    time.sleep(seconds)
    return {}


def jobs_of(folder: Path, *values: float) -> dict[str, list[Job]]:
    return {"part": [Job(f"job-{v}", noted, {"path": str(folder / f"calls-{v}"), "value": v}) for v in values]}


def calls(folder: Path, value: float) -> int:
    path = folder / f"calls-{value}"
    return len(path.read_text()) if path.exists() else 0


class TestJobs:
    def test_what_is_done_is_kept(self, tmp_path: Path) -> None:
        first = run_jobs(jobs_of(tmp_path, 1, 2), tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        again = run_jobs(jobs_of(tmp_path, 1, 2, 3), tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        assert [calls(tmp_path, value) for value in (1, 2, 3)] == [1, 1, 1]
        assert {name: done.result for name, done in again["part"].items()} == {
            f"job-{v}": {"value": v} for v in (1, 2, 3)
        }
        assert {name: again["part"][name] for name in first["part"]} == first["part"]

    def test_other_arguments_are_another_job(self, tmp_path: Path) -> None:
        run_jobs(jobs_of(tmp_path, 1), tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        changed = {"part": [Job("job-1", noted, {"path": str(tmp_path / "calls-1"), "value": 5})]}
        assert run_jobs(changed, tmp_path / "out", ThreadPoolExecutor(1), QUIET)["part"]["job-1"].result == {"value": 5}
        assert calls(tmp_path, 1) == 2

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"fingerprint": 1}'])
    def test_a_file_that_is_none_is_made_anew(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "out" / "cells" / "part").mkdir(parents=True)
        (tmp_path / "out" / "cells" / "part" / "job-1.json").write_bytes(content)
        assert run_jobs(jobs_of(tmp_path, 1), tmp_path / "out", ThreadPoolExecutor(1), QUIET)["part"][
            "job-1"
        ].result == {"value": 1}

    def test_one_that_fails_is_named_and_the_others_kept(self, tmp_path: Path) -> None:
        jobs = jobs_of(tmp_path, 1)["part"]
        failing = Job("bad", refusing, {"path": "here"}, seconds=0.5)
        with pytest.raises(JobError, match=r"part/bad failed: ValueError: nothing in here"):
            run_jobs({"part": [*jobs, failing]}, tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        run_jobs({"part": jobs}, tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        assert calls(tmp_path, 1) == 1

    def test_two_of_a_name_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="same name"):
            run_jobs(jobs_of(tmp_path, 1, 1), tmp_path / "out", ThreadPoolExecutor(1), QUIET)

    def test_a_result_that_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match=r"part/job-nan failed: what it returned cannot be kept: .*JSON"):
            run_jobs(jobs_of(tmp_path, float("nan")), tmp_path / "out", ThreadPoolExecutor(1), QUIET)

    def test_code_that_changes_during_a_run_is_another_job(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from examples.paper import job

        code = tmp_path / "code.py"
        code.write_text("before")
        monkeypatch.setattr(job, "sources", lambda function: (code,))
        editing = {"part": [Job("edit", edited, {"path": str(code)})]}
        run_jobs(editing, tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        run_jobs(editing, tmp_path / "out", ThreadPoolExecutor(1), QUIET)
        assert code.read_text() == "before, after, after"

    def test_a_process_that_is_killed_is_said(self, tmp_path: Path) -> None:
        jobs = {"part": [Job("first", killed, {}), Job("second", waiting, {"seconds": 0.0}, seconds=0.5)]}
        with processes(1) as executor, pytest.raises(JobError, match="a process that runs jobs was killed"):
            run_jobs(jobs, tmp_path / "out", executor, QUIET)

    def test_processes_end_with_the_one_that_started_them(self, tmp_path: Path) -> None:
        out = tmp_path / "process"
        (tmp_path / "script.py").write_text(
            "import os, pathlib, time\n"
            "from examples.paper.runner import processes\n"
            "def job():\n"
            f"    pathlib.Path({str(out)!r}).write_text(f'{{os.getpid()}}\\n')\n"
            "    time.sleep(120)\n"
            "if __name__ == '__main__':\n"
            "    with processes(1) as executor:\n"
            "        executor.submit(job).result()\n"
        )
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment)
        wait_for(lambda: out.exists() and out.read_text().endswith("\n"))
        process.kill()
        process.wait()
        wait_for(lambda: not running(int(out.read_text())))

    def test_those_that_run_after_an_error_end_and_no_others(self, tmp_path: Path) -> None:
        other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(120,))
        other.start()
        out = tmp_path / "process"
        try:
            with pytest.raises(JobError, match="an error"):
                fails_while_it_sleeps(out)
            wait_for(lambda: not running(int(out.read_text())))
            time.sleep(0.2)
            assert other.is_alive()
        finally:
            other.kill()
            other.join()

    def test_jobs_have_one_thread_each(self, tmp_path: Path) -> None:
        with processes(1) as executor:
            found = run_jobs({"part": [Job("threads", threads, {})]}, tmp_path / "out", executor, QUIET)
        assert found["part"]["threads"].result == {"torch": 1, "ignores": True}

    def test_a_line_for_each_where_there_is_no_terminal(self, tmp_path: Path, capsys) -> None:
        run_jobs(jobs_of(tmp_path, 1, 2), tmp_path / "out", ThreadPoolExecutor(1), Console(force_terminal=False))
        run_jobs(jobs_of(tmp_path, 1, 2), tmp_path / "out", ThreadPoolExecutor(1), Console(force_terminal=False))
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines[:2]] == ["[1/2] part/job-1", "[2/2] part/job-2"]
        assert lines[2].startswith("2 of 2 jobs are done already")


def edited(path: str) -> dict[str, object]:
    with open(path, "a") as file:
        file.write(", after")
    return {}


def fails_while_it_sleeps(out: Path) -> None:
    with processes(1) as executor:
        executor.submit(sleeping, out)
        wait_for(lambda: out.exists() and out.read_text().endswith("\n"))
        raise JobError("an error")


def sleeping(out: Path) -> None:
    out.write_text(f"{os.getpid()}\n")
    time.sleep(120)


def killed() -> dict[str, object]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def running(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()  # ended, and nobody has asked how
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def threads() -> dict[str, object]:
    return {"torch": torch.get_num_threads(), "ignores": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}


class TestSources:
    def test_they_are_what_is_imported_however_deep(self) -> None:
        from examples import moco

        names = {path.stem for path in sources(moco.train)}
        assert {"moco", "data", "encoder", "evaluate", "objectives"} <= names  # the last through `evaluate`
        assert "pipeline" not in names  # which imports some of these, and nothing here imports

    def test_a_job_changes_with_them(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from examples.paper import job

        one = Job("one", noted, {"value": 1})
        before = one.fingerprint()
        assert one.fingerprint() == before
        assert Job("one", noted, {"value": 2}).fingerprint() != before
        (tmp_path / "more.py").write_text("changed = True\n")
        monkeypatch.setattr(job, "sources", lambda function: (*sources(function), tmp_path / "more.py"))
        assert one.fingerprint() != before


class TestStatistics:
    def test_an_interval_covers_as_often_as_it_says(self) -> None:
        generator = np.random.default_rng(0)
        covered = 0
        for seed in range(60):
            x = generator.normal(size=60)
            found = statistics.bootstrap(np.mean, x, seed=seed)
            assert found.value == pytest.approx(x.mean())
            covered += found.low <= 0 <= found.high
        assert 51 <= covered <= 60

    def test_observations_stay_together(self) -> None:
        x = np.arange(40.0)
        found = statistics.bootstrap(statistics.spearman, x, x**3)
        assert found == pytest.approx((1, 1, 1))
        assert statistics.spearman(x, -x) == pytest.approx(-1)

    def test_ties_are_spearmans(self) -> None:
        x, y = np.random.default_rng(0).integers(5, size=(2, 50))
        assert statistics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)

    def test_a_statistic_without_a_value_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no value"):
            statistics.bootstrap(statistics.spearman, [1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])

    def test_spread(self) -> None:
        assert statistics.spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
        assert statistics.spread([1.0])["std"] is None


def test_verdicts() -> None:
    assert [verdict(one) for one in (True, False, None)] == ["holds", "does not hold", "undecided"]


MADE_UP = Part(
    "made-up",
    jobs=lambda quick: [Job("one", waiting, {"seconds": 0.0 if quick else 60.0})],
    summarize=lambda cells: {"n": len(cells)},
    claims=lambda summary: [Claim("All is well", "nowhere", "counting", f"{summary['n']}", "1", verdict(True))],
    blocks=lambda summary: {"made-up": f"{summary['n']} job"},
    figures=lambda summary: {},
)


def test_what_does_not_hold_stands_at_the_top() -> None:
    smoke = MADE_UP._replace(is_smoke_test=True)
    verdicts = [(MADE_UP, True), (MADE_UP, False), (smoke, None), (smoke, False)]
    claims = [
        (part, Claim(f"Statement {i}.", f"Section {i}", "", "", "", verdict(holds)))
        for i, (part, holds) in enumerate(verdicts)
    ]
    assert page.contradictions(claims).splitlines() == [
        "4 statements of the paper were tried. Those that hold: 1, do not: 2, undecided: 1. What does not:",
        "",
        "- Statement 1 (Section 1).",
        "- Statement 3 (Section 3); in a smoke test.",
    ]
    assert page.contradictions(claims[:1]).endswith("hold: 1, do not: 0, undecided: 0.")


@pytest.fixture
def one_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command with a part of a second; the page that it fills."""
    text = "<!-- run -->\n<!-- end -->\n<!-- verdicts made-up -->\nold\n<!-- end -->\n<!-- made-up -->\n<!-- end -->\n"
    (tmp_path / "paper.md").write_text(text)
    for module in (examples.paper.parts, page, results):
        monkeypatch.setattr(module, "PARTS", (MADE_UP,))
    monkeypatch.setattr(page, "PAGE", tmp_path / "paper.md")
    monkeypatch.setattr(results, "COMMITTED", tmp_path / "committed.json")
    return tmp_path


@pytest.fixture
def in_full(one_part: Path) -> Path:
    """Results as of a run of all."""
    path = one_part / "out" / "results.json"
    path.parent.mkdir()
    path.write_bytes(as_json(results.assemble({"made-up": {"one": Done({}, 1.0)}}, quick=False)))
    return path


class TestCommand:
    def test_run_writes_results_and_page(self, one_part: Path, capsys) -> None:
        assert command.main(["--quick", "--out", str(one_part / "out"), "--processes", "1"]) == 0
        assert "holds  made-up: All is well" in capsys.readouterr().out
        found = results.read(one_part / "out" / "results.json")
        assert found["parts"] == {"made-up": {"n": 1}}
        assert found["claims"]["made-up"][0]["verdict"] == "holds"
        assert found["quick"]
        text = (one_part / "out" / "paper.md").read_text()
        assert "\nold\n" not in text
        assert "| All is well | nowhere | **holds** |" in text
        assert "1 job\n" in text

    def test_a_quick_run_says_so_and_is_no_page(self, one_part: Path, capsys) -> None:
        command.main(["--quick", "--out", str(one_part / "out"), "--processes", "1"])
        assert "**A quick run" in (one_part / "out" / "paper.md").read_text()
        before = (one_part / "paper.md").read_text()
        assert command.main(["page", str(one_part / "out" / "results.json")]) == 2
        assert "results.json is of a quick run" in capsys.readouterr().err
        assert (one_part / "paper.md").read_text() == before
        assert not (one_part / "committed.json").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda found: found["parts"].pop("made-up"), "is of a run without made-up"),
            (
                lambda found: found["parts"]["made-up"].clear(),
                "is of another version of the reproduction (KeyError: 'n')",
            ),
            (lambda found: found.pop("machine"), "is of another version of the reproduction (KeyError: 'machine')"),
        ],
    )
    def test_results_that_make_no_page(self, one_part: Path, in_full, change, message: str, capsys) -> None:
        content = json.loads(in_full.read_bytes())
        change(content)
        in_full.write_text(json.dumps(content))
        before = (one_part / "paper.md").read_text()
        assert command.main(["page", str(in_full)]) == 2
        assert message in capsys.readouterr().err
        assert (one_part / "paper.md").read_text() == before

    def test_what_was_not_run_is_not_taken_from_the_page(self, one_part: Path, monkeypatch) -> None:
        other = MADE_UP._replace(name="other", blocks=lambda summary: {})
        for module in (examples.paper.parts, page, results):
            monkeypatch.setattr(module, "PARTS", (MADE_UP, other))
        text = "<!-- table other -->\nold\n<!-- end -->\n<!-- verdicts other -->\nold\n<!-- end -->\n"
        (one_part / "paper.md").write_text(text)
        words = ["run", "--only", "made-up", "--quick", "--out", str(one_part / "out"), "--processes", "1"]
        assert command.main(words) == 0
        assert (one_part / "out" / "paper.md").read_text() == text.replace("old", "Not run.")

    def test_a_terminal_without_the_signs(self, one_part: Path, monkeypatch) -> None:
        minus = MADE_UP._replace(claims=lambda summary: [Claim("τ − 1", "nowhere", "", "", "", verdict(True))])
        for module in (examples.paper.parts, page, results):
            monkeypatch.setattr(module, "PARTS", (minus,))
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        assert command.main(["--quick", "--out", str(one_part / "out"), "--processes", "1"]) == 0
        sys.stdout.flush()
        assert b"holds  made-up: ? ? 1" in raw.getvalue()

    @pytest.mark.parametrize("name", ["results.json", "paper.md", "cells"])
    def test_what_cannot_be_written_is_said_first(self, one_part: Path, name: str, capsys) -> None:
        (one_part / "out").mkdir()
        if name == "cells":
            (one_part / "out" / name).touch()
        else:
            (one_part / "out" / name).mkdir()
        start = time.monotonic()
        assert command.main(["run", "--out", str(one_part / "out"), "--processes", "1"]) == 2
        assert time.monotonic() - start < 30  # of 60 that its job takes
        assert f"argument --out: {one_part / 'out' / name}" in capsys.readouterr().err

    def test_page_keeps_a_run(self, one_part: Path, in_full: Path) -> None:
        figures = one_part / "images" / "paper"
        figures.mkdir(parents=True)
        (figures / "left_over.svg").touch()
        assert command.main(["page", str(in_full)]) == 0
        assert (one_part / "committed.json").read_bytes() == (one_part / "out" / "results.json").read_bytes()
        assert "1 job\n" in (one_part / "paper.md").read_text()
        assert list(figures.iterdir()) == []
        made = (one_part / "paper.md").read_text()
        assert command.main(["page"]) == 0
        assert (one_part / "paper.md").read_text() == made

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["run", "--only", "elsewhere"], "argument --only: must be among made-up, got 'elsewhere'"),
            (["run", "--processes", "0"], "argument --processes: must be at least 1, got 0"),
            (["page", "missing.json"], "missing.json cannot be read (No such file or directory)"),
            (["page", __file__], "is no file of results"),
        ],
    )
    def test_what_cannot_work_is_said(self, one_part: Path, words: list[str], message: str, capsys) -> None:
        assert command.main(words) == 2
        assert message in capsys.readouterr().err

    def test_out_is_a_file(self, one_part: Path, capsys) -> None:
        assert command.main(["run", "--quick", "--out", str(one_part / "paper.md")]) == 2
        assert "argument --out: " in capsys.readouterr().err

    def test_help_names_every_recipe(self, capsys) -> None:
        with pytest.raises(SystemExit, match="0"):
            command.main(["--help"])
        shown = capsys.readouterr().out
        assert all(name in shown for name in command.RECIPES)

    @pytest.mark.parametrize("name", command.RECIPES)
    def test_every_recipe_has_its_options(self, name: str, capsys) -> None:
        with pytest.raises(SystemExit, match="0"):
            command.main([name, "--help"])
        assert "--data DIR" in capsys.readouterr().out

    def test_what_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.setattr(command, "REQUIRED", ("torch", "no_such_library"))
        assert command.main([]) == 1
        assert "needs no_such_library; install with: pip install '.[paper]'" in capsys.readouterr().err

    def test_ctrl_c_keeps_what_is_done(self, tmp_path: Path) -> None:
        words = [sys.executable, "-m", "examples.paper", "run", "--only", PARTS[0].name, "--out", str(tmp_path)]
        process = subprocess.Popen(
            [*words, "--processes", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        done = tmp_path / "cells" / PARTS[0].name
        deadline = time.monotonic() + 120
        while not (done.exists() and list(done.glob("*.json"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # as where the tests themselves were started to ignore Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert process.returncode == 130, errors
        assert "what is done is kept, the same command goes on" in errors
        assert "Traceback" not in errors
        assert all("fingerprint" in json.loads(path.read_bytes()) for path in done.glob("*.json"))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return results.read(results.COMMITTED)


@pytest.fixture(scope="module")
def files(found: dict[str, Any]) -> dict[Path, bytes]:
    return page.files(found, page.PAGE.parent)


class TestCommitted:
    """The page and its figures are those of the committed results."""

    def test_every_part_ran_in_full(self, found) -> None:
        assert list(found["parts"]) == [part.name for part in PARTS]
        assert not found["quick"]
        assert found["jobs"] == sum(len(part.jobs(False)) for part in PARTS)

    def test_claims_are_those_of_the_results(self, found) -> None:
        for part in PARTS:
            made = [claim._asdict() for claim in part.claims(found["parts"][part.name])]
            assert found["claims"][part.name] == made

    def test_the_page_is_theirs(self, files) -> None:
        assert page.PAGE.read_text(encoding="utf-8") == files[page.PAGE].decode(), "run python -m examples.paper page"

    def test_every_block_is_shown(self, found) -> None:
        text = page.PAGE.read_text(encoding="utf-8")
        assert [name for name in page.blocks(found) if f"<!-- {name} -->" not in text] == []

    def test_every_figure_is_theirs_and_shown(self, files) -> None:
        text = page.PAGE.read_text(encoding="utf-8")
        images = {path: image for path, image in files.items() if path.suffix == ".svg"}
        assert {path.name for path in (page.PAGE.parent / "images" / "paper").iterdir()} == {
            path.name for path in images
        }
        for path, image in images.items():
            assert f"images/paper/{path.name}" in text
            # What is said, not what this release of matplotlib makes of it.
            assert words(path.read_bytes()) == words(image), "run python -m examples.paper page"


def words(image: bytes) -> list[str]:
    found = re.findall(r"(?<=>)[^<>]+(?=</text>)", image.decode())
    assert len(found) > 5
    return found
