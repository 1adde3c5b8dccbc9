"""What a test registers is gone behind it."""

from collections.abc import Iterator

import bench_runs  # noqa: F401  (it fills the registry)
import pytest

from hyperkern.bench import registry


@pytest.fixture(autouse=True)
def _registry_as_it_was() -> Iterator[None]:
    tables = (registry.CASES, registry.IMPLEMENTATIONS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
