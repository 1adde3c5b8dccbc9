"""What the tests of the benchmark share."""

import pytest

from hyperkern.bench import machine


@pytest.fixture(autouse=True)
def _small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own rates are measured on little: what they are is nothing to a test."""
    monkeypatch.setitem(machine.SIDE, "cpu", 64)
    monkeypatch.setitem(machine.COPIED, "cpu", 1 << 16)
