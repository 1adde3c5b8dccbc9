"""The files that results go to: whether they can be written, asked before the work, and writing them safely."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any


class OutputError(ValueError):
    """A file cannot be written; the message names it."""


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Before the work: whether its results can be written.

    Args:
        outputs: the files by the option that names them, ``None`` where it was not given.
        inputs: files that are read.

    Raises:
        OutputError: one cannot be written, or is an input or another output; the message names the option and the file.
    """
    seen: list[Path] = []
    for option, path in outputs.items():
        if path is None:
            continue
        reason = obstacle(path)
        if reason is None and any(_same(path, other) for other in inputs):
            reason = "is read too"
        if reason is None and any(_same(path, other) for other in seen):
            reason = "another result goes there too"
        if reason is not None:
            raise OutputError(f"argument --{option}: {reason}, got {str(path)!r}")
        seen.append(path)


def obstacle(path: Path) -> str | None:
    """Why a file cannot be written; ``None`` if it can. Nothing is changed."""
    if not os.path.isdir(path.parent):
        return f"{path.parent} is no folder"
    if os.path.isdir(path):
        return "is a folder"
    try:
        status = _status(path)
        if status is None or _is_replaced(path, status):
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
        if status is None:
            return None
        if stat.S_ISSOCK(status.st_mode):
            return "is a socket"
        if not stat.S_ISREG(status.st_mode):  # opening it may wait for a reader, or move a tape
            return None if os.access(path, os.W_OK) else "cannot be written to (permission denied)"
        if not status.st_mode & 0o222:  # root could write, but was asked not to
            return "is read-only"
        with open(path, "r+b"):
            pass
    except OSError as error:
        return f"cannot be written to ({error.strerror})"
    return None


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files so that each is whole or as it was.

    All are written beside their places before the first is moved there. A link stays one: what it leads to is written.
    What cannot be replaced unnoticed is written to where it is, after all others: what is no regular file, such as a
    FIFO or a device, and a file of several names, of another owner, with attributes of its own, that is a mount point
    or an output of this process.

    Args:
        contents: of each file.

    Raises:
        OutputError: a file cannot be written; the message names it and the reason.
    """
    moves: dict[Path, tuple[Path, str]] = {}
    try:
        for path, content in contents.items():
            reason = obstacle(path)
            if reason is not None:
                raise OutputError(f"{path} {reason}")
            status = _status(path)
            if status is None or _is_replaced(path, status):
                target = os.path.realpath(path)
                temporary = Path(os.path.dirname(target), f".{secrets.token_hex(8)}.tmp")
                moves[path] = temporary, target
                with open(temporary, "xb", opener=None if status is None else _open_private) as file:
                    file.write(content)
                if status is not None:
                    with contextlib.suppress(OSError):  # a file system without permissions
                        shutil.copymode(target, temporary)
        for path in list(moves):
            try:
                os.replace(*moves[path])
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                moves.pop(path)[0].unlink()  # a mount point
        for path in contents.keys() - moves.keys():
            printed = _standard_output(path.stat())
            # Behind what has been printed, and before what will be.
            place = path if printed is None else os.dup(printed)
            with open(place, "wb", opener=_open_existing if printed is None else None) as file:
                file.write(contents[path])
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
    finally:
        for temporary, _ in moves.values():
            temporary.unlink(missing_ok=True)


def as_json(content: Any, indent: int | None = 1) -> bytes:
    """Dataclasses, mappings and lists as JSON, and the end of its line; of a file name that is no text, an escape.

    Raises:
        ValueError: a number in it is not finite.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False, default=asdict) + "\n"
    return text.encode(errors="backslashreplace")


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a file, a line of JSON each.

    Each by one write at the end of the file: what ends the process leaves whole lines, but for the last one at most,
    and several processes can add to the same file.
    """
    with open(path, "ab", buffering=0) as file:
        for row in rows:
            file.write(as_json(row, indent=None))


def _status(path: Path) -> os.stat_result | None:
    """Of what is there, at the end of a link too; ``None`` if there is nothing yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_replaced(path: Path, status: os.stat_result) -> bool:
    """Whether another file may take its place without anybody noticing."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return False
    if sys.platform == "win32":
        return True
    # The group is that of a new file of this process, unless the folder says otherwise.
    mine = status.st_uid == os.geteuid() and status.st_gid == os.getegid()
    return mine and not _has_attributes(path) and _standard_output(status) is None


def _has_attributes(path: Path) -> bool:
    """Whether a file has extended attributes, access control lists among them."""
    try:
        return any(not name.startswith("security.") for name in os.listxattr(path))  # which new files get as well
    except (AttributeError, OSError):  # a system, or a file system, without them
        return False


def _standard_output(status: os.stat_result) -> int | None:
    """The descriptor by which what is printed goes to this file: another file in its place would get nothing of it."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # until it has the mode of the file that it replaces


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)  # which some systems refuse for others' files in a shared folder


def _same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)
