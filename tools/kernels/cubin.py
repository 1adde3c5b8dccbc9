"""What is in an object with code for GPUs: the resources of its kernels, and their instructions."""

import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# An architecture and the name of a kernel, as the compiler mangles it.
Key = tuple[str, str]

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_ENCODING = " " * 20
_BYTES = 16  # of an instruction


class Usage(NamedTuple):
    """What a thread holds. The stack is where spilled registers go."""

    registers: int
    stack_bytes: int


class Instruction(NamedTuple):
    """One instruction, and which come after it: the next one, the target of a branch, or both.

    A predicated one is executed under a condition.
    """

    address: int
    opcode: str
    operands: str
    predicated: bool
    falls_through: bool
    target: int | None


def find_tool(name: str) -> str | None:
    """Where cuobjdump or nvdisasm is: Triton's wheel brings both, else the toolkit's on the path; None if nowhere."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        if tool.exists():
            return str(tool)
    return shutil.which(name)


def _lines(name: str, *arguments: str | Path) -> Iterator[str]:
    tool = find_tool(name)
    if tool is None:
        raise FileNotFoundError(f"{name} is missing: it comes with Triton and with the CUDA toolkit")
    # What it warns of is only of interest where it fails.
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen([tool, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            yield from process.stdout
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{name} failed: {errors.read()[-2000:]}")


def usage(path: str | Path) -> dict[Key, Usage]:
    """Registers and stack of every kernel in an object, a library or a cubin."""
    found, architecture, name = {}, "", ""
    for line in _lines("cuobjdump", "-res-usage", path):
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
    for line in _lines("cuobjdump", "-sass", path):
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


def disassembled(cubins: Sequence[bytes], architecture: str) -> list[list[Instruction]]:
    """The instructions of the kernel in each of some cubins, which hold one kernel for ``sm_90`` or the like.

    All at once: the disassembler starts ten times as long as it takes for one of them.
    """
    texts = [_text(cubin) for cubin in cubins]
    name = architecture.upper().replace("_", "") + ("a" if architecture in ("sm_90", "sm_100") else "")
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(texts))
        file.flush()
        code = iter(parsed(_lines("nvdisasm", "-ndf", "-b", name, file.name)))
    return [[next(code) for _ in range(len(text) // _BYTES)] for text in texts]


def parsed(lines: Iterable[str]) -> list[Instruction]:
    """The instructions of a listing of one kernel."""
    return [_instruction(*match.groups()) for match in map(_INSTRUCTION.match, lines) if match]


def _text(cubin: bytes) -> bytes:
    """The code of the only kernel in an ELF file."""
    table, size, count, names = *struct.unpack_from("<Q", cubin, 0x28), *struct.unpack_from("<HHH", cubin, 0x3A)
    # Of each section: name, type, flags, address, offset, bytes.
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    found = [s for s in sections if cubin.startswith(b".text.", sections[names][4] + s[0])]
    if len(found) != 1:
        raise ValueError(f"a cubin of one kernel, not of {len(found)}")
    return cubin[found[0][4] : found[0][4] + found[0][5]]


def _instruction(address: str, predicate: str | None, opcode: str, operands: str) -> Instruction:
    ends = opcode.startswith(("EXIT", "RET", "BRX")) or (opcode.startswith("BRA") and operands.startswith("0x"))
    found = re.search(r"0x([0-9a-f]+)\s*$", operands) if opcode.startswith(("BRA", "CALL")) else None
    target = int(found[1], 16) if found else None
    falls_through = predicate is not None or not ends
    return Instruction(int(address, 16), opcode, operands.strip(), predicate is not None, falls_through, target)
