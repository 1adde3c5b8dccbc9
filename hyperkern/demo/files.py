"""Writing the results so that an interrupted run leaves no half-written file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files under temporary names, then move them into place.

    Args:
        folder: an existing folder.
        contents: bytes of each file by name; files that exist are replaced.
    """
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        for name, path in temporary.items():
            path.write_bytes(contents[name])
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
