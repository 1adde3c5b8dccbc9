"""The figures in the documentation are those of the committed results."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import pages, readme, scaling
from benchmarks.tables import result
from tools.kernels import pages as kernels
from tools.kernels import predict, report
from tools.kernels.rows import Row

FILES = pages.files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_those_of_the_results(path) -> None:
    written = path.read_text(encoding="utf-8")
    if path.suffix == ".svg":  # what is said, not what this release of matplotlib makes of it
        assert words(written) == words(FILES[path]), "run python -m benchmarks.pages"
    else:
        assert written == FILES[path], "run python -m benchmarks.pages"


def words(image: str) -> list[str]:
    """The label, which has the values, and every text."""
    found: list[str] = re.findall(r'aria-label="[^"]*"|(?<=>)[^<]+(?=</text>)', image)
    assert len(found) > 10
    return found


@pytest.mark.parametrize("name", pages.BLOCKS)
def test_every_table_is_shown(name: str) -> None:
    assert any(f"<!-- {name} -->" in page.read_text(encoding="utf-8") for page in pages.PAGES)


def test_every_picture_is_shown() -> None:
    text = pages.PAGES[0].read_text(encoding="utf-8")
    assert [name for name in readme.images() if f"docs/images/benchmark/{name}" not in text] == []
    assert {path.name for path in pages.IMAGES.iterdir()} == set(readme.images())


@pytest.mark.parametrize(
    ("page", "old"), [(pages.PAGES[0], "\u00a0ms |"), (pages.ROOT / "docs" / "scaling.md", "| 8 |")]
)
def test_a_stale_table_is_seen(page, old: str) -> None:
    text = page.read_text(encoding="utf-8")
    assert old in text
    assert pages.filled(text.replace(old, "| 9 |")) == pages.filled(text)


def test_a_faster_peer_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str, ms: float, status: str = "ok") -> SimpleNamespace:
        figures = {"median_ms": ms, "of_limit": 0.5, "peak_bytes": 1e6}
        return SimpleNamespace(case="clip", implementation=name, n=8, d=4, status=status, **figures)

    rows = [row("hyperkern", 2.0), row("dense", 5.0), row("other", 1.0), row("wrong", 0.1, "failed")]
    monkeypatch.setattr(readme, "bench", lambda: SimpleNamespace(rows=rows))
    assert "| 2\u00a0ms | 50 % | 2.5× | 0.5× (other) |" in readme.losses()


class TestTheReportOfKernels:
    def test_it_has_every_field_of_every_backend_and_is_small(self) -> None:
        found = result(kernels.RESULT)
        assert found["fields"] == list(Row._fields)
        rows = kernels.read()
        assert {(row["backend"], row["architecture"]) for row in rows} >= {("triton", "sm_90"), ("cuda", "sm_90")}
        assert (pages.ROOT / "benchmarks" / "results" / f"{kernels.RESULT}.json").stat().st_size < 300e3

    def test_it_has_what_is_shipped(self) -> None:
        pytest.importorskip("triton")
        from hyperkern.backends.triton import config
        from tools.kernels import triton

        blocks = ("BLOCK_M", "BLOCK_N", "BLOCK_D")
        shipped = {
            (*case[1:5], "x".join(str(case.constants[name]) for name in blocks), case.options["num_stages"])
            for case in triton.cases(config.of_name("sm_90"))
            if "BLOCK_N" in case.constants
        }
        names = ("kernel", "operand", "dim", "problem", "tile", "stages")
        found = {
            tuple(row[name] for name in names)
            for row in kernels.read()
            if (row["backend"], row["architecture"]) == ("triton", "sm_90") and row["pairs"]
        }
        assert found == shipped, "make the file anew, see docs/kernels.md"

    def test_a_file_is_read_as_it_was_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = Row(*(f"{name}" for name in Row._fields[:4]), *range(len(Row._fields) - 4))
        monkeypatch.setattr(kernels, "result", lambda name: json.loads(report.text([row, row], {"cuda": None})))
        assert kernels.read() == [row._asdict()] * 2

    def test_releases_stand_beside_each_other_in_their_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("triton")
        from tools.kernels import triton

        row = Row(*(f"{name}" for name in Row._fields[:4]), *range(len(Row._fields) - 4))
        monkeypatch.setattr(triton, "report", lambda *of, **options: [row, row])
        for release in ("3.6.0", "3.10.0", "3.8.0"):
            monkeypatch.setattr(report, "version", lambda name, release=release: release)
            report.add_release(tmp_path / "releases.json")
        found = json.loads((tmp_path / "releases.json").read_text())
        assert list(found["releases"]) == ["3.6.0", "3.8.0", "3.10.0"]
        assert found["machine"]["commit"]
        assert found["releases"]["3.8.0"][1]["kernel"] == row.kernel

    def test_the_compiler_is_named(self) -> None:
        assert report.toolkit(b"...Cuda compilation tools, release 13.0, V13.0.88...") == "13.0.88"
        assert report.toolkit(b"") == "unknown"


class TestTheModelOfScaling:
    loss = scaling.LOSSES["uniformity"]

    def test_one_gpu_has_no_traffic(self) -> None:
        alone = scaling.cost(self.loss, 1, 4096, 128, 1e12, 1e9)
        assert alone.ring == alone.gather == alone.compute == 4 * 4096**2 * 128 / 1e12

    def test_a_hop_hides_from_that_many_rows_on(self) -> None:
        rows = scaling.hiding_rows(self.loss, 1e12, 1e9)
        assert rows == 4 * 1e12 / (4 * 1e9)
        for own, hidden in ((2 * rows, True), (rows / 2, False)):
            found = scaling.cost(self.loss, 8, int(8 * own), 4096, 1e12, 1e9)
            assert (found.ring == pytest.approx(found.compute)) is hidden

    def test_a_slower_link_never_helps(self) -> None:
        for loss in scaling.LOSSES.values():
            fast, slow = (scaling.cost(loss, 64, 1 << 16, 128, 1e14, link) for link in (1e12, 1e10))
            assert slow.ring >= fast.ring
            assert slow.gather >= fast.gather
            assert slow.ring_bytes == fast.ring_bytes < fast.gather_bytes


PATH = predict.Path("a loss", "triton", "contract", "uniformity", 128, 2, 1.0, 0, 4)
ROW = {
    **{"architecture": "sm_90", "operand": "bfloat16", "backend": "triton", "kernel": "contract", "dim": 128},
    **{"problem": "uniformity", "tile": "128x64x128", "warps": 8, "registers": 160, "shared_bytes": 80 << 10},
    **{"per_pair": 8.0, "pairs": 32, "exponentials": 32, "special": 0, "multicast": 0, "late": 32},
}


class TestPredictions:
    def predicted(self, path: predict.Path = PATH, **changes: object) -> predict.Prediction:
        found = predict.predicted(path, [ROW | changes])
        assert found is not None
        return found

    def test_parts_are_counts_over_rates(self) -> None:
        found, pairs = self.predicted(), predict.N**2
        assert found.products == pytest.approx(1e3 * 4 * pairs * 128 / 790e12)
        assert found.exponentials == pytest.approx(1e3 * pairs / predict.H200.exponentials)
        assert found.issue == pytest.approx(1e3 * 8 * pairs / predict.H200.issued)
        assert found.l2 == pytest.approx(1e3 * 2 * 128 * pairs / 128 / 5.5e12)

    def test_what_runs_at_once_is_not_added(self) -> None:
        alone = self.predicted()
        weights = max(alone.exponentials, alone.issue)
        assert (alone.streams, alone.least) == (1, pytest.approx(alone.products + weights))
        two = self.predicted(registers=128)
        assert (two.streams, two.least) == (2, pytest.approx(two.products))
        assert self.predicted(late=0).least == pytest.approx(alone.products)

    def test_rows_that_stream_are_fetched_too_and_by_clusters_once(self) -> None:
        long = PATH._replace(dim=768)
        alone, shared = (self.predicted(long, dim=768, multicast=count) for count in (0, 2))
        unit = 1e3 * 2 * 768 * predict.N**2 / 5.5e12
        assert (alone.l2, shared.l2) == (pytest.approx(unit * (1 / 128 + 1 / 64)), pytest.approx(unit * (2 / 128)))

    def test_the_row_is_that_of_the_least_dimension_which_is_enough(self) -> None:
        rows = [ROW | {"dim": dim} for dim in (64, 100, 112, 128, 256)]
        found = [predict.row_of(PATH._replace(dim=dim), rows) for dim in (64, 65, 129, 257)]
        assert [None if row is None else row["dim"] for row in found] == [64, 128, 256, None]
