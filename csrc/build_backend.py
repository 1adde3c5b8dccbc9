"""How pip builds the package: setuptools, with PyTorch among the requirements only where something is compiled."""

import os

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
