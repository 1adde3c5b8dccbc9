"""Which block sizes a kernel runs with: data files, one per architecture, made by ``hyperkern tune``.

Nothing is tuned at call time. The nearest entry serves a shape or a GPU that was not tuned.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...files import write_files

FOLDER = Path(__file__).parent / "configs"

# Which file serves which compute capability; those with less shared memory per multiprocessor have one of their own.
_FILES = {(8, 0): "sm_80", (8, 7): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
_SMALL = "sm_86"


class Config(NamedTuple):
    """The compile-time shape of a kernel.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile.
        block_d: elements of D per step of the product; ``None``: a whole row at once.
        num_warps: warps of a program.
        num_stages: tiles in flight.
    """

    block_m: int
    block_n: int
    block_d: int | None
    num_warps: int
    num_stages: int


class Entry(NamedTuple):
    """One line of a file: what a configuration is for.

    Attributes:
        kernel: ``contract``, ``sums``, ``two_way`` (sums of rows and columns at once) or ``panel``.
        operand: ``bfloat16`` (float16 too), ``tf32`` or ``float32``.
        dim: the largest feature dimension it serves; ``None``: any.
        mode: the ``MODE`` it serves, see ``tile.py``, or ``classes``, any where labels are read; ``None``: every one
            that has no entry of its own.
        config: the configuration.
    """

    kernel: str
    operand: str
    dim: int | None
    mode: str | None
    config: Config


class Architecture(NamedTuple):
    """One file.

    Attributes:
        name: ``sm_90``, for instance.
        shared_bytes: shared memory that one program may use.
        multiprocessors: how many programs fill a typical GPU. A constant of the file, so that the order of sums, and
            with it the last bit, does not depend on the model of the GPU.
        checked: the committed result file of ``benchmarks/gpu_check.sh`` on such a GPU; empty: never run there.
        entries: the configurations.
    """

    name: str
    shared_bytes: int
    multiprocessors: int
    checked: str
    entries: tuple[Entry, ...]

    def __hash__(self) -> int:
        """That of the name: every launch looks for its configuration, and all entries would be hashed each time."""
        return hash(self.name)


def read(path: Path) -> Architecture:
    """The architecture described by a file.

    Raises:
        ValueError: the file lacks something or holds something unknown.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        entries = tuple(
            Entry(e.pop("kernel"), e.pop("operand"), e.pop("dim"), e.pop("mode"), Config(**e))
            for e in content.pop("entries")
        )
        return Architecture(path.stem, entries=entries, **content)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no configuration file: {error!r}") from error


def write(architecture: Architecture, path: Path) -> None:
    """Writes a file that `read` reads, one entry per line."""
    head = {name: getattr(architecture, name) for name in Architecture._fields if name not in ("name", "entries")}
    lines = [
        json.dumps({"kernel": e.kernel, "operand": e.operand, "dim": e.dim, "mode": e.mode, **e.config._asdict()})
        for e in architecture.entries
    ]
    fields = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    body = ",\n".join([*fields, ' "entries": [\n  ' + ",\n  ".join(lines) + "\n ]"])
    write_files({path: ("{\n" + body + "\n}\n").encode()})


@functools.cache
def of_name(name: str) -> Architecture:
    """The architecture of that name."""
    return read(FOLDER / f"{name}.json")


def shipped() -> list[Architecture]:
    """All architectures of the package."""
    return [of_name(path.stem) for path in sorted(FOLDER.glob("sm_*.json"), key=lambda path: int(path.stem[3:]))]


@functools.cache
def of_capability(capability: tuple[int, int]) -> Architecture:
    """The file that serves a compute capability of 8.0 or more."""
    return of_name(_FILES.get(capability, _SMALL))


@functools.cache
def of_device(index: int | None) -> Architecture:
    """The file that serves a CUDA device."""
    return of_capability(torch.cuda.get_device_capability(index))


@functools.cache
def find(architecture: Architecture, kernel: str, operand: str, dim: int, mode: str) -> Config | None:
    """The entry for the smallest D that is at least ``dim``; ``None`` if the kernel serves no row that long."""
    operand = "bfloat16" if operand == "float16" else operand
    fitting = [
        (entry.dim or 1 << 30, entry.mode is None, entry.config)
        for entry in architecture.entries
        if (entry.kernel, entry.operand) == (kernel, operand)
        and (entry.dim is None or entry.dim >= dim)
        and entry.mode in (None, mode)
    ]
    return min(fitting)[2] if fitting else None


def padded(dim: int) -> int:
    """The power of two that a whole row takes in a tile."""
    return max(16, 1 << (dim - 1).bit_length())
