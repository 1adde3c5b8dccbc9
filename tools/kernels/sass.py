"""What a kernel's machine code does for each pair: its control flow, its main loop, and the path around it.

The *main loop* of a pairwise kernel makes one tile of pairs each round: it is the innermost loop with both matrix
instructions and exponentials. A kernel that makes one tile and ends has none: there it is the whole kernel. Where a
tile may hold pairs that are left out the code is there twice, as two loops or as two branches in one; counted is the
shorter one, which does not mask: nearly all tiles take it.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .cubin import Instruction

WARP, WARPGROUP = 32, 128
# Those of sm_100 read what they multiply from memory of their own: their names tell no shape.
_MATRIX = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")


class Count(NamedTuple):
    """What a thread executes. ``products`` are the multiplications of its share of the matrix instructions,
    ``polynomials`` the exponentials without the special function unit, which end with a shift into the exponent.
    """

    products: float = 0
    exponentials: float = 0
    polynomials: float = 0
    stores: float = 0
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
    """What a kernel's source says of a tile.

    Attributes:
        products: multiplications for one pair, those of padding included.
        pairs: of one tile, for each thread that weighs pairs; 0, if only the matrix instructions tell: then a row has
            to be multiplied at once.
        rounds: of an inner loop over the elements of a row; 0, if only the matrix instructions tell.
    """

    products: int
    pairs: float = 0
    rounds: int = 0


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
    polynomial = opcode == "LEA" and instruction.operands.endswith(", 0x17")
    special, stores = opcode.startswith("MUFU"), opcode.startswith("STG")
    return Count(instructions=1, polynomials=polynomial, special=special, stores=stores)


class Flow:
    """The control flow of a kernel: basic blocks, which follow which, and the loops."""

    def __init__(self, code: Sequence[Instruction]) -> None:
        self.code = code
        place = {instruction.address: i for i, instruction in enumerate(code)}
        targets = {place[instruction.target] for instruction in code if instruction.target in place}
        ended = {i + 1 for i, each in enumerate(code[:-1]) if each.target is not None or not each.falls_through}
        bounds = [*sorted({0} | targets | ended), len(code)]
        #: Of each block the places of its instructions.
        self.blocks = [range(a, b) for a, b in itertools.pairwise(bounds)]
        block_at = {block.start: i for i, block in enumerate(self.blocks)}
        # What only a table leads to, which is not part of the code: behind an end, and no branch goes on there.
        named = {each.target for each in code if each.target is not None and each.target > each.address}
        unnamed = [block_at[i] for i in sorted(ended) if not code[i - 1].falls_through and code[i].address not in named]
        #: Of each block those that come after it.
        self.after: list[list[int]] = []
        for block in self.blocks:
            last = code[block[-1]]
            following = {block_at[block.stop]} if last.falls_through and block.stop < len(code) else set()
            if last.target in place:
                following.add(block_at[place[last.target]])
            self.after.append(unnamed if last.opcode.startswith("BRX") else sorted(following))
        #: Reachable blocks, each before those that follow it but for the ends of loops.
        self.order = self._order()
        self._before: dict[int, list[int]] = {block: [] for block in self.order}
        for i in self.order:
            for j in self.after[i]:
                self._before[j].append(i)
        #: The smallest ones first.
        self.loops = self._find_loops(self._dominators())

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

    def _dominators(self) -> dict[int, set[int]]:
        """Of each block those that every path to it passes."""
        found = {block: set(self.order) for block in self.order}
        found[0] = {0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                new = set.intersection(*(found[j] for j in self._before[block])) | {block}
                if new != found[block]:
                    found[block], changed = new, True
        return found

    def _find_loops(self, dominators: dict[int, set[int]]) -> list[Loop]:
        bodies: dict[int, set[int]] = {}
        for block in self.order:
            for header in dominators[block] & set(self.after[block]):
                body, todo = bodies.setdefault(header, {header}), [block]
                while todo:
                    i = todo.pop()
                    if i not in body:
                        body.add(i)
                        todo += self._before[i]
        return sorted((Loop(h, frozenset(body)) for h, body in bodies.items()), key=lambda loop: len(loop.blocks))

    def count(self, block: int) -> Count:
        """What a block executes."""
        total = Count()
        for i in self.blocks[block]:
            total = total.plus(_count(self.code[i]))
        return total

    def places(self, region: Loop | None) -> set[int]:
        """The places of the instructions of a loop, or of the kernel."""
        blocks = self.order if region is None else region.blocks
        return {i for block in blocks for i in self.blocks[block]}

    def inside(self, region: Loop | None) -> list[Loop]:
        """The outermost loops inside of a loop, or of the kernel."""
        inner = [loop for loop in self.loops if region is None or (loop is not region and loop.blocks < region.blocks)]
        return [loop for loop in inner if not any(loop.blocks < other.blocks for other in inner)]

    def path(self, region: Loop | None, repeated: Callable[[Count, Count], float]) -> Count:
        """The path around a loop, or through the kernel, with the most products, of these with the most exponentials,
        by the special function unit or not, of these with the most stores, and of these the shortest one.

        ``repeated(round, rest)`` tells how often inner loops with products go round; all others do once.
        """
        blocks = self.order if region is None else [block for block in self.order if block in region.blocks]
        inner = self.inside(region)
        loop_of = {block: loop for loop in inner for block in loop.blocks}
        counts = {block: self.count(block) for block in blocks if block not in loop_of}
        rounds = {loop.header: self.path(loop, repeated) for loop in inner}
        chunks = [count for count in rounds.values() if count.matrix]
        if chunks:
            times = repeated(_sum(chunks), _sum(counts.values()))
            rounds = {block: count.times(times if count.matrix else 1) for block, count in rounds.items()}
        counts |= rounds
        best = {blocks[0]: counts[blocks[0]]}
        ends: list[Count] = []
        for block in blocks:
            if block not in best:  # inside of an inner loop, which counts as its first block
                continue
            inside = loop_of[block].blocks if block in loop_of else frozenset({block})
            following = {j for i in inside for j in self.after[i]} - (inside if block in loop_of else set())
            if not following or (region is not None and region.header in following):
                ends.append(best[block])
            for j in following & counts.keys() - {blocks[0]}:
                candidate = best[block].plus(counts[j])
                if j not in best or _rank(candidate) > _rank(best[j]):
                    best[j] = candidate
        return max(ends, key=_rank)


def _sum(counts: Iterable[Count]) -> Count:
    return functools.reduce(Count.plus, counts, Count())


def _rank(count: Count) -> tuple[float, ...]:
    # Of two ways to weigh a tile the one with more polynomials belongs to the shorter rest, which has time for them.
    weighed = count.exponentials + count.polynomials
    return count.products, count.matrix, weighed, count.polynomials, count.stores, -count.instructions


def main_regions(flow: Flow) -> list[Loop | None]:
    """The loops that make tiles, or None for the whole kernel.

    Where warps that multiply leave it to others to weigh, those of the others.
    """
    totals = {loop: _sum(map(flow.count, loop.blocks)) for loop in flow.loops}
    weigh = [loop for loop, total in totals.items() if total.exponentials]
    found = [loop for loop in weigh if totals[loop].matrix] or weigh
    innermost = [loop for loop in found if not any(other.blocks < loop.blocks for other in found)]
    return [*innermost] or [None]


def main_loop(flow: Flow, shape: Shape) -> MainLoop:
    """The main loop without its mask, see above."""
    rounds = (_round(flow, region, shape) for region in main_regions(flow))
    return min(rounds, key=lambda loop: loop.per_pair)


def _round(flow: Flow, region: Loop | None, shape: Shape) -> MainLoop:
    chunked = False

    def repeated(once: Count, rest: Count) -> float:
        nonlocal chunked
        chunked = True
        if shape.rounds:  # of which the compiler may have taken some out of the loop
            return shape.rounds - rest.matrix / once.matrix
        return (shape.products * shape.pairs - rest.products) / once.products

    count = flow.path(region, repeated)
    # Where warps share the rows of a product, each with a part of the columns of the next one, all of them weigh the
    # same pairs: more multiplications than the tile has. Fewer are those of a warp that has a part of the tile.
    made = count.products / shape.products
    known = chunked or not made or 0 < shape.pairs <= made
    return MainLoop(count, shape.pairs if known else made)
