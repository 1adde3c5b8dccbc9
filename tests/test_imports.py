"""The architecture, enforced: inside the package imports run downward only."""

import ast
from pathlib import Path

import pytest

import hyperkern

PACKAGE = Path(hyperkern.__file__).parent

# Everything beside the contract and what backends share is a backend.
BACKENDS = {path.stem for path in (PACKAGE / "backends").iterdir()} - {"__init__", "__pycache__", "host"}

# From the ground up. A part may import from the layers below it, and from itself; not from another of its layer.
LAYERS = [
    {"_ops"},
    {"spec", "distributed", "files", "format", "interrupt", "memory", "terminal", "textbook", "classes", "workspace"},
    {"check"},
    {"backends"},  # the contract and the choice, which imports a backend by name
    {"backends.host"},
    {f"backends.{name}" for name in BACKENDS},
    {"ops"},
    {"second_order"},
    {"autograd"},
    {"arguments"},
    {"options"},
    {"losses"},
    {"nn", "metrics", "queue", "cached"},
    {"catalog"},
    {"evaluation"},  # evaluation shows a value beside that of the uniform distribution, from metrics
    {"integrations"},
    {"bench"},
    {"correctness"},  # of the cases of the benchmarks
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported_modules(source: str, module: list[str]) -> list[list[str]]:
    """The modules of this package that a source file imports, as paths below the package.

    ``module`` is the file's own path below the package, with the package it stands in first.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name.split(".")[1:] for a in node.names if a.name.split(".")[0] == "hyperkern"]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = module[: len(module) - node.level]
            elif node.module and node.module.split(".")[0] == "hyperkern":
                base, node.module = [], ".".join(node.module.split(".")[1:])
            else:
                continue
            path = base + (node.module.split(".") if node.module else [])
            # `from . import a, b` names modules; `from .a import f` names one.
            found += [path] if path else [[alias.name] for alias in node.names]
            if path == ["backends"]:
                found += [[*path, alias.name] for alias in node.names]
    return found


def part_of(path: list[str]) -> str:
    """The entry of `LAYERS` that a path lies in; what ``backends`` itself defines is the contract."""
    inner = ".".join(path[:2])
    return inner if inner in LEVEL else path[0]


def upward_imports(source: str, module: list[str]) -> list[str]:
    own = part_of(module)
    wrong = []
    for path in imported_modules(source, module):
        part = part_of(path) if path else ""
        if part not in LEVEL:  # names of the top package, such as __version__
            continue
        if LEVEL[part] > LEVEL[own] or (LEVEL[part] == LEVEL[own] and part != own):
            wrong.append(f"{'.'.join(module)} imports {'.'.join(path)}")
    return wrong


def source_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        module = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if module != ["__init__"]:
            yield pytest.param(path, module, id=".".join(module))


@pytest.mark.parametrize(("path", "module"), list(source_files()))
def test_imports_run_downward(path, module):
    assert part_of(module) in LEVEL, f"{module[0]} has no place in the architecture: add it to LAYERS"
    assert upward_imports(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "module", "bad"),
    [
        ("from ..losses import uniformity", ["backends", "reference"], True),
        ("from .. import autograd", ["backends", "reference"], True),
        ("from hyperkern.nn import CLIPLoss", ["losses", "alignment"], True),
        ("def f():\n    import hyperkern.cli", ["autograd"], True),
        ("from .. import reference", ["backends", "triton", "rows"], True),
        ("from ..reference import energy", ["backends", "triton", "rows"], True),
        ("from . import triton", ["backends", "reference"], True),
        ("from hyperkern.backends.triton import config", ["backends", "reference"], True),
        ("from ..triton import config", ["backends", "host", "panels"], True),
        ("from hyperkern.backends import reference", ["backends", "host", "panels"], True),
        ("from .host import partials", ["backends", "__init__"], True),
        ("from . import triton", ["backends", "__init__"], True),
        ("from ..host.partials import Side\nfrom .. import host", ["backends", "triton", "rows"], False),
        ("from .. import Problem\nfrom . import partials", ["backends", "host", "panels"], False),
        ("from . import config\nfrom .tile import LN2", ["backends", "triton", "rows"], False),
        ("from ..spec import PairSpec\nfrom . import Problem", ["backends", "reference"], False),
        ("from .. import autograd", ["losses", "alignment"], False),
        ("import torch", ["spec"], False),
    ],
)
def test_the_walk_sees_what_it_should(source, module, bad):
    assert bool(upward_imports(source, module)) is bad


def private_imports(source: str, module: list[str]) -> list[str]:
    """The private names and modules that a file imports from a package it does not lie in."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").split(".")[0] == "hyperkern"):
            continue
        base = module[: len(module) - node.level] if node.level else []
        base = base + (node.module.removeprefix("hyperkern").strip(".").split(".") if node.module else [])
        for alias in node.names:
            path = [name for name in (*base, alias.name) if name]
            private = [i for i, name in enumerate(path) if name.startswith("_") and not name.endswith("__")]
            if not private:
                continue
            owner = path[: private[0]]
            if len(owner) > 1 and PACKAGE.joinpath(*owner).with_suffix(".py").exists():
                owner = owner[:-1]  # what a module has for itself the others of its package may share
            if module[: len(owner)] != owner:
                wrong.append(f"{'.'.join(module)} imports {'.'.join(path)}")
    return wrong


@pytest.mark.parametrize(("path", "module"), list(source_files()))
def test_nothing_private_crosses_packages(path, module):
    assert private_imports(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "module", "bad"),
    [
        ("from ..losses._eager import LossSpec", ["integrations", "simcse"], True),
        ("from ..losses import _eager", ["integrations", "simcse"], True),
        ("from ..losses.uniformity import _MAX", ["evaluation", "evaluate"], True),
        ("def f():\n    from hyperkern.backends.host.panels import _room", ["backends", "triton", "whole"], True),
        ("from .spec import _NAMES", ["second_order"], True),
        ("from . import _eager\nfrom .logits import merged\nfrom .clip import _x", ["losses", "info_nce"], False),
        ("from .. import __version__\nfrom ..losses import clip_loss as _clip", ["nn", "base"], False),
        ("from torch._C import _functions", ["spec"], False),
    ],
)
def test_the_walk_sees_what_is_private(source, module, bad):
    assert bool(private_imports(source, module)) is bad


@pytest.mark.parametrize("path", sorted((PACKAGE / "losses").glob("*.py")), ids=lambda path: path.stem)
def test_losses_know_no_backend(path):
    names = {path[0] for path in imported_modules(path.read_text(), ["losses", path.stem])}
    assert names <= {"losses", "arguments", "options", "autograd", "distributed", "spec"}
    assert "torch.ops" not in path.read_text()
