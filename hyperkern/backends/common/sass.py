"""What a kernel's machine code does for each pair: its control flow, its main loop, and the path around it.

The *main loop* of a pairwise kernel makes one tile of pairs each round: it is the innermost loop with both matrix
instructions and exponentials. A kernel that makes one tile and ends has none: there it is the whole kernel. Where a
tile may hold pairs that are left out the code is there twice, as two loops or as two branches in one; counted is the
shorter one, which does not mask: nearly all tiles take it.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .report import Instruction

WARP, WARPGROUP = 32, 128
# Those of sm_100 read what they multiply from memory of their own: their names tell no shape.
_MATRIX = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")


class Count(NamedTuple):
    """What a thread executes. ``products`` are the multiplications of its share of the matrix instructions."""

    products: float = 0
    exponentials: float = 0
    instructions: float = 0
    matrix: float = 0
    special: float = 0

    def plus(self, other: "Count") -> "Count":
        """Both together."""
        return Count(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Count":
        """The same, so many times."""
        return Count(*(a * factor for a in self))

    @property
    def other(self) -> float:
        """Neither matrix instructions nor those of the special function unit."""
        return self.instructions - self.matrix - self.exponentials - self.special


class Loop(NamedTuple):
    """A natural loop: its first block, and all blocks, those of inner loops included."""

    header: int
    blocks: frozenset[int]


class Shape(NamedTuple):
    """What a kernel's source says of its main loop.

    Attributes:
        products: multiplications for one pair, those of padding included.
        pairs: of one tile, for each thread that weighs pairs. Asked for only where a row is multiplied in rounds of an
            inner loop, or where the matrix instructions do not tell their shape.
        rounds: of an inner loop, asked for only where the matrix instructions do not tell their shape.
    """

    products: int
    pairs: float
    rounds: int


class MainLoop(NamedTuple):
    """A round of the main loop for each thread, and how many pairs it makes."""

    round: Count
    pairs: float

    @property
    def per_pair(self) -> float:
        """Instructions for each pair."""
        return self.round.instructions / self.pairs


def is_matrix(instruction: Instruction) -> bool:
    """Whether the tensor cores execute it."""
    return instruction.opcode.startswith(_MATRIX)


def _count(instruction: Instruction) -> Count:
    opcode = instruction.opcode
    if is_matrix(instruction):
        if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
            products = int(match[1]) * int(match[2]) * int(match[3]) / WARPGROUP
        elif match := re.match(r"HMMA\.(16)(8)(\d+)", opcode):
            products = int(match[1]) * int(match[2]) * int(match[3]) / WARP
        else:
            products = 0
        return Count(products, instructions=1, matrix=1)
    if opcode.startswith("MUFU.EX2"):
        return Count(exponentials=1, instructions=1)
    return Count(instructions=1, special=opcode.startswith("MUFU"))


class Flow:
    """The control flow of a kernel: basic blocks, which follow which, and the loops."""

    def __init__(self, code: Sequence[Instruction]) -> None:
        place = {instruction.address: i for i, instruction in enumerate(code)}
        targets = {place[instruction.target] for instruction in code if instruction.target in place}
        starts = {0} | targets
        for i, instruction in enumerate(code[:-1]):
            if instruction.target is not None or not instruction.falls_through:
                starts.add(i + 1)
        bounds = [*sorted(starts), len(code)]
        #: Of each block the places of its instructions.
        self.blocks = [range(a, b) for a, b in itertools.pairwise(bounds)]
        block_at = {block.start: i for i, block in enumerate(self.blocks)}
        #: Of each block those that come after it.
        self.after: list[list[int]] = []
        for block in self.blocks:
            last = code[block[-1]]
            following = [block_at[block.stop]] if last.falls_through and block.stop < len(code) else []
            if last.target in place and block_at[place[last.target]] not in following:
                following.append(block_at[place[last.target]])
            self.after.append(following)
        #: Reachable blocks, each before those that follow it but for the ends of loops.
        self.order = self._order()
        self._dominators = self._find_dominators()
        self.loops = self._find_loops()
        self.code = code

    def _order(self) -> list[int]:
        seen, order = {0}, []
        stack = [(0, iter(self.after[0]))]
        while stack:
            block, following = stack[-1]
            for j in following:
                if j not in seen:
                    seen.add(j)
                    stack.append((j, iter(self.after[j])))
                    break
            else:
                order.append(block)
                stack.pop()
        return order[::-1]

    def _find_dominators(self) -> dict[int, set[int]]:
        before: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for j in self.after[block]:
                before[j].append(block)
        everything = set(self.order)
        found = {block: everything for block in self.order}
        found[0] = {0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                new = set.intersection(*(found[j] for j in before[block])) | {block}
                if new != found[block]:
                    found[block], changed = new, True
        return found

    def _find_loops(self) -> list[Loop]:
        before: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for j in self.after[block]:
                before[j].append(block)
        bodies: dict[int, set[int]] = {}
        for block in self.order:
            for header in self.after[block]:
                if header in self._dominators[block]:
                    body, todo = bodies.setdefault(header, {header}), [block]
                    while todo:
                        i = todo.pop()
                        if i not in body:
                            body.add(i)
                            todo += before[i]
        return sorted((Loop(h, frozenset(body)) for h, body in bodies.items()), key=lambda loop: len(loop.blocks))

    def count(self, block: int) -> Count:
        """What a block executes."""
        total = Count()
        for i in self.blocks[block]:
            total = total.plus(_count(self.code[i]))
        return total

    def inside(self, region: Loop | None) -> list[Loop]:
        """The outermost loops inside of a loop, or of the kernel."""
        inner = [loop for loop in self.loops if region is None or (loop is not region and loop.blocks < region.blocks)]
        return [loop for loop in inner if not any(loop.blocks < other.blocks for other in inner)]

    def path(self, region: Loop | None, repeated: Callable[[Loop, Count, Count], float]) -> Count:
        """The path around a loop, or through the kernel, with the most products, of these with the most exponentials,
        and of these the shortest one.

        ``repeated(loop, round, rest)`` tells how often an inner loop goes round.
        """
        blocks = self.order if region is None else [block for block in self.order if block in region.blocks]
        inner = self.inside(region)
        of_block = {block: loop for loop in inner for block in loop.blocks}
        counts = {block: self.count(block) for block in blocks if block not in of_block}
        outside = Count()
        for count in counts.values():
            outside = outside.plus(count)
        for loop in inner:
            once = self.path(loop, repeated)
            counts[loop.header] = once.times(repeated(loop, once, outside))
        best: dict[int, Count] = {}
        start = blocks[0]
        best[start] = counts[start]
        ends: list[Count] = []
        for block in blocks:
            inside = of_block.get(block)
            if block not in best or (inside is not None and inside.header != block):
                continue
            nodes = [block] if inside is None else sorted(inside.blocks)
            following = [j for i in nodes for j in self.after[i]]
            if not following or (region is not None and region.header in following):
                ends.append(best[block])
            for j in following:
                if j == start or (inside is not None and j in inside.blocks) or j not in counts:
                    continue
                candidate = best[block].plus(counts[j])
                if j not in best or _rank(candidate) > _rank(best[j]):
                    best[j] = candidate
        return max(ends, key=_rank)


def _rank(count: Count) -> tuple[float, float, float, float]:
    return count.products, count.matrix, count.exponentials, -count.instructions


def main_loop(code: Sequence[Instruction], shape: Shape) -> MainLoop:
    """The main loop without its mask, see above."""
    flow = Flow(code)
    return min((_round(flow, region, shape) for region in main_regions(flow)), key=lambda loop: loop.per_pair)


def main_regions(flow: Flow) -> list[Loop | None]:
    """The loops that make tiles, or None for the whole kernel."""
    totals = {loop: functools.reduce(Count.plus, map(flow.count, loop.blocks)) for loop in flow.loops}
    both = [loop for loop, total in totals.items() if total.matrix and total.exponentials]
    innermost = [loop for loop in both if not any(other.blocks < loop.blocks for other in both)]
    return [*innermost] or [None]


def _round(flow: Flow, region: Loop | None, shape: Shape) -> MainLoop:
    work = shape.products * shape.pairs

    def repeated(loop: Loop, once: Count, rest: Count) -> float:
        if not once.matrix:
            return 1
        return (work - rest.products) / once.products if once.products else shape.rounds

    chunked = any(any(flow.count(block).matrix for block in loop.blocks) for loop in flow.inside(region))
    count = flow.path(region, repeated)
    return MainLoop(count, shape.pairs if chunked or not count.products else count.products / shape.products)
