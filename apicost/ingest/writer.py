"""One thread that makes posted batches durable, many at a time.

Rules of this file:
- A batch is answered only after the transaction that holds it; batches that arrive while one is under way
  go together into the next. So the cost of a commit is shared the more, the busier it is.
- What goes wrong with one batch never touches another of the same group.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apicost.ingest.lines import BatchRefused, Limits, ParsedBatch, parse_batch
from apicost.ingest.spool import Added, Spool, SpoolError

log = logging.getLogger("apicost.receiver")

GROUP_BATCHES = 32
GROUP_BYTES = 8 << 20  # of bodies in one transaction: parsed they take about as much again
LOG_EVERY_S = 10.0  # a full disk is one line of log in so many seconds, not one a batch


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one body. status: HTTP status; reason: where it is not 200."""

    status: int
    reason: str = ""
    batch: ParsedBatch | None = None
    added: Added | None = None


@dataclass(slots=True)
class _Item:
    body: bytes
    done: Callable[[Outcome], object]


class Writer:
    """Parses bodies and adds them to the spool, in its own thread. `counts` is that thread's own."""

    def __init__(self, spool: Spool, limits: Limits, clock: Callable[[], int] = time.time_ns) -> None:
        self.counts: Counter[str] = Counter()
        self._spool = spool
        self._limits = limits
        self._clock = clock
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="receiver-writer", daemon=True)
        self._stopping = False
        self._logged_s = -LOG_EVERY_S

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what was submitted, then end the thread. What is submitted later is answered 503."""
        self._stopping = True
        self._queue.put(None)
        self._thread.join()

    async def add(self, body: bytes) -> Outcome:
        """Make one body durable; returns when it is, or when it can't be."""
        if self._stopping:
            return Outcome(503, "shutting down")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self._queue.put(_Item(body, lambda outcome: loop.call_soon_threadsafe(settle, outcome)))
        return await future

    def _run(self) -> None:
        going = True
        while going:
            item = self._queue.get()
            group: list[_Item] = []
            size = 0
            while item is not None:
                group.append(item)
                size += len(item.body)
                if len(group) >= GROUP_BATCHES or size >= GROUP_BYTES:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            going = item is not None
            if group:
                self._settle(group)
        while True:  # what came between `stop` and the end
            try:
                left = self._queue.get_nowait()
            except queue.Empty:
                return
            if left is not None:
                left.done(Outcome(503, "shutting down"))

    def _settle(self, group: Sequence[_Item]) -> None:
        for item, outcome in zip(group, self.take([item.body for item in group]), strict=True):
            try:
                item.done(outcome)
            except RuntimeError:  # its event loop is gone, and who asked with it
                log.warning("an answer came after its connection's event loop had ended")

    def take(self, bodies: Sequence[bytes]) -> list[Outcome]:
        """Parse and add bodies as one group; also the way of files that are picked up."""
        outcomes: list[Outcome | None] = []
        parsed: list[ParsedBatch] = []
        for body in bodies:
            read = self._parse(body)
            outcomes.append(read if isinstance(read, Outcome) else None)
            if isinstance(read, ParsedBatch):
                parsed.append(read)
        try:
            added = self._spool.add_lines(parsed) if parsed else []
        except SpoolError as error:
            self.counts["batches_not_durable"] += len(parsed)
            self._log_seldom(f"usage lines cannot be made durable, gateways will send them again: {error}")
            failed = Outcome(503, "cannot be made durable now")
            return [failed if outcome is None else outcome for outcome in outcomes]
        results = iter([self._count(batch, one) for batch, one in zip(parsed, added, strict=True)])
        return [next(results) if outcome is None else outcome for outcome in outcomes]

    def _parse(self, body: bytes) -> ParsedBatch | Outcome:
        try:
            return parse_batch(body, self._limits, self._clock())
        except BatchRefused as problem:
            self.counts[f"batches_refused_{_word(problem.kind)}"] += 1
            self._log_seldom(f"a batch was refused with {problem.status}: {problem.reason!a}")
            return Outcome(problem.status, problem.reason)
        except Exception as error:
            # A defect here must not make the gateway send the same batch for ever.
            self.counts["batches_refused_defect"] += 1
            log.exception("a batch of %d bytes could not be read", len(body))
            return Outcome(400, f"the batch cannot be read: {type(error).__name__}")

    def _count(self, batch: ParsedBatch, added: Added) -> Outcome:
        if added.problem:
            self.counts["batches_refused_numbers"] += 1
            self._log_seldom(f"a batch was refused with 400: {added.problem!a}")
            return Outcome(400, added.problem)
        counts = self.counts
        counts["batches_duplicate" if added.duplicate else "batches_accepted"] += 1
        counts["lines_accepted"] += added.accepted
        counts["lines_duplicate"] += added.duplicates
        if not added.duplicate:
            counts["batches_half"] += batch.half
            for refusal in batch.refused:
                counts[f"lines_refused_{_word(refusal.kind)}"] += 1
            for kind, number in batch.contained.items():
                counts[f"lines_contained_{_word(kind)}"] += number
        return Outcome(200, batch=batch, added=added)

    def _log_seldom(self, message: str) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("%s", message)


def _word(kind: str) -> str:
    """A kind as part of a metric's name."""
    return kind.replace("-", "_")
