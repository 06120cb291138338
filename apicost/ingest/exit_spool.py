"""Batches that gateway workers wrote to files when they stopped: taken like posted ones, then removed.

Rules of this file:
- A worker writes NAME.tmp and renames it to NAME.usage; only the latter is looked at.
- A file is removed when its lines are durable. What can't be used is moved to `refused/` beside it, with a
  line in the log that says why. A disk that is full leaves the files where they are.
- The folder belongs to the gateway's user: who may write there may add usage lines without the token.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apicost.ingest.lines import Limits
from apicost.ingest.spool import Spool
from apicost.ingest.writer import Writer

log = logging.getLogger("apicost.receiver")

MAX_FILE_BYTES = 64 << 20  # several times a worker's whole queue
FILES_AT_ONCE = 100  # of one call, so that the caller's other work goes on
REFUSED = "refused"
LIMITS = Limits(max_lines=1 << 20)  # the file is already there: its size is bound enough


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedUp:
    """What one look at the folder found."""

    files: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused_lines: int = 0
    refused_files: int = 0


def pick_up(folder: Path, spool: Spool, limits: Limits = LIMITS) -> PickedUp:
    """Take the *.usage files of a folder, oldest name first. A missing folder is an empty one.

    Never raises for what lies there; files that can't be made durable now stay for the next call.
    """
    writer = Writer(spool, limits)
    files = accepted = duplicates = refused_lines = refused_files = 0
    for path in _waiting(folder)[:FILES_AT_ONCE]:
        try:
            content = _read(path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                refused_files += _move_aside(path, str(error.strerror or error))
            continue
        outcomes = [writer.take([body])[0] for body in batches_of(content)]
        if any(outcome.status == 503 for outcome in outcomes):
            break
        bad = [outcome.reason for outcome in outcomes if outcome.added is None]
        for outcome in outcomes:
            if outcome.added is not None and outcome.batch is not None:
                accepted += outcome.added.accepted
                duplicates += outcome.added.duplicates
                refused_lines += len(outcome.batch.refused)
        if bad or not outcomes:
            refused_files += _move_aside(path, bad[0] if bad else "the file is empty")
            continue
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        files += 1
    return PickedUp(
        files=files,
        accepted=accepted,
        duplicates=duplicates,
        refused_lines=refused_lines,
        refused_files=refused_files,
    )


def batches_of(content: bytes) -> Iterator[bytes]:
    """The batches in a file. A header begins with "{", a request line with a digit."""
    start = 0
    while start < len(content):
        following = content.find(b"\n{", start)
        end = len(content) if following < 0 else following + 1
        yield content[start:end]
        start = end


def _waiting(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(".usage"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("exit spool %s cannot be read: %s", ascii(str(folder)), error.strerror)
        return []


def _read(path: Path) -> bytes:
    """A plain file's content; links, devices and giants are refused with OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no plain file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(0, f"it is larger than {MAX_FILE_BYTES} bytes")
        return stream.read()


def _move_aside(path: Path, reason: str) -> int:
    log.warning("exit spool file %s is set aside: %s", ascii(path.name), ascii(reason))
    aside = path.parent / REFUSED
    try:
        aside.mkdir(exist_ok=True)
        os.rename(path, aside / path.name)
    except OSError as error:
        log.warning("exit spool file %s cannot be moved: %s", ascii(path.name), error.strerror)
    return 1
