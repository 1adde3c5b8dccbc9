"""What goes into the package of the kernels hub, and from where.

Sources are copied as they are: `hyperkern._ops` is the only place that knows the namespace of the operators, and the
builder puts a module of its own there; ``HYPERKERN_NAMESPACE`` is the same for C++.
"""

import json
import shutil
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "files"
PACKAGE = Path("torch-ext", "hyperkern")
# Of hyperkern/, what a kernel has no use for. All else is copied: losses, modules, backends, and the check of a backend
# on a GPU, which needs the textbook formulas and the cases of the benchmarks.
LEFT_OUT = (
    *("__init__.py", "_ops.py"),  # it has those of FILES and of the builder
    *("__main__.py", "cli", "interrupt.py", "terminal.py", "format.py", "memory.py"),  # the command
    *("cached", "evaluation", "integrations", "metrics.py", "queue.py"),  # training around a loss
    *("correctness/everything.py", "correctness/findings.py"),  # the command, again
    *(f"bench/{name}.py" for name in ("child", "clock", "compare", "figures", "machine", "matrix")),
    *(f"bench/{name}.py" for name in ("page", "plan", "result", "run", "table", "tune")),
    "bench/page.html",
    "py.typed",
)
# Of csrc/, what is compiled, and what that includes.
SOURCES = ("*.h", "*.cuh", "*.cu", "ops.cpp", "instances/*.cu")
# What the builder calls the binding: the module that Python imports, and the schemas of the operators.
BINDING = ("torch-ext/torch_binding.cpp", "csrc/ops.cpp", "csrc/ops.h")


def modules() -> list[str]:
    """The files of the Python package that are copied, as paths below it."""
    found = []
    for path in sorted((ROOT / "hyperkern").rglob("*")):
        name = path.relative_to(ROOT / "hyperkern").as_posix()
        is_left_out = any(name == other or name.startswith(f"{other}/") for other in LEFT_OUT)
        if path.is_file() and path.suffix not in (".so", ".pyc") and not is_left_out:
            found.append(name)
    return found


def sources() -> list[str]:
    """The files of the extension, as paths below the project."""
    found = {path.relative_to(ROOT).as_posix() for pattern in SOURCES for path in (ROOT / "csrc").glob(pattern)}
    return sorted(found)


def write(folder: Path, repo_id: str) -> list[Path]:
    """Writes the package, in place of one that is there; what else is in its folder stays, such as ``.git``.

    Args:
        folder: its own; made with its parents.
        repo_id: the repository of the hub that it is published to, ``owner/name``.

    Returns:
        The files.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "build.toml").exists():
        raise FileExistsError(f"{folder} holds something else than a package for the hub: it has no build.toml")
    for part in ("torch-ext", "csrc"):
        shutil.rmtree(folder / part, ignore_errors=True)
    copies = {PACKAGE / name: ROOT / "hyperkern" / name for name in modules()}
    copies |= {Path(name): ROOT / name for name in [*sources(), "LICENSE"]}
    copies |= {path.relative_to(FILES): path for path in FILES.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    for name, path in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    lists = {"binding": BINDING, "sources": [name for name in sources() if name not in BINDING]}
    given = {name: json.dumps(list(names), indent=2) for name, names in lists.items()}
    for path in (folder / "build.toml", folder / "tests" / "test_losses.py"):
        path.write_text(Template(path.read_text("utf-8")).substitute(given, repo_id=repo_id), "utf-8")
    return sorted(folder / name for name in copies)
