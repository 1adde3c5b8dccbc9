"""The package for the kernels hub: what is in it, that it can be built, and that a build needs PyTorch alone."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.hub import package

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = package.ROOT
# Beside the standard library and PyTorch: Triton, which its builds for Linux require, and what PyTorch itself requires,
# without which a check takes no lock.
THIRD = {"torch", "triton", "filelock"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "hyperkern"
    package.write(folder, "owner/hyperkern")
    return folder


@pytest.fixture(scope="module")
def build(written: Path) -> dict:
    return tomllib.loads((written / "build.toml").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is in it ------------------------------------------------------------------------------------------------


def imported(path: Path, module: str) -> Iterator[tuple[str, bool]]:
    """What a file imports: names of other packages, and files of its own, as paths without an ending; which it is."""

    def below(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                yield child
                yield from below(child)

    parents = module.split("/")[:-1]
    for node in below(ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], False
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) + 1 - node.level] + (node.module.split(".") if node.module else [])
            yield "/".join(base), True
            yield from (("/".join([*base, alias.name]), True) for alias in node.names)


def file_of(folder: Path, name: str) -> str | None:
    """The file of a module, if it is one."""
    found = [f"{name}/__init__.py".lstrip("/"), f"{name}.py"]
    return next((path for path in found if (folder / path).exists()), None)


def test_every_module_is_needed_or_left_out_by_name(written: Path) -> None:
    folder, names = written / package.PACKAGE, package.modules()
    assert [name for name in package.LEFT_OUT if not (ROOT / "hyperkern" / name).exists()] == []
    # The backends, and what a check runs, are imported by name.
    todo = ["__init__.py", "correctness/child.py", *(f"backends/{name}/__init__.py" for name in ("cuda", "triton"))]
    reached: set[str] = set()
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        todo += [f"{parent.as_posix()}/__init__.py" for parent in Path(name).parents if parent.name]
        todo += [file for other, own in imported(folder / name, name) if own and (file := file_of(folder, other))]
    code = {name for name in names if name.endswith(".py")}
    assert code - reached == set(), "not needed: name it in LEFT_OUT"
    assert reached - code == {"__init__.py", "layers.py"}
    data = {name for name in names if not name.endswith(".py")}
    assert data == {
        path.relative_to(ROOT / "hyperkern").as_posix() for path in ROOT.glob("hyperkern/backends/*/configs/*")
    }


def test_imports_are_relative_or_of_pytorch(written: Path) -> None:
    """In the grammar of Python 3.9, too, which is what the hub asks for."""
    folder, modules = written / package.PACKAGE, set(sys.stdlib_module_names)
    foreign: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        for other, own in imported(path, name):
            if own:
                module = other if file_of(folder, other) else other.rpartition("/")[0]
                assert file_of(folder, module) or module == "" or other == "_ops" or module == "_ops", (
                    f"{name}: {other}"
                )
            elif other not in modules:
                foreign.setdefault(other, set()).add(name)
    assert foreign.keys() == THIRD
    assert foreign["filelock"] == {"check/first_use.py"}
    outside = {name for name in foreign["triton"] if not name.startswith("backends/triton/")}
    assert outside == set()


def test_it_is_the_same_each_time_and_small(written: Path, tmp_path: Path) -> None:
    first = contents(written)
    assert sum(map(len, first.values())) < 1.5e6
    package.write(tmp_path / "again", "owner/hyperkern")
    assert contents(tmp_path / "again") == first
    # A repository that has it already: what is no longer part of it goes, what the repository has of its own stays.
    (tmp_path / "again" / ".git").mkdir()
    (tmp_path / "again" / ".git" / "config").write_text("its own")
    (tmp_path / "again" / package.PACKAGE / "old.py").write_text("")
    package.write(tmp_path / "again", "other/name")
    found = contents(tmp_path / "again")
    assert found.keys() == {*first, ".git/config"}
    assert {name for name in first if found[name] != first[name]} == {"build.toml", "tests/test_losses.py"}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torch-ext").mkdir()
    (tmp_path / "torch-ext" / "mine.py").write_text("")
    with pytest.raises(FileExistsError, match="holds something else"):
        package.write(tmp_path, "owner/hyperkern")
    assert contents(tmp_path) == {"torch-ext/mine.py": b""}


def test_the_interface_is_the_packages(written: Path) -> None:
    import hyperkern

    (shown,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((written / package.PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
    ]
    own = {"layers", "nn"}
    training = {"Evaluation", "FeatureQueue", "cached_step", "evaluate", "metrics"}
    modules = {name for name in hyperkern.__all__ if name.endswith("Loss")}
    assert set(shown) - own == set(hyperkern.__all__) - training - modules
    card = (written / "CARD.md").read_text(encoding="utf-8")
    functions = {name for name in shown if name in vars(hyperkern.losses) and name.islower()}
    assert functions <= set(re.findall(r"`(\w+)`", card))


# ---- what the builder is told -------------------------------------------------------------------------------------


def test_the_builder_is_told_of_every_source(written: Path, build: dict) -> None:
    extension = build["kernel"]["hyperkern"]
    listed = {*build["torch"]["src"], *extension["src"]}
    assert sorted(listed) == sorted([*build["torch"]["src"], *extension["src"]])
    assert listed == {name for name in contents(written) if name.startswith("csrc/") or name.endswith(".cpp")}
    everything = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    others = {name for name in everything - listed if not name.startswith("csrc/emulator/")}
    assert {name for name in others if "__pycache__" not in name} == {"csrc/README.md", "csrc/build_backend.py"}
    for name in listed:
        for other in re.findall(r'^#include "(.*)"', (written / name).read_text(encoding="utf-8"), re.MULTILINE):
            path = (written / name).parent / other
            of_builder = other == "registration.h" and name == "torch-ext/torch_binding.cpp"
            assert (
                of_builder or other.startswith("emulator/") or path.resolve().relative_to(written).as_posix() in listed
            )


def test_it_is_compiled_as_setup_does_it(build: dict) -> None:
    setup, extension = (ROOT / "setup.py").read_text(encoding="utf-8"), build["kernel"]["hyperkern"]
    architectures = extension["cuda-capabilities"]
    assert ";".join(architectures) == re.search(r'^ARCHITECTURES = "(.*)"', setup, re.MULTILINE)[1]
    codes = []
    for architecture in architectures:
        number, plus, _ = architecture.replace(".", "").partition("+")
        codes += [f"{number[:-1]}2"] if number.endswith("a") else [f"{number}0", *([f"{number}1"] if plus else [])]
    assert f"-DHYPERKERN_ARCHITECTURES=_{'_'.join(codes)}" in extension["cuda-flags"]
    major, minor = build["torch"]["stable-abi"]["cuda"].split(".")
    assert f"TORCH_TARGET_VERSION={int(major) << 56 | int(minor) << 48:#018x}" in setup
    assert "-DHYPERKERN_NAMESPACE=TORCH_EXTENSION_NAME" in build["torch"]["cxx-flags"]
    assert {path.suffix[1:] for path in (ROOT / "hyperkern/backends/triton").rglob("*") if path.is_file()} - {
        "pyc"
    } == set(build["torch"]["pyext"])


# ---- a build ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to PyTorch and to all that it requires."""
    folder, todo, done = tmp_path_factory.mktemp("libraries"), [Requirement("torch")], set()
    while todo:
        requirement = todo.pop()
        if requirement.name in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        done.add(requirement.name)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        todo += map(Requirement, found.requires or [])
        for part in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / part).exists():
                (folder / part).symlink_to(found.locate_file(part))
    return folder


