"""What came in and is not yet in the ledger: usage lines and flow snapshots in sealed segments, durable.

Rules of this file:
- `add_lines` and `add_flows` return when what they were given is on disk, or raise and have taken nothing.
- Lines are appended to one open file: a commit costs two fsyncs, of that file and of the register.
- Counts (received, lost, duplicate, ...) travel with segments, so that who consumes a segment consumes its
  counts exactly once; what is found out later travels as a segment without rows.
- A line counts once by its number in its worker, whatever batch or connection brings it.
- When a write fails the register is read again: what it says is what was acknowledged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from apicost import durable
from apicost.core import records
from apicost.core.clock import Clock
from apicost.ingest import numbering, segment_files
from apicost.ingest.lines import ParsedBatch
from apicost.ingest.numbering import Numbers
from apicost.ingest.plan import Added, Plan, added_up, minute_of
from apicost.ingest.register import Counts, Register, Row, Seen, WorkerKey
from apicost.ingest.segment_files import FLOWS, LINES

GRACE_NS = 60_000_000_000  # how long a missing number may still come before it counts as lost
SEGMENT_ROWS = 5_000  # an open segment is sealed at this many rows, so that a reader takes lines and flows by turns
SEGMENT_BYTES = 32 << 20
KEPT_WORKERS = 4_096  # about 1 kB each
KEEP_WORKER_NS = 86_400_000_000_000  # beyond KEPT_WORKERS, workers not seen for a day are forgotten
MOST_WORKERS = 65_536  # never more than this
DAMAGED = "damaged"  # folder for segment files that can't be read back

COUNTS = "counts"


class SpoolError(OSError):
    """The spool can't take or give something now: disk full, read-only, damaged, in use.

    What was acknowledged before stays. The caller says so to its own caller and tries again later.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRef:
    """One sealed segment. `id` is unique for ever; `clock` is when it was written."""

    id: str
    number: int
    kind: str
    rows: int
    bytes: int
    clock: Clock
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNumbers:
    """What is known of one gateway worker's numbers."""

    node: str
    pid: int
    started_unix_ms: int
    numbers: Numbers


