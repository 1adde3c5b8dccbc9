"""The replacements replace: none of them imports what it stands for, or anything else beyond torch."""

import pkgutil
import subprocess
import sys

import pytest

from hyperkern import integrations

# What subclasses a class of a framework imports that, and says so where it is not installed.
OF_FRAMEWORKS = {
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "transformers": "transformers",
}
NAMES = {module.name for module in pkgutil.iter_modules(integrations.__path__)}
MODULES = [f"hyperkern.integrations.{name}" for name in sorted(NAMES - OF_FRAMEWORKS.keys())]


def test_importing_them_needs_torch_alone() -> None:
    assert len(MODULES) > 5
    program = (
        f"import sys, torch; before = set(sys.modules); import {', '.join(MODULES)};"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "['hyperkern']"


@pytest.mark.parametrize("name", OF_FRAMEWORKS)
def test_a_framework_that_is_missing_is_named(name: str) -> None:
    assert name in NAMES
    program = (
        "import sys; from importlib.machinery import PathFinder\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        hidden = name in ('torchmetrics', 'lightning', 'pytorch_lightning', 'transformers')\n"
        "        return None if hidden else PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Without()\n"
        f"import hyperkern.integrations.{name}"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"install with: pip install {OF_FRAMEWORKS[name]}" in found.stderr.splitlines()[-1]
