"""The spool's SQLite register: which segments are there and up to which byte, and each worker's numbers.

Rules of this file:
- The register is the authority. A file it doesn't name, and bytes beyond the length it gives, were never
  acknowledged; they are swept at start-up.
- WAL with synchronous=FULL: a transaction that returned is on disk.
- Numbers of segments are never used twice, so that a consumer can remember what it has consumed.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from apicost.ingest.numbering import Hole, Numbers

_TABLES = """
create table if not exists meta (key text primary key, value text not null) without rowid;
create table if not exists segment (
    number integer primary key autoincrement,
    kind text not null,             -- lines, flows, or counts (no file)
    bytes integer not null,         -- durable length of the file
    rows integer not null,
    clock_mono_ns integer not null, -- the clocks read together when it was written
    clock_unix_ns integer not null,
    counts text not null            -- JSON: [[minute_unix_s, metric, value], ...]
);
create table if not exists worker (
    node text not null, pid integer not null, started_unix_ms integer not null,
    seen_unix_ns integer not null,
    numbers text not null,          -- JSON of numbering.Numbers
    primary key (node, pid, started_unix_ms)
) without rowid;
"""

WorkerKey = tuple[str, int, int]  # node, pid, started_unix_ms
Counts = Mapping[tuple[int, str], int]  # (minute_unix_s, metric) -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One segment as the register has it. counts: additive, by minute and metric."""

    number: int
    kind: str
    bytes: int
    rows: int
    clock_mono_ns: int
    clock_unix_ns: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Seen:
    """One worker: its numbers, and when it last posted."""

    numbers: Numbers
    unix_ns: int


class Register:
    """One SQLite file. Not safe between threads: its owner holds a lock."""

    def __init__(self, path: Path, now_unix_ms: int) -> None:
        """Open or make it. Raises sqlite3.Error or OSError."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.execute("pragma cache_size = -256")  # kB: what is read often is small
            self._db.executescript(_TABLES)
            self._db.execute("insert or ignore into meta values ('spool', ?)", (secrets.token_hex(4),))
            self._db.execute("insert or ignore into meta values ('since_unix_ms', ?)", (str(now_unix_ms),))
            meta = dict(self._db.execute("select key, value from meta"))
        except BaseException:
            self._db.close()
            raise
        self.spool: str = meta["spool"]
        # Workers that started before this may have written lines that this register never knew of.
        self.since_unix_ms = int(meta["since_unix_ms"])

    def close(self) -> None:
        self._db.close()

    def rows(self) -> list[Row]:
        """All segments, oldest first."""
        found = self._db.execute(
            "select number, kind, bytes, rows, clock_mono_ns, clock_unix_ns, counts from segment order by number"
        )
        return [
            Row(
                number=number,
                kind=kind,
                bytes=size,
                rows=rows,
                clock_mono_ns=mono,
                clock_unix_ns=unix,
                counts={(minute, metric): value for minute, metric, value in msgspec.json.decode(counts)},
            )
            for number, kind, size, rows, mono, unix, counts in found
        ]

    def next_number(self) -> int:
        """A number that no segment had before."""
        found = self._db.execute("select seq from sqlite_sequence where name = 'segment'").fetchone()
        return (found[0] if found else 0) + 1

    def workers(self) -> dict[WorkerKey, Seen]:
        """All workers."""
        found = self._db.execute("select node, pid, started_unix_ms, seen_unix_ns, numbers from worker")
        return {(node, pid, started): Seen(_numbers(text), seen) for node, pid, started, seen, text in found}

    def commit(
        self,
        *,
        put: Iterable[Row] = (),
        remove: Iterable[int] = (),
        workers: Mapping[WorkerKey, Seen] | None = None,
        forget: Iterable[WorkerKey] = (),
        since_unix_ms: int | None = None,
    ) -> None:
        """Change everything in one transaction. Raises sqlite3.Error; then nothing may be assumed."""
        self._db.execute("begin immediate")
        try:
            self._db.executemany(
                "insert or replace into segment values (?, ?, ?, ?, ?, ?, ?)",
                [
                    (r.number, r.kind, r.bytes, r.rows, r.clock_mono_ns, r.clock_unix_ns, _counts_text(r.counts))
                    for r in put
                ],
            )
            self._db.executemany("delete from segment where number = ?", [(number,) for number in remove])
            self._db.executemany(
                "insert or replace into worker values (?, ?, ?, ?, ?)",
                [(*key, seen.unix_ns, _numbers_text(seen.numbers)) for key, seen in (workers or {}).items()],
            )
            self._db.executemany("delete from worker where node = ? and pid = ? and started_unix_ms = ?", forget)
            if since_unix_ms is not None:
                self._db.execute("update meta set value = ? where key = 'since_unix_ms'", (str(since_unix_ms),))
            self._db.execute("commit")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise
        if since_unix_ms is not None:
            self.since_unix_ms = since_unix_ms


def _counts_text(counts: Counts) -> str:
    return msgspec.json.encode([[minute, metric, value] for (minute, metric), value in counts.items()]).decode()


def _numbers_text(numbers: Numbers) -> str:
    return msgspec.json.encode(numbers).decode()


def _numbers(text: str) -> Numbers:
    return msgspec.json.decode(text, type=Numbers)


__all__ = ["Counts", "Hole", "Register", "Row", "Seen", "WorkerKey"]