class Spool:
    """A folder of segments and its register. Safe between threads; one process at a time."""

    def __init__(
        self, folder: Path, *, node: str, clock: Callable[[], int], grace_ns: int, lock_descriptor: int
    ) -> None:
        self.folder = folder
        self.node = node
        self.repairs: deque[str] = deque(maxlen=100)  # what start-up or a failed write found and mended
        self._clock = clock
        self._grace_ns = grace_ns
        self._lock_descriptor = lock_descriptor
        self._lock = threading.RLock()
        self._register: Register | None = None
        self._segments: dict[int, Row] = {}
        self._workers: dict[WorkerKey, Seen] = {}
        self._next_number = 1
        self._open_number = 0  # the segment that lines are appended to; 0 none
        self._descriptor = -1
        self._pending: dict[tuple[int, str], int] = {}  # counts that no transaction has carried yet
        self._unsaved: dict[WorkerKey, Seen] = {}  # the same for workers
        self._closed = False

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        node: str = "",
        clock: Callable[[], int] = time.time_ns,
        grace_ns: int = GRACE_NS,
    ) -> Spool:
        """Open or make a spool and repair what a killed process left; `repairs` says what was found.

        node: stands in the completeness rows. clock: wall clock in ns.
        Raises SpoolError: not writable, in use by another process, or its register is damaged.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(error.errno, f"spool {folder}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise SpoolError(errno.EBUSY, f"spool {folder}: another process has it open") from None
        spool = cls(folder, node=node, clock=clock, grace_ns=grace_ns, lock_descriptor=descriptor)
        try:
            spool._load()
        except BaseException:
            os.close(descriptor)
            raise
        return spool

    def close(self) -> None:
        """Write pending counts and give the folder back."""
        with self._lock:
            if self._closed:
                return
            with contextlib.suppress(SpoolError):
                self._settle()
            self._closed = True
            self._seal()
            if self._register is not None:
                self._register.close()
            os.close(self._lock_descriptor)

    # -- taking ---------------------------------------------------------------------------------

    def add_lines(self, batches: Sequence[ParsedBatch]) -> list[Added]:
        """Make several batches durable in one transaction; says for each what became of it.

        Raises SpoolError: nothing of any batch is taken.
        """
        with self._lock:
            self._ready()
            plan = Plan(self._clock())
            outcome = [plan.take(batch, self._numbers_of) for batch in batches]
            for taking in plan.workers.values():
                plan.count("lines_lost", taking.shut_uncounted - taking.recovered)
            self._write(LINES, plan)
            return outcome

    def add_flows(self, flows: pa.Table, *, losses: Mapping[str, int] | None = None, clock: Clock) -> None:
        """Make flow snapshots durable as a sealed segment of their own.

        flows: columns as in `records.FLOW`. losses: counts since the last call, by metric.
        Raises SpoolError: nothing is taken.
        """
        records.check(flows, records.FLOW, "spool")
        with self._lock:
            self._ready()
            plan = Plan(self._clock())
            for metric, value in (losses or {}).items():
                plan.count(metric, value, minute_of(clock.unix_ns))
            if flows.num_rows:
                plan.tables.append(flows)
            plan.urgent = bool(plan.tables or plan.counts)
            self._write(FLOWS, plan, clock)

    def _numbers_of(self, key: WorkerKey, batch: ParsedBatch) -> Numbers:
        seen = self._workers.get(key)
        if seen is not None:
            return seen.numbers
        if key[2] < self._opened.since_unix_ms:
            return numbering.older_than_memory(batch.header.first, batch.header.dropped)
        return Numbers()

    # -- giving ---------------------------------------------------------------------------------

    def sealed(self, max_rows: int | None = None) -> list[SegmentRef]:
        """Seal what is open and list the segments, oldest first.

        max_rows: stop before the segment that would exceed it (but give at least one).
        Raises SpoolError when counts that became known can't be made durable.
        """
        with self._lock:
            self._ready()
            self._settle()
            self._seal()
            out: list[SegmentRef] = []
            rows = 0
            for row in self._segments.values():
                rows += row.rows
                if max_rows is not None and out and rows > max_rows:
                    break
                out.append(
                    SegmentRef(
                        id=f"{self._opened.spool}-{row.number:010d}",
                        number=row.number,
                        kind=row.kind,
                        rows=row.rows,
                        bytes=row.bytes,
                        clock=Clock(mono_ns=row.clock_mono_ns, unix_ns=row.clock_unix_ns),
                        counts=row.counts,
                    )
                )
            return out

    def read(self, refs: Sequence[SegmentRef]) -> tuple[pa.Table, pa.Table, pa.Table]:
        """FLOW, LINE and COMPLETENESS of sealed segments, in their order.

        Raises SpoolError when a file can't be read back: it is then set aside, its lines are counted as
        lost, and the next `sealed` lists it no more.
        """
        tables: dict[str, list[pa.Table]] = {LINES: [], FLOWS: []}
        for ref in refs:
            if ref.kind == COUNTS:
                continue
            try:
                tables[ref.kind].append(segment_files.read(self._path(ref.kind, ref.number), ref.bytes, ref.rows))
            except (OSError, pa.ArrowException) as error:
                with self._lock, contextlib.suppress(sqlite3.Error, OSError):
                    self._set_aside(ref.number, str(error))
                raise SpoolError(errno.EIO, f"segment {ref.id} cannot be read back: {error}") from None
        flows = pa.concat_tables([segment_files.SCHEMAS[FLOWS].empty_table(), *tables[FLOWS]]).combine_chunks()
        lines = pa.concat_tables([segment_files.SCHEMAS[LINES].empty_table(), *tables[LINES]])
        return flows, lines.unify_dictionaries().combine_chunks(), self._completeness(refs)

    def drop(self, refs: Sequence[SegmentRef]) -> None:
        """Remove segments that were consumed. Raises SpoolError; they then stay listed."""
        with self._lock:
            self._ready()
            known = [ref for ref in refs if ref.number in self._segments]
            if not known:
                return
            try:
                self._opened.commit(remove=[ref.number for ref in known])
            except sqlite3.Error as error:
                self._after_failure()
                raise self._failed(error) from None
            for ref in known:
                if ref.number == self._open_number:
                    self._seal()
                del self._segments[ref.number]
                if ref.kind != COUNTS:
                    with contextlib.suppress(OSError):  # an orphan is swept at the next start
                        self._path(ref.kind, ref.number).unlink(missing_ok=True)

    def numbering(self) -> list[WorkerNumbers]:
        """The workers known, the one last seen last."""
        with self._lock:
            by_age = sorted(self._workers.items(), key=lambda item: item[1].unix_ns)
            return [
                WorkerNumbers(node=node, pid=pid, started_unix_ms=started, numbers=seen.numbers)
                for (node, pid, started), seen in by_age
            ]

    def backlog(self) -> dict[str, int]:
        """How much waits to be consumed: segments, rows, bytes. Never waits for a write."""
        rows = list(self._segments.values())
        return {
            "segments": len(rows),
            "rows": sum(row.rows for row in rows),
            "bytes": sum(row.bytes for row in rows),
        }

    def _completeness(self, refs: Sequence[SegmentRef]) -> pa.Table:
        total: dict[tuple[int, str], int] = {}
        for ref in refs:
            for key, value in ref.counts.items():
                total[key] = total.get(key, 0) + value
        keys = sorted(key for key, value in total.items() if value)
        node = [self.node or None] * len(keys)
        return pa.table(
            [
                pa.array([minute for minute, _ in keys], pa.int64()),
                pa.array(node, pa.string()).dictionary_encode(),
                pa.array([metric for _, metric in keys], pa.string()).dictionary_encode(),
                pa.array([total[key] for key in keys], pa.int64()),
            ],
            schema=records.schema(records.COMPLETENESS),
        )

    # -- writing --------------------------------------------------------------------------------

    def _write(self, kind: str, plan: Plan, clock: Clock | None = None) -> None:
        """Data to its file, then the register; on failure nothing has happened."""
        counts = added_up(plan.counts, self._pending)
        workers = self._unsaved | {key: Seen(taking.numbers, plan.now_unix_ns) for key, taking in plan.workers.items()}
        if not plan.urgent:
            self._pending, self._unsaved = counts, workers
            self._workers.update(workers)
            return
        clock = clock or Clock(mono_ns=time.monotonic_ns(), unix_ns=plan.now_unix_ns)
        row: Row | None = None
        try:
            if plan.tables:
                row = self._append(kind, plan.tables, counts, clock)
            elif counts:
                row = self._new_row(COUNTS, counts, clock)
            self._commit(row, workers)
        except (OSError, sqlite3.Error, pa.ArrowException) as error:
            self._after_failure()
            if row is None or self._segments.get(row.number) != row:
                raise self._failed(error) from None
            # The transaction had reached the disk although it reported a failure.

    def _commit(self, row: Row | None, workers: Mapping[WorkerKey, Seen]) -> None:
        self._opened.commit(put=[row] if row else [], workers=workers)
        if row:
            self._segments[row.number] = row
        self._workers.update(workers)
        self._pending, self._unsaved = {}, {}

    def _failed(self, error: Exception) -> SpoolError:
        number = getattr(error, "errno", None) or errno.EIO
        text = getattr(error, "strerror", None) or str(error)
        return SpoolError(number, f"spool {self.folder}: {text}")

    def _append(self, kind: str, tables: Sequence[pa.Table], counts: Counts, clock: Clock) -> Row:
        """Write a block to the segment's file and make it durable; the row is not registered yet."""
        block = segment_files.block_of(kind, tables)
        rows = sum(table.num_rows for table in tables)
        last = self._segments.get(self._open_number)
        if kind == LINES and last is not None and last.rows < SEGMENT_ROWS and last.bytes < SEGMENT_BYTES:
            segment_files.append(self._descriptor, block)
            return dataclasses.replace(
                last,
                bytes=last.bytes + block.size,
                rows=last.rows + rows,
                clock_mono_ns=clock.mono_ns,
                clock_unix_ns=clock.unix_ns,
                counts=added_up(last.counts, counts),
            )
        row = self._new_row(kind, counts, clock, size=block.size, rows=rows)
        descriptor = segment_files.create(self._path(kind, row.number), block)
        if kind == LINES:
            self._seal()
            self._open_number, self._descriptor = row.number, descriptor
        else:
            os.close(descriptor)
        durable.sync_folder(self.folder)
        return row

    def _new_row(self, kind: str, counts: Counts, clock: Clock, size: int = 0, rows: int = 0) -> Row:
        """A segment with a number of its own, used up even if nothing comes of it: its file may be there."""
        number = self._next_number
        self._next_number += 1
        return Row(
            number=number,
            kind=kind,
            bytes=size,
            rows=rows,
            clock_mono_ns=clock.mono_ns,
            clock_unix_ns=clock.unix_ns,
            counts=counts,
        )

    def _settle(self) -> None:
        """Holes whose grace has passed become losses; counts without a segment get one; old workers go."""
        plan = Plan(self._clock())
        changed: dict[WorkerKey, Seen] = {}
        for key, seen in self._workers.items():
            if not seen.numbers.holes:
                continue
            numbers, holes = numbering.ripe(seen.numbers, plan.now_unix_ns - self._grace_ns)
            for hole in holes:
                plan.count("lines_lost", hole.size, minute_of(hole.found_unix_ns))
            if holes:
                changed[key] = Seen(numbers, seen.unix_ns)
        gone, since = self._to_forget(plan.now_unix_ns)
        counts = added_up(plan.counts, self._pending)
        if not counts and not gone:
            return
        clock = Clock(mono_ns=time.monotonic_ns(), unix_ns=plan.now_unix_ns)
        row = self._new_row(COUNTS, counts, clock) if counts else None
        workers = {key: seen for key, seen in (self._unsaved | changed).items() if key not in gone}
        try:
            self._opened.commit(put=[row] if row else [], workers=workers, forget=gone, since_unix_ms=since)
        except sqlite3.Error as error:
            self._after_failure()
            raise self._failed(error) from None
        if row:
            self._segments[row.number] = row
        self._workers.update(workers)
        for key in gone:
            del self._workers[key]
        self._pending, self._unsaved = {}, {}

    def _to_forget(self, now_unix_ns: int) -> tuple[list[WorkerKey], int | None]:
        if len(self._workers) <= KEPT_WORKERS:
            return [], None
        by_age = sorted(self._workers, key=lambda key: self._workers[key].unix_ns)
        extra = by_age[: len(by_age) - KEPT_WORKERS]
        surely = len(by_age) - MOST_WORKERS
        gone = [
            key
            for place, key in enumerate(extra)
            if place < surely or self._workers[key].unix_ns < now_unix_ns - KEEP_WORKER_NS
        ]
        since = max((key[2] + 1 for key in gone), default=0)
        return gone, max(since, self._opened.since_unix_ms) if gone else None

    @property
    def _opened(self) -> Register:
        if self._register is None:
            raise SpoolError(errno.EIO, f"spool {self.folder}: the register could not be read again")
        return self._register

    # -- start-up and repair --------------------------------------------------------------------

    def _ready(self) -> None:
        if self._closed:
            raise SpoolError(errno.EBADF, f"spool {self.folder} is closed")
        if self._register is None:
            self._load()

    def _after_failure(self) -> None:
        """Read the register again: what it says is what was acknowledged. If that fails, `_ready` tries later."""
        self._seal()
        self._forget_register()
        # What waited for a transaction is not in the register; it is counted again with its cause.
        self._pending, self._unsaved = {}, {}
        with contextlib.suppress(OSError):
            self._load()

    def _forget_register(self) -> None:
        if self._register is not None:
            self._register.close()
            self._register = None

    def _load(self) -> None:
        path = self.folder / "register.sqlite"
        try:
            self._register = Register(path, self._clock() // 1_000_000)
            self._segments = {row.number: row for row in self._register.rows()}
            self._workers = self._register.workers()
            self._next_number = max(self._register.next_number(), self._next_number)
            self._repair()
        except (sqlite3.Error, OSError) as error:
            self._forget_register()
            raise SpoolError(
                getattr(error, "errno", None) or errno.EIO,
                f"spool {self.folder}: {error}; free the disk or make the folder writable, and if "
                f"{path.name} is damaged move the whole folder away",
            ) from None

    def _repair(self) -> None:
        """Make the folder agree with the register."""
        for path in durable.sweep(self.folder):
            self.repairs.append(f"{path.name}: was being written when the process ended; removed")
        known = {self._path(row.kind, row.number): row for row in self._segments.values() if row.kind != COUNTS}
        for path in sorted(self.folder.glob(f"*{segment_files.SUFFIX}")):
            if path not in known:
                path.unlink()
                self.repairs.append(f"{path.name}: was never acknowledged; removed")
        for path, row in known.items():
            size = path.stat().st_size if path.exists() else -1
            if size > row.bytes:
                os.truncate(path, row.bytes)
                self.repairs.append(f"{path.name}: {size - row.bytes} bytes were never acknowledged; cut off")
            elif size < row.bytes:
                what = "is missing" if size < 0 else f"has {size} bytes of {row.bytes}"
                self._set_aside(row.number, what)

    def _set_aside(self, number: int, what: str) -> None:
        """A segment can't be read back: keep its counts, with its lines as lost, and keep the file apart."""
        row = self._segments.get(number)
        if row is None:
            return
        path = self._path(row.kind, number)
        lost = {(minute_of(row.clock_unix_ns), f"{row.kind}_lost"): row.rows}
        if row.kind == LINES:
            lost[minute_of(row.clock_unix_ns), "lines_received"] = -row.rows
        counts = Row(
            number=number,
            kind=COUNTS,
            bytes=0,
            rows=0,
            clock_mono_ns=row.clock_mono_ns,
            clock_unix_ns=row.clock_unix_ns,
            counts=added_up(row.counts, lost),
        )
        if path.exists():
            aside = self.folder / DAMAGED
            aside.mkdir(exist_ok=True)
            os.rename(path, aside / path.name)
        self._opened.commit(put=[counts])
        self._segments[number] = counts
        self.repairs.append(f"{path.name}: {what}; set aside, its {row.rows} rows are counted as lost")

    def _seal(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._open_number = -1, 0

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:010d}{segment_files.SUFFIX}"


__all__ = ["Added", "SegmentRef", "Spool", "SpoolError", "WorkerNumbers"]
