"""Files that survive a power cut once written: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp"  # suffix of what was being written when the process died; swept at start-up


def write_file(path: Path, write: Callable[[Path], None]) -> int:
    """Make `path` appear whole or not at all; returns its size in bytes.

    write: fills the file at the temporary path that it is given.
    Raises OSError (disk full, read-only folder) and leaves no temporary file behind.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return size


def write_bytes(path: Path, content: bytes) -> int:
    """`write_file` for bytes at hand."""
    return write_file(path, lambda temporary: _put(temporary, content))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove what a killed process was writing; returns the names removed."""
    found = sorted(folder.glob(f"*{TEMPORARY}"))
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _put(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
