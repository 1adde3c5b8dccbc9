"""Real sentence pairs that come with Python: what a function of the standard library does, and its signature.

A pair is the first sentence of a docstring and the function that it describes, as in code search: ``("Set the internal
flag to true.", "asyncio.locks.Event.set()")``. The sources are parsed, not imported. Another release of Python has
other functions, and so somewhat other pairs.
"""

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

Pair = tuple[str, str]
# Tests, what is vendored, and what is not there everywhere.
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "turtledemo",
    "pydoc_data",
    "ensurepip",
    "distutils",
}
MOST = 40  # of one module: tkinter has 500


def load(count: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train with, and held-out ones of other modules, the same every time.

    Args:
        count: of all pairs, of which there are 2500; a quarter of them is held out.
    """
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted({path.relative_to(library).parts[0] for path in library.rglob("*.py")} - LEFT_OUT)
    draw = random.Random(0)
    draw.shuffle(modules)
    train: list[Pair] = []
    held_out: list[Pair] = []
    seen: set[str] = set()
    for module in modules:
        here = []
        for pair in pairs_of(library, module):
            if seen.isdisjoint(pair):  # a sentence belongs to one function
                seen.update(pair)
                here.append(pair)
        side = held_out if 3 * len(held_out) < len(train) else train
        side += draw.sample(here, min(MOST, len(here)))
        if len(train) >= count - count // 4 and len(held_out) >= count // 4:
            break
    return train[: count - count // 4], held_out[: count // 4]


def pairs_of(library: Path, module: str) -> Iterator[Pair]:
    """The pairs of a module or package, that is of ``module.py`` or of all files in ``module``."""
    for path in sorted((library / module).rglob("*.py")) or [library / module]:
        *folders, name = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT.isdisjoint(folders) and (name == "__init__" or not name.startswith("_")):
            names = folders if name == "__init__" else [*folders, name]
            yield from described(ast.parse(path.read_text(encoding="utf-8")), ".".join(names))


def described(scope: ast.AST, name: str) -> Iterator[Pair]:
    """The pairs of a module or class: its public functions, and the methods of its classes."""
    for node in ast.iter_child_nodes(scope):
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from described(node, f"{name}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            sentence = re.split(r"(?<=[a-z)]\.) ", paragraph)[0]
            if len(sentence.split()) >= 4:
                arguments = ", ".join(argument.arg for argument in node.args.args if argument.arg != "self")
                yield sentence, f"{name}.{node.name}({arguments})"
