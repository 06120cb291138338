"""Large files written past the page cache, where the file system can.

An export of gigabytes is read once, elsewhere: through the page cache each page of it would be allocated, filled and
written back, for more processor time than making the text takes, and what the gateway's host has cached would make
room for it (measured: docs/benchmarks/report.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 1 << 22  # written at a time, from pages of its own: direct writes ask for alignment, up to 4 KiB on most


@contextlib.contextmanager
def writer(path: Path) -> Iterator[Callable[[bytes | memoryview], None]]:
    """A new file and the function that appends to it; all is written when the context ends, not yet durable.

    Raises OSError (disk full, read-only folder).
    """
    descriptor, direct = _open(path)
    try:
        with mmap.mmap(-1, BLOCK) as block:
            filled = 0

            def append(content: bytes | memoryview) -> None:
                nonlocal filled
                content = memoryview(content)
                while len(content):
                    part = content[: BLOCK - filled]
                    block[filled : filled + len(part)] = part
                    filled, content = filled + len(part), content[len(part) :]
                    if filled == BLOCK:
                        _write(descriptor, block, filled)
                        filled = 0

            yield append
            if direct:  # the end fills no block
                fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
            _write(descriptor, block, filled)
    finally:
        os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with contextlib.suppress(OSError):  # a file system without direct writes, such as tmpfs; other faults come again
        return os.open(path, flags | os.O_DIRECT, 0o666), True
    return os.open(path, flags, 0o666), False


def _write(descriptor: int, block: mmap.mmap, size: int) -> None:
    with memoryview(block) as content:
        done = 0
        while done < size:
            done += os.write(descriptor, content[done:size])
