"""Build entry point; the metadata stands in pyproject.toml."""

import os

from setuptools import setup

if os.environ.get("HYPERKERN_BUILD_CUDA", "0") not in ("", "0"):
    raise SystemExit(
        "HYPERKERN_BUILD_CUDA is reserved for the CUDA extension, which this version does not contain yet; "
        "unset it to install the pure Python wheel"
    )

setup()
