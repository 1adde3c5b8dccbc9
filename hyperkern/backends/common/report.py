"""What the reports of compiled kernels share: what cuobjdump says of an object, and how a table is printed."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# An architecture and the name of a kernel, as the compiler mangles it.
Key = tuple[str, str]

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_ENCODING = " " * 20


class Usage(NamedTuple):
    """What a thread holds. The stack is where spilled registers go."""

    registers: int
    stack_bytes: int


class Instruction(NamedTuple):
    """One instruction, and which come after it: the next one, the target of a branch, or both."""

    address: int
    opcode: str
    operands: str
    falls_through: bool
    target: int | None


def cuobjdump() -> str | None:
    """Where the tool is: Triton's wheel brings one, else the toolkit's on the path; None if there is neither."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.exists():
            return str(tool)
    return shutil.which("cuobjdump")


def _lines(option: str, path: str | Path) -> Iterator[str]:
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump is missing: it comes with Triton and with the CUDA toolkit")
    # What it warns of is only of interest where it fails.
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen([tool, option, str(path)], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            yield from process.stdout
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"cuobjdump {option} {path} failed: {errors.read()[-2000:]}")


def usage(path: str | Path) -> dict[Key, Usage]:
    """Registers and stack of every kernel in an object, a library or a cubin."""
    found, architecture, name = {}, "", ""
    for line in _lines("-res-usage", path):
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}
            found[architecture, name] = Usage(numbers["REG"], numbers["STACK"] + numbers["LOCAL"])
    return found


def instructions(path: str | Path) -> Iterator[tuple[Key, list[Instruction]]]:
    """The instructions of every kernel, in the order of their addresses."""
    architecture, name = "", ""
    code: list[Instruction] = []
    for line in _lines("-sass", path):
        if line.startswith(_ENCODING):  # every second line holds nothing else
            continue
        if match := _INSTRUCTION.match(line):
            code.append(_instruction(*match.groups()))
        elif match := re.match(r"arch = (\S+)|\s*Function : (\S+)", line):
            if code:
                yield (architecture, name), code
                code = []
            architecture, name = match[1] or architecture, match[2] or name
    if code:
        yield (architecture, name), code


def _instruction(address: str, predicate: str | None, opcode: str, operands: str) -> Instruction:
    ends = opcode.startswith(("EXIT", "RET")) or (opcode.startswith("BRA") and operands.startswith("0x"))
    target = re.search(r"0x([0-9a-f]+)\s*$", operands) if opcode.startswith(("BRA", "CALL")) else None
    falls_through = predicate is not None or not ends
    return Instruction(
        int(address, 16), opcode, operands.strip(), falls_through, int(target[1], 16) if target else None
    )


def in_loops_with(code: list[Instruction], opcodes: tuple[str, ...]) -> set[int]:
    """The places of the instructions that share a loop with one of ``opcodes`` (how their names start)."""
    after = _successors(code)
    before: list[list[int]] = [[] for _ in code]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)
    found: set[int] = set()
    for i, instruction in enumerate(code):
        if instruction.opcode.startswith(opcodes) and i not in found:
            found |= _reached(i, after) & _reached(i, before)
    return found


def between(code: list[Instruction], starts: set[int], ends: set[int]) -> set[int]:
    """The places that can be reached from one of ``starts`` without passing one of ``ends``."""
    after = [[] if i in ends else following for i, following in enumerate(_successors(code))]
    return set().union(*(_reached(start, after) for start in starts))


def _successors(code: list[Instruction]) -> list[list[int]]:
    """For each instruction the places of those that come after it."""
    place = {instruction.address: i for i, instruction in enumerate(code)}
    after: list[list[int]] = []
    for i, instruction in enumerate(code):
        following = [i + 1] if instruction.falls_through and i + 1 < len(code) else []
        if instruction.target in place:
            following.append(place[instruction.target])
        after.append(following)
    return after


def _reached(start: int, edges: list[list[int]]) -> set[int]:
    """Where one or more steps lead: to `start` itself only around a loop."""
    reached: set[int] = set()
    todo = list(edges[start])
    while todo:
        i = todo.pop()
        if i not in reached:
            reached.add(i)
            todo += edges[i]
    return reached


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints columns of equal width."""
    table = [tuple(header), *rows]
    widths = [max(len(str(line[column])) for line in table) for column in range(len(header))]
    for line in table:
        print("  ".join(str(value).ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())
