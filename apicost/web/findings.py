"""How many findings of conformance there are, for /metrics: counted by a child process, now and then.

Rules of this file:
- Judging takes hundreds of MB and a second of CPU: never in the daemon's own process, one child at a time.
- Nothing is judged twice: where no calls came, no document changed and the month is the same, no child is started.
- What goes wrong is one line in the log and one more in a counter; the last good figures stay.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import msgspec

log = logging.getLogger("apicost")

CHILD_SECONDS = 600.0
MODULE = "apicost.commands._conformance_metrics"


class Count(msgspec.Struct, frozen=True):
    """Findings of one rule and API. calls: requests concerned in the current month; api: "" for none."""

    rule: str
    severity: str
    api: str
    findings: int
    calls: int


class Seen(msgspec.Struct, frozen=True):
    """How much of an API's documents was called in the current month."""

    api: str
    operations: int
    operations_seen: int


class Findings(msgspec.Struct, frozen=True):
    """What the child prints. judged_unix_s: when it was done."""

    counts: tuple[Count, ...] = ()
    coverage: tuple[Seen, ...] = ()
    judged_unix_s: float = 0.0


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    errors: IO[bytes]
    started_s: float


class Tally:
    """Starts the child and keeps its last outcome. One thread calls `tick`; `last` may be read by others."""

    def __init__(self, *, now_s: float) -> None:
        self.last: Findings | None = None
        self.failures = 0
        self._child: _Child | None = None
        self._due_s: float | None = None
        self._began_s = now_s
        self._judged: Any = None
        self._month = ""

    def tick(self, every_s: float, options: Sequence[str], state: object, *, now_s: float) -> None:
        """Take in what a child has done, and start one when it is time.

        every_s: 0 for never. options: of the child. state: what the findings depend on; equal means that nothing
        changed. now_s: of a clock that never goes back.
        """
        self._take(now_s)
        if not every_s or self._child is not None:
            return
        if now_s < (self._began_s + every_s if self._due_s is None else self._due_s):
            return
        self._due_s = now_s + every_s
        state = (state, time.strftime("%Y-%m", time.gmtime()))
        if state == self._judged:
            return
        self._judged = state
        out, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - the child outlives this call
        try:
            process = subprocess.Popen([sys.executable, "-m", MODULE, *options], stdout=out, stderr=errors)
        except OSError as error:
            self._failed(str(error))
            return
        self._child = _Child(process, out, errors, now_s)

    def close(self) -> None:
        """End a child that is still running."""
        child, self._child = self._child, None
        if child is not None and child.process.poll() is None:
            child.process.kill()
            child.process.wait()

    def _take(self, now_s: float) -> None:
        child = self._child
        if child is None:
            return
        code = child.process.poll()
        if code is None:
            if now_s - child.started_s > CHILD_SECONDS:
                self.close()
                self._failed(f"it took longer than {CHILD_SECONDS:.0f} s")
            return
        self._child = None
        with child.out, child.errors:
            child.out.seek(0)
            child.errors.seek(0)
            told = child.errors.read().decode(errors="replace").strip().splitlines()
            try:
                self.last = msgspec.json.decode(child.out.read(), type=Findings)
            except msgspec.DecodeError:
                self._failed(f"exit code {code}: {told[-1] if told else 'nothing was said'}")

    def _failed(self, reason: str) -> None:
        """Said once for each; tried again at the next turn, whether or not something came."""
        self.failures += 1
        self._judged = None
        log.warning("findings are not counted: %s", reason)
