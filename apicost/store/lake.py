"""The ledger as the daemon writes it: sealed Parquet segments by day, and a catalogue that makes them one.

Rules of this file:
- A step's outputs, the names of its inputs and what it left open become part of the ledger in one
  transaction. Before it the step has not happened, after it the step has happened once.
- Files are durable before the transaction that lists them. A crash between the two leaves files that no
  list names; the next start removes them.
- Rows are never changed. Compaction replaces files by files of equal sums; retention removes whole files.
- Neither pandas nor DuckDB is imported here: the daemon lives in 150 MB. Reading is `store/query.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from apicost.core import records
from apicost.core.naming.operations import Operation
from apicost.store import documented, retention, segments
from apicost.store.catalogue import COMPACT_LOCK, WRITER_LOCK, Catalogue, LedgerError, Segment, add, lock
from apicost.store.privacy import address_key, with_privacy
from apicost.store.segments import Damage

__all__ = ["Commit", "Lake", "LedgerError", "Repair", "with_privacy"]

PACKED_ROWS = 4_096  # of the carry in one block


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a commit did. repeated: its inputs were in the ledger already, so nothing was written."""

    step: int
    repeated: bool
    segments: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What the start found: leftovers of a crash, now removed, and segments that can't be read."""

    leftovers: tuple[str, ...] = ()
    damaged: tuple[Damage, ...] = ()

    def findings(self) -> tuple[str, ...]:
        """A sentence for each."""
        told = [f"{name}: left by an unfinished step, removed" for name in self.leftovers]
        return (*told, *(str(damage) for damage in self.damaged))


