"""The replacements replace: none of them imports what it stands for, or anything else beyond torch."""

import pkgutil
import subprocess
import sys

from hyperkern import integrations

MODULES = [f"hyperkern.integrations.{module.name}" for module in pkgutil.iter_modules(integrations.__path__)]


def test_importing_them_needs_torch_alone() -> None:
    assert len(MODULES) > 5
    program = (
        f"import sys, torch; before = set(sys.modules); import {', '.join(MODULES)};"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "['hyperkern']"
