"""The units of work of the reproduction: what is computed once, kept in a file, and not computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

import hyperkern

from .sources import sources


class Job(NamedTuple):
    """A call of a function, in a process of its own or not.

    Attributes:
        name: of its file, unique within its part.
        function: of a module, with keyword arguments; what it returns can be written as JSON.
        arguments: of it, which can be written as JSON.
        seconds: about how long it takes on one core, for the order and the bar.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any]
    seconds: float = 1.0

    def fingerprint(self) -> str:
        """Of what the result depends on: function, arguments, the code of the examples, the versions of two libraries.

        Not of the code of `hyperkern`: after a change there, start with another folder.
        """
        digest = hashlib.sha256()
        for path in sources(self.function):
            digest.update(path.read_bytes())
        versions = torch.__version__, hyperkern.__version__
        known = self.function.__module__, self.function.__qualname__, sorted(self.arguments.items()), versions
        digest.update(repr(known).encode())
        return digest.hexdigest()

    def run(self) -> dict[str, Any]:
        """Call the function."""
        return self.function(**self.arguments)
