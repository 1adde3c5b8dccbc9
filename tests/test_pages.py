"""The figures in the documentation are those of the committed results."""

import pytest

from benchmarks import pages, scaling


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page) -> None:
    text = page.read_text(encoding="utf-8")
    assert pages.filled(text) == text, "run python -m benchmarks.pages"


@pytest.mark.parametrize("name", pages.BLOCKS)
def test_every_table_is_shown(name: str) -> None:
    assert any(f"<!-- {name} -->" in page.read_text(encoding="utf-8") for page in pages.PAGES)


def test_a_stale_table_is_seen() -> None:
    page = pages.PAGES[0].read_text(encoding="utf-8")
    assert pages.filled(page.replace("| 8 |", "| 9 |")) == pages.filled(page)


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
