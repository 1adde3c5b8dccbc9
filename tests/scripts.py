"""The scripts of examples/ for trainers: as they are, and as they were before the marked lines were changed."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("train_*.py"), *EXAMPLES.glob("finetune_*.py")])
MARK = re.compile(r"( *)# hyperkern: (?:was (.+)|new)")


def before(source: str) -> str:
    """The script without hyperkern.

    What stands in ``# hyperkern: was`` comes in place of the statement below, which goes below ``# hyperkern: new``.
    """
    lines = source.splitlines()
    ends: dict[int, int] = {}
    for node in ast.walk(ast.parse(source)):  # outer statements first
        if isinstance(node, ast.stmt):
            ends.setdefault(node.lineno - 1, node.end_lineno or node.lineno)
    found, i = [], 0
    while i < len(lines):
        if not MARK.fullmatch(lines[i]):
            found.append(lines[i])
            i += 1
            continue
        while mark := MARK.fullmatch(lines[i]):
            if mark[2] is not None:
                found.append(mark[1] + mark[2])
            i += 1
        i = ends[i]
    return "\n".join(found) + "\n"


def load(name: str, folder: Path | None = None) -> ModuleType:
    """A script as a module; with a folder for it as it was before hyperkern."""
    path = EXAMPLES / f"{name}.py"
    if folder is not None:
        source = before(path.read_text(encoding="utf-8"))
        path = folder / f"{name}_before.py"
        path.write_text(source, encoding="utf-8")
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))  # as for a script that is started there: its data are in files beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
