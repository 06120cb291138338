"""Folders for passing files, which never outlive their process for long.

A context manager removes its folder at the end, but not when the process is killed. So each folder is locked by
its process, and whoever makes the next one of the same purpose removes those that nobody holds any more. A lock
ends with its process; a process number could be another's by then, or another container's.

Standard library alone: the probe's loader runs under the system's interpreter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def folder(purpose: str, within: Path | str | None = None) -> Iterator[Path]:
    """A new, empty folder for this process alone, gone at the end.

    purpose: part of its name. within: where; the system's folder for temporary files if None.
    Removes folders of the same purpose, place and user whose process has died. Raises OSError where none can be made.
    """
    place = Path(within or tempfile.gettempdir())
    sweep(purpose, place)
    path, held = _make(purpose, place)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def sweep(purpose: str, place: Path) -> list[Path]:
    """Remove what killed processes left; returns what was removed."""
    left = []
    for path in sorted(place.glob(f"{_prefix(purpose)}*")):
        with contextlib.suppress(OSError):  # gone meanwhile, or none of ours
            held = _lock(path)
            if held is not None:
                # While it is locked: a process that has just made it finds it gone and makes another.
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)
                left.append(path)
    return left


def _prefix(purpose: str) -> str:
    return f"apicost-{purpose}-"


def _make(purpose: str, place: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_prefix(purpose), dir=place))
        held = _lock(path)
        if held is not None and path.exists():
            return path, held
        if held is not None:  # swept between the two
            os.close(held)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the folder; None where another process does, or it is another user's or no folder."""
    try:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(held).st_uid == os.geteuid():
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
    except BlockingIOError:
        pass
    os.close(held)
    return None
