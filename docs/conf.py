"""Sphinx's configuration: ``make docs`` builds the pages from docs/*.md and the docstrings; a warning is an error."""

import sys
from types import ModuleType

from sphinx.application import Sphinx

import hyperkern

project = "hyperkern"
author = copyright = "the hyperkern developers"
release = version = hyperkern.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinxarg.ext"]
html_theme = "furo"
html_title = "hyperkern"

# Links between the pages are checked; a file of the tree that is no page can be downloaded.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

# What stands in single backticks in a docstring is a name, which has to be found.
default_role = "py:obj"
nitpicky = True
# Of Python and PyTorch, whose indices would have to be fetched from the network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|functools|os|pathlib|np)\..*|Tensor|DeviceMesh|DistributedDataParallel"),
    ("py:class", r"hyperkern\.integrations\.pytorch_metric_learning\.base\.Loss"),  # any of the losses of that page
]
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Frameworks of which classes are made here, and which the pages are built without.
autodoc_mock_imports = ["lightning", "pytorch_lightning", "torchmetrics", "transformers"]

# What an evaluator extends, which the environment of the pages has not: autodoc leaves out what extends its own mocks.
for name in ("sentence_transformers", "sentence_transformers.base", "sentence_transformers.base.evaluation"):
    sys.modules[name] = ModuleType(name)
sys.modules["sentence_transformers.base.evaluation"].BaseEvaluator = type("BaseEvaluator", (), {})

# Files that are read where they stand and are pages here, by what the documents call them.
PAGES = {"../README.md": "index.md", "../csrc/README.md": "csrc.md", "../CHANGELOG.md": "changelog.md"}


def links_to_pages(app: Sphinx, docname: str, content: list[str]) -> None:
    """Makes links between files of the tree links between pages."""
    for file, page in PAGES.items():
        content[0] = content[0].replace(f"]({file})", f"]({page})")


def setup(app: Sphinx) -> None:
    """What is particular to this project."""
    app.connect("source-read", links_to_pages)
