"""The code that a function depends on, as far as it is that of the examples."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

OURS = "examples."


@cache
def sources(function: Callable[..., Any]) -> tuple[Path, ...]:
    """The files of the function's module and of those of the examples that it imports, they import, and so on.

    What only imports the function's module, such as what shows its results, is not among them.
    """
    found: dict[str, Path] = {}
    todo = [function.__module__]
    while todo:
        name = todo.pop()
        if name in found or (spec := _spec(name)) is None:
            continue
        found[name] = Path(str(spec.origin))
        todo += [imported for imported in _imports(spec) if imported.startswith(OURS)]
    return tuple(found[name] for name in sorted(found))


def _spec(name: str) -> ModuleSpec | None:
    """Of a module that has a file; ``None`` for another name, such as that of a function in one."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # what should hold it is no package
        return None
    return spec if spec is not None and spec.origin is not None else None


def _imports(spec: ModuleSpec) -> Iterator[str]:
    package = spec.name if spec.submodule_search_locations is not None else spec.parent
    for node in ast.walk(ast.parse(Path(str(spec.origin)).read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)  # a module, or nothing of that name
