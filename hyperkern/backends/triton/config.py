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
        specialised: whether some warps only load and the others only compute, see ``specialised.py``.
    """

    block_m: int
    block_n: int
    block_d: int | None
    num_warps: int
    num_stages: int
    specialised: bool = False


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


# Warps of a program without those that the compiler adds: where it divides the rows of a tile between two groups, and
# where one group has all of them.
_SPECIALISED_WARPS = {"sm_90": 4, "sm_100": 8}
_SPECIALISED_DIMS = (64, 128)


def specialised(architecture: str, kernel: str, operand: str, dim: int | None, mode: str | None) -> tuple[Config, ...]:
    """The specialised configurations that an entry may have: those that were compiled on every known Triton."""
    takes = kernel in ("contract", "sums") and operand == "bfloat16" and dim in _SPECIALISED_DIMS and mode == "exp"
    if not takes or architecture not in _SPECIALISED_WARPS:
        return ()
    return tuple(Config(128, 128, None, _SPECIALISED_WARPS[architecture], stages, True) for stages in (2, 3))


def _check_specialised(architecture: Architecture, path: Path) -> None:
    ordinary = {entry[:3] for entry in architecture.entries if entry.config.specialised is False}
    for entry in architecture.entries:
        if not isinstance(entry.config.specialised, bool):
            raise ValueError(f"{path}: 'specialised' must be true or false, got {entry.config.specialised!r}")
        if not entry.config.specialised:
            continue
        given = ", ".join(f"{name} {value!r}" for name, value in zip(Entry._fields[:4], entry, strict=False))
        choices = specialised(architecture.name, *entry[:4])
        if not choices:
            raise ValueError(
                f"{path}: 'specialised' is for the kernels contract and sums, bfloat16, D of {_SPECIALISED_DIMS} and "
                f"the mode exp on {' and '.join(_SPECIALISED_WARPS)}, not for {given} on {architecture.name}"
            )
        if entry.config not in choices:
            raise ValueError(f"{path}: 'specialised' of {given} needs one of {choices}, got {entry.config}")
        if entry[:3] not in ordinary:
            raise ValueError(f"{path}: 'specialised' of {given} needs an ordinary entry beside it, for other problems")


def read(path: Path) -> Architecture:
    """The architecture described by a file.

    Raises:
        ValueError: the file lacks something, holds something unknown, or asks for specialised warps where there are
            none.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        entries = tuple(
            Entry(e.pop("kernel"), e.pop("operand"), e.pop("dim"), e.pop("mode"), Config(**e))
            for e in content.pop("entries")
        )
        architecture = Architecture(path.stem, entries=entries, **content)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no configuration file: {error!r}") from error
    _check_specialised(architecture, path)
    return architecture


def write(architecture: Architecture, path: Path) -> None:
    """Writes a file that `read` reads, one entry per line."""
    head = {name: getattr(architecture, name) for name in Architecture._fields if name not in ("name", "entries")}
    lines = []
    for e in architecture.entries:
        choice = {name: value for name, value in e.config._asdict().items() if name != "specialised" or value}
        lines.append(json.dumps({"kernel": e.kernel, "operand": e.operand, "dim": e.dim, "mode": e.mode, **choice}))
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
def find(
    architecture: Architecture, kernel: str, operand: str, dim: int, mode: str, specialised: bool = False
) -> Config | None:
    """The entry for the smallest D that is at least ``dim``; ``None`` if the kernel serves no row that long.

    A specialised one is found only where one may be, and there before an ordinary one.
    """
    operand = "bfloat16" if operand == "float16" else operand
    fitting = [
        (entry.dim or 1 << 30, entry.mode is None, not entry.config.specialised, entry.config)
        for entry in architecture.entries
        if (entry.kernel, entry.operand) == (kernel, operand)
        and (entry.dim is None or entry.dim >= dim)
        and entry.mode in (None, mode)
        and (specialised or not entry.config.specialised)
    ]
    return min(fitting)[3] if fitting else None


def padded(dim: int) -> int:
    """The power of two that a whole row takes in a tile."""
    return max(16, 1 << (dim - 1).bit_length())
