"""The registers of asynchronous products: between the issue of a wgmma and the wait for it they are the product's.

A product adds to its accumulators and may read its left operand from registers. Until the wait that covers it no other
instruction may touch either, but for the next product on the same accumulators. Waits count *groups*: a group ends with
the product marked ``gsb0``, groups end in their order, and ``WARPGROUP.DEPBAR.LE gsb0, N`` returns once at most N of
them are unfinished. Followed are all paths, with all states in which they reach an instruction.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .cubin import Instruction
from .sass import Flow

_REGISTER = re.compile(r"(?<![A-Z])R(\d+)((?:\.\w+)*)")
_PREDICATE = re.compile(r"!?U?P[\dT]")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_SHAPE = re.compile(r"HGMMA\.(?:SP\.)?64x(\d+)x\d+\.(F32|F16|S32)")
_LEFT_REGISTERS = 4  # of a lane, for 64 rows and 32 bytes of each
# No kernel keeps more groups unfinished; of more the two oldest are taken for one.
_MOST_GROUPS = 8


class Group(NamedTuple):
    """Unfinished products: the sets of registers they add to, and those they read, each as the bits of a number."""

    sums: frozenset[int] = frozenset()
    reads: int = 0

    def plus(self, other: "Group") -> "Group":
        """Both as one."""
        return Group(self.sums | other.sums, self.reads | other.reads)


class State(NamedTuple):
    """The groups that are unfinished, the oldest first, and products that belong to the next one."""

    groups: tuple[Group, ...] = ()
    open: Group = Group()

    @property
    def idle(self) -> bool:
        """Whether no product is unfinished."""
        return not self.groups and not self.open.sums


class Found(NamedTuple):
    """The places of instructions that touch what belongs to a product, and of those that run while there is none.

    Both on some path at least.
    """

    hazards: set[int]
    idle: set[int]


def _bits(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


def product(instruction: Instruction) -> tuple[int, int]:
    """The registers that a wgmma adds to, and those it reads its left operand from."""
    shape = _SHAPE.match(instruction.opcode)
    if shape is None:
        raise ValueError(f"an unknown product: {instruction.opcode}")
    first, second = instruction.operands.split(", ")[:2]
    sums = _bits(int(first[1:].split(".")[0]), int(shape[1]) // (4 if shape[2] == "F16" else 2))
    left = re.match(r"R(\d+)", second)
    return sums, _bits(int(left[1]), _LEFT_REGISTERS) if left else 0


@functools.lru_cache(maxsize=1 << 16)
def touched(opcode: str, operands: str) -> int:
    """The registers that an instruction reads or writes, as the bits of a number: rather one too many than too few."""
    kinds = opcode.split(".")
    found = 0
    for match in _REGISTER.finditer(" ".join(_BRACKETS.findall(operands))):
        found |= _bits(int(match[1]), 2 if "64" in match[2] else 1)
    parts = [part for part in _BRACKETS.sub("", operands).split(", ") if not _PREDICATE.match(part)]
    for i, part in enumerate(parts):
        # A product of two single registers, with a sum and a result of two.
        count = (2 if i in (0, len(parts) - 1) else 1) if "WIDE" in kinds else _width(kinds)
        for match in _REGISTER.finditer(part):
            found |= _bits(int(match[1]), max(count, 2 if ".64" in match[2] else 1))
    return found


def _width(kinds: Sequence[str]) -> int:
    name = kinds[0]
    if name == "HMMA":
        return 4
    if name == "SHF":  # two halves, each with its own name
        return 1
    if name in ("LDSM", "STSM", "MOVM"):
        return int(kinds[-1]) if kinds[-1] in ("2", "4") else 1
    if name == "CS2R":
        return 1 if "32" in kinds else 2
    if name in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"):
        return 2
    return (
        4 if "128" in kinds else 2 if any(kind.endswith("64") and kind[:-2] in ("", "F", "S") for kind in kinds) else 1
    )


def _after(state: State, instruction: Instruction) -> tuple[State, bool]:
    """The state behind an instruction, and whether it touches what belongs to a product."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode.startswith("WARPGROUP.DEPBAR"):
        # Under a condition it may not wait.
        wait = re.search(r"0x([0-9a-f]+)", operands)
        if instruction.predicated or wait is None:
            return state, False
        pending = int(wait[1], 16)
        return State(state.groups[len(state.groups) - pending :] if pending else (), state.open), False
    unfinished = (*state.groups, state.open)
    if not opcode.startswith("HGMMA"):
        if state.idle:
            return state, False
        mine = touched(opcode, operands)
        return state, any(mine & group.reads or any(mine & sums for sums in group.sums) for group in unfinished)
    sums, reads = product(instruction)
    wrong = any(
        sums & group.reads or any((sums & other and sums != other) or reads & other for other in group.sums)
        for group in unfinished
    )
    opened = state.open.plus(Group(frozenset({sums}), reads))
    if "gsb0" not in operands:
        return State(state.groups, opened), wrong
    groups = (*state.groups, opened)
    if len(groups) > _MOST_GROUPS:
        groups = (groups[0].plus(groups[1]), *groups[2:])
    return State(groups), wrong


def walk(flow: Flow) -> Found:
    """Follows all paths of a kernel."""
    found = Found(set(), set())
    seen: dict[int, set[State]] = {block: set() for block in flow.order}
    todo = [(0, State())]
    while todo:
        block, state = todo.pop()
        if state in seen[block]:
            continue
        seen[block].add(state)
        for i in flow.blocks[block]:
            if state.idle:
                found.idle.add(i)
            state, wrong = _after(state, flow.code[i])
            if wrong:
                found.hazards.add(i)
        todo += [(j, state) for j in flow.after[block]]
    return found


def serialised(code: Iterable[Instruction]) -> int:
    """How many products of a sum are waited for one by one.

    The compiler does that where it cannot keep apart the registers of products and those of other instructions: behind
    each product it waits for all, and the next one adds to the same accumulators. Nobody has looked at these between.
    """
    count, sums, waited = 0, 0, False
    for instruction in code:
        if instruction.opcode.startswith("HGMMA"):
            mine, _ = product(instruction)
            count += waited and mine == sums
            sums, waited = mine, False
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            waited = waited or "0x0" in instruction.operands
        elif instruction.target is not None or touched(instruction.opcode, instruction.operands) & sums:
            sums = 0
    return count