def built(written: Path, folder: Path, backend: str, number: str) -> str:
    """What the builder makes of the package, as far as Python is concerned; the folder, and the name of the build."""
    name = f"_hyperkern_{backend}_{number}"
    shutil.copytree(written / package.PACKAGE, folder / name)
    extension = ""
    if backend == "cuda":  # its schemas, by a module in Python in the place of the compiled one
        source = (written / "csrc/ops.cpp").read_text(encoding="utf-8")
        source = re.sub(r"#ifdef HYPERKERN_EMULATED.*?#endif", "", source, flags=re.DOTALL)
        calls = re.findall(r'library\.def\(\s*((?:"[^"]*"\s*)+)\)', source)
        schemas = ["".join(re.findall(r'"([^"]*)"', call)) for call in calls]
        code = f"import torch\nlibrary = torch.library.Library({name!r}, 'DEF')\nfor schema in {schemas!r}:\n"
        (folder / name / f"{name}.py").write_text(f"{code}    library.define(schema)\n")
        extension = f"from . import {name}\n"
    (folder / name / "_ops.py").write_text(
        f"import torch\n{extension}ops = torch.ops.{name}\n"
        f"def add_op_namespace_prefix(op_name):\n    return f'{name}::{{op_name}}'\n"
    )
    return f"{folder / name}={name}"


def alone(libraries: Path, folder: Path, *arguments: str) -> dict:
    """What `hub_alone` prints, in a process without anything that is installed here."""
    program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("hub_alone.py")), str(libraries), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    ended = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_builds_beside_each_other_need_pytorch_alone(written: Path, libraries: Path, tmp_path: Path) -> None:
    builds = [built(written, tmp_path, *kind) for kind in (("cpu", "a1b2c3d"), ("cpu", "e4f5a6b"), ("cuda", "a1b2c3d"))]
    found = alone(libraries, tmp_path, *builds, "check")
    assert found["ordinary"] == [], "an operator is registered outside of the build's namespace"
    plain, other, compiled = found["builds"]
    assert [build["name"] for build in found["builds"]] == [build.rpartition("=")[2] for build in builds]
    assert [build["foreign"] for build in found["builds"]] == [[], [], []]
    assert plain["operators"] == other["operators"]
    assert {"prepare", "row_lse", "energy", "loss", "loss_grad"} <= set(plain["operators"])
    # Beside the operators in Python those of the extension, none of which has the name of one.
    assert {"runs_on", "sums", "contract"} <= set(compiled["operators"]) - set(plain["operators"])
    assert set(plain["operators"]) <= set(compiled["operators"])
    assert plain["cuda"].startswith("is not built")
    assert compiled["cuda"] is None
    assert found["check"][:2] == ["passed", ""]
    assert found["check"][2] > 5


def test_it_does_without_triton(written: Path, libraries: Path, tmp_path: Path) -> None:
    without = tmp_path / "libraries"
    without.mkdir()
    for path in libraries.iterdir():
        if not path.name.startswith("triton"):
            (without / path.name).symlink_to(path.resolve())
    found = alone(without, tmp_path, built(written, tmp_path, "cpu", "a1b2c3d"))
    (build,) = found["builds"]
    assert "triton" in " ".join(build["backends"]["triton"]["cpu"]).lower()
    assert build["backends"]["reference"]["cpu"] == []
