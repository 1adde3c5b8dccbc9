"""The fixtures of tests of checks: a fake in front of all backends, and checks that pass without a process."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_backends
import pytest
from check_calls import forget

from hyperkern import backends
from hyperkern.check import process
from hyperkern.check.process import Outcome, Row


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Puts a fake in front of all backends, here and in the processes that check it."""
    forget()

    def put(behaviour: str) -> Any:
        for name, value in fake_backends.environment(behaviour, tmp_path).items():
            monkeypatch.setenv(name, value)
        module = fake_backends.make(behaviour)
        monkeypatch.setitem(sys.modules, "hyperkern.backends.fake", module)
        monkeypatch.setattr(backends, "PRIORITY", ("fake", "reference"))
        monkeypatch.setattr(backends, "chosen", functools.lru_cache(backends.chosen.__wrapped__))
        return module

    yield put
    forget()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[process.Request]:
    """No process is started: each check passes, and is noted."""
    asked: list[process.Request] = []

    def run(request: process.Request, limit: float, ended: object = None) -> Outcome:
        asked.append(request)
        return Outcome("passed", "", [Row("clip", "19 × 16", "passed", 0.1, 0.4, 1.0, "")], 1.0)

    monkeypatch.setattr(process, "run", run)
    return asked
