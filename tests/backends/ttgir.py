"""Which rows each group of warps loads and stores, worked out from the compiler's intermediate code.

The compiler divides the rows of a tile between two groups of warps by rewriting the arithmetic of the kernel. Here that
arithmetic is done: integers, ranges, masks and addresses; what is not one of these has no value.
"""

import re
from typing import Any, NamedTuple

import numpy as np

_COMPARE = {"slt": np.less, "sle": np.less_equal, "sgt": np.greater, "sge": np.greater_equal, "eq": np.equal}
_BINARY: dict[str, Any] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": lambda a, b: np.trunc(a / b).astype(np.int64),
    "arith.remsi": np.fmod,
    "arith.maxsi": np.maximum,
    "arith.minsi": np.minimum,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.select": np.where,
    "tt.addptr": np.add,
}
_SAME = ("arith.extsi", "arith.extui", "arith.trunci", "ttg.convert_layout", "tt.splat")
_LOCATION = re.compile(r" loc\((?:[^()]|\([^()]*\))*\)")


class Group(NamedTuple):
    """What a group of warps does.

    Attributes:
        buffers: the blocks of its rows in shared memory, by the names they have outside.
        stored: for each store the addresses, in elements from the number that its pointer has as an argument.
    """

    buffers: set[str]
    stored: list[np.ndarray]


def loaded(text: str, numbers: dict[str, int]) -> dict[str, int]:
    """The first row of each block that is loaded before the loop, by the name of its buffer."""
    body, values = _regions(text)[0], {f"%{name}": value for name, value in numbers.items()}
    buffers, found = {}, {}
    for line in body:
        _compute(line, values, numbers)
        if match := re.match(r"(%\w+) = ttg.memdesc_index (%\w+)\[", line):
            buffers[match[1]] = match[2]
        if match := re.match(r"ttng.async_tma_copy_global_to_local %\w+\[(%\w+), %\w+\] (%\w+),", line):
            found[buffers[match[2]]] = int(values[match[1]])
    return found


def groups(text: str, numbers: dict[str, int]) -> list[Group]:
    """What each group does in a program whose arguments, and index ``program``, are these numbers."""
    outside = re.search(r"ttg.warp_specialize\(([^)]*)\)", text)
    assert outside is not None
    captured = outside[1].split(", ")
    found = []
    for i, body in enumerate(_regions(text)):
        values: dict[str, Any] = {f"%{name}": value for name, value in numbers.items()}
        names: dict[str, str] = {}
        if i > 0:
            names = dict(zip(re.findall(r"(%\w+): ", body[0]), captured, strict=True))
            values = {own: values[given] for own, given in names.items() if given in values}
        stored, used = [], set()
        for line in body:
            _compute(line, values, numbers)
            if match := re.match(r"tt.store (%\w+), \S+, (%\w+)", line):
                pointers, mask = values[match[1]], np.broadcast_to(values[match[2]], values[match[1]].shape)
                stored.append(pointers[mask.astype(bool)])
            if match := re.match(r"%\w+ = ttg.memdesc_index (%\w+)\[.*memdesc<1x64x", line):
                used.add(names.get(match[1], match[1]))
        found.append(Group(used, stored))
    return found


def _regions(text: str) -> list[list[str]]:
    """The lines of the default region, with those before it, and of each partition, without those of loops."""
    found: list[list[str]] = [[]]
    loop = None
    for raw in _LOCATION.sub("", text).splitlines():
        line, indent = raw.strip(), len(raw) - len(raw.lstrip())
        if loop is not None:
            loop = None if line.startswith("}") and indent == loop else loop
        elif " scf.for " in line:
            loop = indent
        elif re.match(r"partition\d+\(", line):
            found.append([line])
        else:
            found[-1].append(line)
    return found


def _compute(line: str, values: dict[str, Any], numbers: dict[str, int]) -> None:
    match = re.match(r"(%\w+) = ([\w.]+) ?(.*)", line)
    if match is None:
        return
    name, op, rest = match.groups()
    given = [values.get(operand) for operand in re.findall(r"%\w+", rest)]
    shape = [int(size) for size in re.findall(r"(\d+)x", (re.findall(r"tensor<((?:\d+x)+)", rest) or [""])[-1])]
    if op == "arith.constant":
        if constant := re.search(r"(?:dense<)?(-?\d+|true|false)>? ?: (?:tensor<[\dx]*)?i\d+", rest):
            values[name] = np.full(shape, int({"true": 1, "false": 0}.get(constant[1], constant[1])))
    elif op == "tt.get_program_id":
        values[name] = np.int64(numbers["program"])
    elif op == "tt.make_range":
        first, last = (int(re.search(rf"{word} = (\d+)", rest)[1]) for word in ("start", "end"))  # type: ignore[index]
        values[name] = np.arange(first, last)
    elif any(one is None for one in given) or not given:
        return
    elif op in _BINARY:
        values[name] = _BINARY[op](*given)
    elif op == "arith.cmpi":
        values[name] = _COMPARE[rest.split(",")[0]](given[0], given[1])
    elif op == "tt.expand_dims":
        values[name] = np.expand_dims(given[0], int(re.search(r"axis = (\d+)", rest)[1]))  # type: ignore[index]
    elif op in _SAME or op == "tt.broadcast":
        values[name] = np.broadcast_to(given[0], shape) if shape else given[0]
