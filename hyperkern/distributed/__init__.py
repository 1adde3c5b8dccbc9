"""A batch spread over several processes: who holds which rows, what travels, what is agreed before anything does.

Collectives and offsets, no mathematics. `Agreement` makes every rank raise where one would; `Ranks` are the processes
that share a batch; `Remote` is what the other ones hold.
"""

from .agreement import Agreement
from .exchange import Block, Remote, gather_rows
from .graphs import outside_of_graphs
from .group import Group, GroupLike, as_group
from .ranks import Ranks, all_gather

__all__ = [
    "Agreement",
    "Block",
    "Group",
    "GroupLike",
    "Ranks",
    "Remote",
    "all_gather",
    "as_group",
    "gather_rows",
    "outside_of_graphs",
]
