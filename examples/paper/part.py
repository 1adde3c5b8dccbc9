"""What a part of the reproduction consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from .claim import Claim
from .job import Job

Summary = Mapping[str, Any]


class Part(NamedTuple):
    """A part: its jobs, and what is made of their results. All but `jobs` and `summarize` need the JSON alone.

    Attributes:
        name: of the part.
        jobs: all of them; ``quick`` asks for the least that still runs every line, for the tests.
        summarize: what the results file has of it, from the result of each job by the job's name.
        claims: the paper's statements that it tests.
        blocks: tables and figures' captions of the page in Markdown, by their names there.
        figures: pictures by the stem of their file.
        is_smoke_test: whether it is too small for its verdicts to say much.
    """

    name: str
    jobs: Callable[[bool], Sequence[Job]]
    summarize: Callable[[Mapping[str, Any]], dict[str, Any]]
    claims: Callable[[Summary], Sequence[Claim]]
    blocks: Callable[[Summary], Mapping[str, str]]
    figures: Callable[[Summary], Mapping[str, Figure]]
    is_smoke_test: bool = False
