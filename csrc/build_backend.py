"""How the package is built: setuptools, with PyTorch among the requirements only where something is compiled.

setup.py takes from here where the toolkit is, and the text for the package index.
"""

import os
import re
import subprocess
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


_COMPILING = ("HYPERKERN_BUILD_CUDA", "HYPERKERN_BUILD_EMULATOR")


def _requires(ask, config_settings):
    """What setuptools asks for, with setup.py run as for a pure wheel: PyTorch is not there yet."""
    asked = {name: os.environ.pop(name) for name in _COMPILING if name in os.environ}
    try:
        requirements = ask(config_settings)
    finally:
        os.environ.update(asked)
    compiles = any(value not in ("", "0") for value in asked.values())
    return [*requirements, "torch>=2.10", "ninja"] if compiles else requirements


def get_requires_for_build_wheel(config_settings=None):
    return _requires(build_meta.get_requires_for_build_wheel, config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _requires(build_meta.get_requires_for_build_editable, config_settings)


def get_requires_for_build_sdist(config_settings=None):
    return _requires(build_meta.get_requires_for_build_sdist, config_settings)


def readme() -> str:
    """README.md for the package index, where a link into the tree leads nowhere and a relative image shows nothing."""
    repository = re.search(r'^Repository = "(.+)"', Path("pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    text = re.sub(r"(!\[[^]]*]\()(?!https?:)", rf"\1{repository}/raw/HEAD/", Path("README.md").read_text("utf-8"))
    return re.sub(r"(\[[^]]*]\()(?!https?:)", rf"\1{repository}/blob/HEAD/", text)


def find_toolkit() -> None:
    """Tells PyTorch where the toolkit is: where nvcc says, which may be started through a script elsewhere."""
    if "CUDA_HOME" not in os.environ:
        dry_run = ["nvcc", "--dryrun", "-x", "cu", os.devnull]
        answer = subprocess.run(dry_run, capture_output=True, text=True, check=True)
        os.environ["CUDA_HOME"] = os.path.realpath(re.search(r"TOP=(.*)", answer.stderr)[1])
