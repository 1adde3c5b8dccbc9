"""The package as it is distributed and installed: the whole tree, a pure wheel, light to import."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What is in a working tree and not in a clone of it, at most.
PRODUCTS = (
    ".git",
    ".venv*",
    "build",
    "dist",
    "demo-out",
    "*.egg-info",
    "*.so",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)
BUILT = re.compile(r"\.(so|pyc)$")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the source distribution holds, unpacked in an empty folder."""
    folder = tmp_path_factory.mktemp("sdist")
    # From a copy, so that nothing left over from another build gets in.
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*PRODUCTS))
    program = (
        f"import sys; sys.path.insert(0, 'csrc'); import build_backend; build_backend.build_sdist({str(folder)!r})"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=source, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_a_source_distribution_is_the_whole_tree(distributed: Path) -> None:
    found = files_below(distributed)
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
        tree = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    else:
        tree = {f"{folder}/{name}" for folder in ("tests", "docs", "csrc") for name in files_below(ROOT / folder)}
    assert {name for name in tree - found if not BUILT.search(name)} == set()
    assert {name for name in found if BUILT.search(name)} == set()


def test_the_index_shows_links_and_pictures(distributed: Path) -> None:
    (repository,) = re.findall(r'^Repository = "(https://.+)"$', read("pyproject.toml"), re.MULTILINE)
    description = (distributed / "PKG-INFO").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*]\(([^)]+)\)", read("README.md"))
    assert len(pictures) > 1
    assert [name for name in pictures if f"]({repository}/raw/HEAD/{name})" not in description] == []
    assert re.findall(r"]\((?!https://)[^)]+\)", description) == []
    assert f"[usage]({repository}/blob/HEAD/docs/usage.md)" in description


@pytest.mark.slow
def test_a_wheel_is_pure_and_holds_the_library_alone(distributed: Path, tmp_path: Path) -> None:
    # Isolated: the build environment has only what pyproject.toml asks for. Were torch needed to build, it would be
    # missing there.
    assert "torch" not in read("pyproject.toml").split("[project]")[0]
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONWARNINGS": "default", "HYPERKERN_BUILD_CUDA": ""}  # those of pip are not ours
    result = subprocess.run([*command, str(distributed)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    package = {f"hyperkern/{name}" for name in files_below(ROOT / "hyperkern") if not BUILT.search(name)}
    assert {"hyperkern/py.typed", "hyperkern/backends/triton/configs/sm_90.json"} <= package
    assert sorted(names) == sorted(package)


def test_the_hooks_run_all_that_lint_does() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    linters = re.findall(r"\$\(BIN\)/(.+)", recipe.replace(" .\n", "\n").replace(" $(CXX_SOURCES)", ""))
    hooks = re.findall(r"entry: \.venv/bin/(.+)", read(".pre-commit-config.yaml"))
    assert [hook.removesuffix(" --force-exclude") for hook in hooks] == linters
    assert [linter.split()[0] for linter in linters] == ["ruff", "ruff", "mypy", "clang-format"]
    (pattern,) = re.findall(r"files: (.+)", read(".pre-commit-config.yaml"))
    sources = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/**/*.*") if path.suffix not in (".md", ".py")
    }
    sources |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/csrc/*.*")}
    assert {name for name in sources if not BUILT.search(name) and not re.search(pattern, name)} == set()


def test_a_library_stands_in_one_extra() -> None:
    project = pytest.importorskip("tomllib").loads(read("pyproject.toml"))["project"]
    required = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in required]
    assert sorted({name for name in names if names.count(name) > 1}) == ["hyperkern"]


@pytest.mark.parametrize(("value", "expected"), [("1", ["torch>=2.10", "ninja"]), ("0", []), (None, [])])
def test_compiling_asks_for_torch_and_nothing_else_does(value, expected):
    environment = {name: v for name, v in os.environ.items() if not name.startswith("HYPERKERN_BUILD")}
    if value is not None:
        environment["HYPERKERN_BUILD_CUDA"] = value
    program = (
        "import os, sys; sys.path.insert(0, 'csrc'); before = dict(os.environ); import build_backend;"
        "required = build_backend.get_requires_for_build_wheel();"
        "assert before.items() <= os.environ.items(); assert 'torch' not in sys.modules; print(required)"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.splitlines()[-1] == str(expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_wheel_holds_its_library(tmp_path):
    # In place: what `make build` compiled is up to date.
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(tmp_path / "lib")]
    command += ["--build-temp", "build/emulator"]
    command += ["bdist_wheel", "--skip-build", "--bdist-dir", str(tmp_path / "bdist"), "--dist-dir", str(tmp_path)]
    environment = {**os.environ, "HYPERKERN_BUILD_CUDA": "", "HYPERKERN_BUILD_EMULATOR": "1", "PYTHONWARNINGS": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == ["hyperkern/backends/cuda/emulator.so"]
    assert "hyperkern/py.typed" in names


def test_setup_stays_small():
    assert len(read("setup.py").splitlines()) < 80


def test_import_pulls_in_only_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import hyperkern, hyperkern.integrations.align_uniform;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "['hyperkern']"


def test_import_leaves_evaluation_until_it_is_asked_for():
    program = (
        "import sys, torch; before = set(sys.modules); import hyperkern; assert 'evaluate' in dir(hyperkern);"
        "new = set(sys.modules) - before;"
        "print([m for m in new if m.split('.')[0] in ('statistics', 'numpy', 'matplotlib', 'rich', 'safetensors')]);"
        "print([m for m in new if m.startswith(('hyperkern.evaluation', 'hyperkern.bench', 'hyperkern.correctness'))]);"
        "print(hyperkern.evaluation.open_features.__module__, hyperkern.evaluate.__module__);"
        "print(hyperkern.Evaluation is hyperkern.evaluation.Evaluation, not hasattr(hyperkern, 'nonsense'));"
        "from hyperkern import *; print(evaluate is hyperkern.evaluate)"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    modules = "hyperkern.evaluation.sources hyperkern.evaluation.evaluate"
    assert output.splitlines() == ["[]", "[]", modules, "True True", "True"]


def test_command_line_entry_point():
    # The command stands beside the interpreter of the environment that the package is installed in.
    command = Path(sys.executable).parent / "hyperkern"
    result = subprocess.run([command, "info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "reference" in result.stdout
    assert subprocess.run([command], capture_output=True).returncode == 2
