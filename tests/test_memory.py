import os

import pytest
import torch

from examples.digits.huge_batch import HugeBatch, describe_huge_batch, measure_huge_batch
from hyperkern import memory
from hyperkern.memory import PeakMemory

CPU = torch.device("cpu")
MEGABYTE = 2**20

linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")


@linux
@pytest.mark.parametrize("high_water_mark", [True, False])
def test_sees_an_allocation_of_known_size_that_is_freed_again(
    high_water_mark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not high_water_mark:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    with PeakMemory(CPU) as meter:
        block = torch.ones(300 * MEGABYTE, dtype=torch.uint8)
        block.add_(1)
        del block
    assert meter.rise == pytest.approx(300 * MEGABYTE, rel=0.1)


@linux
def test_an_earlier_peak_does_not_count() -> None:
    torch.ones(300 * MEGABYTE, dtype=torch.uint8)
    with PeakMemory(CPU) as meter:
        torch.ones(40 * MEGABYTE, dtype=torch.uint8)
    assert meter.rise == pytest.approx(40 * MEGABYTE, rel=0.25)


def test_system_without_proc_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.os.path, "exists", lambda path: False)
    with PeakMemory(CPU) as meter:
        pass
    assert meter.rise is None
    assert "not measured" in meter.method


def test_huge_batch_is_close_to_the_uniform_distribution() -> None:
    huge = measure_huge_batch(CPU, 2048, backend=None)
    assert huge.matrix_bytes == 2048 * 2048 * 4
    assert huge.uniformity == pytest.approx(huge.limit, abs=0.01)
    assert huge.seconds > 0


def test_description_uses_decimal_units() -> None:
    huge = HugeBatch(65_536, 128, 1.0, 70_000_000, "a meter", 4 * 65_536**2, -3.9, -3.9)
    text = "\n".join(describe_huge_batch(huge))
    assert "65,536 × 128" in text
    assert "70.0 MB (peak, by a meter)" in text
    assert "17.2 GB" in text
    assert "4.4 TB" in "\n".join(describe_huge_batch(huge._replace(matrix_bytes=4 * 1_048_576**2)))
    assert "not measured" in "\n".join(describe_huge_batch(huge._replace(extra_bytes=None)))
