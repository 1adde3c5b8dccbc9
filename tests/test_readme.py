"""The README says what runs, and the pages of the reference have every public name."""

import pkgutil
import re
from pathlib import Path

import pytest

import hyperkern
from hyperkern import backends

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_examples_run(program: str, capsys: pytest.CaptureFixture) -> None:
    exec(compile(program, "README.md", "exec"), {})
    value, limit = map(float, capsys.readouterr().out.split())
    assert value == pytest.approx(limit, abs=1e-3)  # Gaussian features are uniform on the sphere


def test_every_loss_and_backend_is_listed() -> None:
    others = ("metrics", "backend_info", "set_workspace_bytes", "workspace_bytes")
    losses = [name for name in hyperkern.__all__ if name[0].islower() and name not in others]
    modules = [name for name in hyperkern.__all__ if name.endswith("Loss")]
    assert [name for name in losses if not re.search(rf"`{name}[(`]", README)] == []
    assert [name for name in [*modules, *backends.PRIORITY] if f"`{name}`" not in README] == []


def test_linked_files_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 4
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_every_public_name_has_a_place_in_the_reference() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.rst"))
    entries = re.findall(r"^\.\. (?:autofunction|autoclass|automodule):: (\S+)$", pages, re.MULTILINE)
    assert len(entries) == len(set(entries))
    modules = {module.name for module in pkgutil.iter_modules([ROOT / "hyperkern" / "integrations"])}
    modules = {f"hyperkern.integrations.{name}" for name in modules if not name.startswith("_")}
    public = {*hyperkern.__all__, *modules} - {"metrics"}
    assert public | {"uniformity_limit"} <= set(entries)