class Lake:
    """The ledger, open for writing. One process at a time; its threads may share it.

    repaired: what opening it found.
    """

    def __init__(self, catalogue: Catalogue, lease: contextlib.ExitStack, clock: Callable[[], float]) -> None:
        self.folder = catalogue.folder
        self.repaired = Repair()
        self._catalogue = catalogue
        self._lease = lease
        self._clock = clock
        self._committing = threading.Lock()

    @classmethod
    def open(cls, folder: Path | str, *, clock: Callable[[], float] = time.time) -> Lake:
        """Open the ledger in a folder, creating it where there is none, and mend what a crash left.

        clock: wall clock, seconds since the epoch.
        Raises LedgerError when another process writes it or its catalogue is damaged; OSError when the
        folder can't be written.
        """
        folder = Path(folder)
        with contextlib.ExitStack() as stack:
            catalogue = stack.enter_context(Catalogue.open(folder))
            if not stack.enter_context(lock(folder / WRITER_LOCK)):
                holder = (folder / WRITER_LOCK).read_text().strip() or "unknown"
                raise LedgerError(
                    f"{folder}: process {holder} writes this ledger; stop it, or give this one another state_dir"
                )
            (folder / WRITER_LOCK).write_text(f"{os.getpid()}\n")
            lake = cls(catalogue, stack.pop_all(), clock)
            lake.repaired = lake.repair()
            return lake

    @property
    def repairs(self) -> tuple[str, ...]:
        """What opening it found, a sentence for each."""
        return self.repaired.findings()

    def close(self) -> None:
        self._lease.close()

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(
        self, inputs: Sequence[str], outputs: Mapping[str, pa.Table], carry: Mapping[str, pa.Table] | None = None
    ) -> Commit:
        """Make one correlation step part of the ledger, once; durable when this returns.

        inputs: names of what the step consumed, unique for ever (a spool segment's name). May be empty: time
            alone can end an exchange.
        outputs: kinds of `segments.COLUMNS`, each with its columns of `records`; what is absent or empty
            writes nothing.
        carry: replaces the former carry, name by name as a whole. None leaves it.

        Inputs that are all in the ledger already make this a no-op: a repeat after a crash. Raises LedgerError
        when only some are: such a step would count them twice. Raises OSError (disk full) with nothing
        changed: keep the inputs and commit again later.
        """
        for kind, batch in outputs.items():
            records.check(batch, segments.COLUMNS[kind], f"ledger: {kind}")
        with self._committing:
            return self._commit(inputs, outputs, carry)

    def _commit(
        self, inputs: Sequence[str], outputs: Mapping[str, pa.Table], carry: Mapping[str, pa.Table] | None
    ) -> Commit:
        known = self.consumed(inputs)
        step = self._step()
        if inputs and len(known) == len(set(inputs)):
            return Commit(step=step, repeated=True)
        if known:
            raise LedgerError(f"{self.folder}: a step would count these inputs a second time: {sorted(known)}")
        now = int(self._clock())
        step += 1
        written: list[Segment] = []
        try:
            for kind, batch in outputs.items():
                if batch.num_rows:
                    written += self._write(step, kind, batch)
            blobs = {name: _pack(batch) for name, batch in (carry or {}).items()}
            with self._catalogue.transaction() as change:
                add(change, written, now)
                change.executemany("insert into consumed values (?, ?, ?)", [(i, step, now) for i in inputs])
                change.execute("update counter set value = ? where name = 'step'", (step,))
                if carry is not None:
                    change.execute("delete from carry")
                    change.executemany("insert into carry values (?, ?)", blobs.items())
        except BaseException:
            # Not needed for correctness (no list names them), but a full disk wants its room back.
            for segment in written:
                with contextlib.suppress(OSError):
                    (self.folder / segment.name).unlink()
            raise
        return Commit(step=step, repeated=False, segments=len(written), bytes=sum(s.bytes for s in written))

    def _write(self, step: int, kind: str, batch: pa.Table) -> list[Segment]:
        return [
            segments.write(self.folder, f"{segments.day_folder(day)}/{kind}-{step:010}.parquet", kind, day, rows)
            for day, rows in segments.by_day(kind, batch)
        ]

    def _step(self) -> int:
        return int(self._catalogue.rows("select value from counter where name = 'step'")[0][0])

    def consumed(self, inputs: Iterable[str]) -> set[str]:
        """Which of these inputs are in the ledger: the spool may drop them."""
        rows = self._catalogue.rows(
            "select input from consumed where input in (select value from json_each(?))", (json.dumps(list(inputs)),)
        )
        return {row[0] for row in rows}

    def forget(self, inputs: Iterable[str]) -> None:
        """Drop the memory of inputs that can't come again, once the spool has dropped them."""
        with self._catalogue.transaction() as change:
            change.executemany("delete from consumed where input = ?", [(i,) for i in inputs])

    def carry(self) -> dict[str, pa.Table]:
        """What the last step left open, as it was given to `commit`."""
        return {
            name: _unpack(blob) for name, blob in self._catalogue.rows("select name, batch from carry order by name")
        }

    def repair(self) -> Repair:
        """Remove what a crash left, and name the segments that can't be read; the rest stays usable."""
        with lock(self.folder / COMPACT_LOCK) as alone:
            # What a compaction is writing now is no leftover; its own next run removes what it leaves.
            def mine(path: Path) -> bool:
                return alone or not retention.is_compacted(path)

            leftovers = retention.sweep(self._catalogue, mine)
        found = (segments.damage(self.folder, segment) for segment in self._catalogue.segments())
        return Repair(leftovers=tuple(leftovers), damaged=tuple(d for d in found if d))

    def verify(self) -> list[Damage]:
        """Read every live segment and compare it with what was written; slow."""
        found = (segments.damage(self.folder, s, whole=True) for s in self._catalogue.segments())
        return [damage for damage in found if damage]

    def with_privacy(self, exchanges: pa.Table, choice: str) -> pa.Table:
        """Exchanges as they may be stored: `privacy.with_privacy` under this ledger's own key."""
        return with_privacy(exchanges, choice, key=address_key(self.folder) if choice == "hash" else b"")

    def note_operations(self, operations: Sequence[Operation], now_unix_s: int) -> None:
        """Remember which operations the documents have now; call it whenever they were loaded.

        operations: all of all APIs. Raises OSError when the ledger can't be written: ask again later.
        """
        documented.note(self._catalogue, operations, now_unix_s)

    def retire(self, *, exchange_days: int, minute_days: int, hour_days: int) -> retention.Retired:
        """Take out what is older than the given numbers of days, and free what nobody reads any more."""
        now = int(self._clock())
        return retention.retire(
            self._catalogue, exchange_days=exchange_days, minute_days=minute_days, hour_days=hour_days, now_unix_s=now
        )

    def stats(self) -> dict[str, int]:
        """Figures for metrics: live segments, their bytes and rows by kind, the last step."""
        figures = {"step": self._step()}
        sql = (
            "select kind, count(*), sum(bytes), sum(row_count) from segment where removed_unix_s is null group by kind"
        )
        for kind, count, size, rows in self._catalogue.rows(sql):
            figures |= {f"{kind}_segments": count, f"{kind}_bytes": size, f"{kind}_rows": rows}
        return figures


def _pack(batch: pa.Table) -> memoryview:
    """A table as an Arrow stream. Rows go a few thousand at a time: what is compressed at once is in memory twice."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        # One chunk: a stream can't replace a dictionary of an earlier chunk in every reader.
        writer.write_table(batch.unify_dictionaries().combine_chunks(), max_chunksize=PACKED_ROWS)
    return memoryview(sink.getvalue())


def _unpack(blob: bytes) -> pa.Table:
    with pa.ipc.open_stream(blob) as reader:
        return reader.read_all()
