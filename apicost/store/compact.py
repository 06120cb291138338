"""Fewer, sorted files and rollups, made beside the daemon: `python -m apicost.store.compact LEDGER`.

Rules of this file:
- A process of its own, one at a time per ledger; it reads and writes bounded memory.
- New files replace old ones in one transaction, and only where the new ones have the control sums that the
  catalogue holds for the old ones. Anything else leaves the ledger as it is and is reported.
- A finished day gets its minutes in one sorted file, and rollups by quarter hour and by day. Rows that come
  later are added by making all three anew. Where retention has taken the minutes away, the quarter hours
  are the finest there is, and late rows go into them.
- A day still running only has its small files merged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import duckdb

from apicost.core import meter, records
from apicost.store import daycut, duck, older, retention, segments, shapes
from apicost.store.catalogue import (
    COMPACT_LOCK,
    DAY_S,
    MINUTE_S,
    QUARTER_S,
    READERS_LOCK,
    Catalogue,
    LedgerError,
    Segment,
    add,
    lock,
    remove,
)

FEW = 16  # so many small files of a running day are left alone
SMALL_BYTES = 8 << 20  # a file of this size is not merged again while its day runs
MOST_EXCHANGES = 500_000  # rows sorted at a time, 54 B each on disk and ten times that in memory
SETTLED_S = 3_600  # after its end, when a day counts as finished: late lines have come


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a compaction did; `problems` are what it left as it was, with the reason."""

    merged: int = 0
    made: int = 0
    rolled_days: int = 0
    retired: int = 0
    deleted_files: int = 0
    busy: bool = False
    problems: list[str] = field(default_factory=list)


class _Retired(Exception):
    """Retention took some of the old files meanwhile: the new ones must not bring them back."""


class Compaction:
    """One run over one ledger."""

    def __init__(self, catalogue: Catalogue, connection: duckdb.DuckDBPyConnection, now_unix_s: int) -> None:
        self.outcome = Outcome()
        self._catalogue = catalogue
        self._folder = catalogue.folder
        self._connection = connection
        self._now = now_unix_s
        # Names of new files: no two runs that commit anything have the same number.
        self._number = int(catalogue.rows("select coalesce(max(seq), 0) from sqlite_sequence")[0][0])
        self._made = 0
        self._rolled_days: set[int] = set()

    def run(self) -> None:
        listing = self._catalogue.segments()
        for day in sorted({segment.day_unix_s for segment in listing}):
            of_day = [segment for segment in listing if segment.day_unix_s == day]
            settled = day + DAY_S + SETTLED_S <= self._now
            for kind in segments.ROLLED_UP:
                self._guarded(partial(self._rolled_up, kind), of_day, settled)
            for work in (self._completeness, self._samples, self._exchanges):
                self._guarded(work, of_day, settled)

    def _guarded(
        self, work: Callable[[Sequence[Segment], bool], None], of_day: Sequence[Segment], settled: bool
    ) -> None:
        """One day's files of a kind; what can't be read stays as it is and does not stop the rest."""
        try:
            work(of_day, settled)
        except (duckdb.Error, LedgerError) as error:
            bad = [found for s in of_day if (found := segments.damage(self._folder, s))]
            told = [str(damage) for damage in bad] or [f"{segments.day_folder(of_day[0].day_unix_s)}: {error}"]
            self.outcome.problems += [text for text in told if text not in self.outcome.problems]

    def _rolled_up(self, kind: str, of_day: Sequence[Segment], settled: bool) -> None:
        """Usage or shapes of a day."""
        found = [s for s in of_day if s.kind == kind]
        loose = [s for s in found if s.grain_s == MINUTE_S and not s.rolled]
        if not settled:
            small = [s for s in loose if s.bytes < SMALL_BYTES]
            if len(small) >= FEW:
                self._swap(small, [self._sum_up(small, MINUTE_S)], proof=small)
            return
        if not loose:
            return
        rolled = [s for s in found if s.rolled]
        quarters = [s for s in found if s.grain_s == QUARTER_S]
        made: list[Segment] = []
        if rolled or not quarters:
            facts = rolled + loose
            minutes = replace(self._sum_up(facts, MINUTE_S), rolled=True)
            finest, made = [minutes], [minutes]
        else:  # the minutes have gone; what came late goes straight into the quarter hours
            facts = finest = quarters + loose
        by_quarter = self._sum_up(finest, QUARTER_S)
        by_day = self._sum_up([by_quarter], DAY_S)
        self._swap(found, [*made, by_quarter, by_day], proof=facts)
        self._rolled_days.add(of_day[0].day_unix_s)
        self.outcome.rolled_days = len(self._rolled_days)

    def _completeness(self, of_day: Sequence[Segment], settled: bool) -> None:
        found = [s for s in of_day if s.kind == "completeness"]
        if len(found) >= (2 if settled else FEW):
            sql = duck.query("completeness_by_minute", source=self._source(found))
            sql = f"select minute_unix_s, node, metric, metric_value as value from ({sql})"
            self._swap(found, [self._write(found[0], MINUTE_S, sql)], proof=())

    def _samples(self, of_day: Sequence[Segment], settled: bool) -> None:
        found = [s for s in of_day if s.kind == "samples"]
        if len(found) >= (2 if settled else FEW):
            sql = self._grouped(self._source(found), MINUTE_S, shapes.SAMPLE_KEYS, shapes.SAMPLE_FIGURES)
            self._swap(found, [self._write(found[0], MINUTE_S, sql)], proof=())

    def _exchanges(self, of_day: Sequence[Segment], settled: bool) -> None:
        small = [s for s in of_day if s.kind == "exchanges" and s.row_count < MOST_EXCHANGES // 2]
        if len(small) < (2 if settled else FEW):
            return
        while len(small) > 1:
            group = [small.pop(0)]
            while small and sum(s.row_count for s in group) + small[0].row_count <= MOST_EXCHANGES:
                group.append(small.pop(0))
            if len(group) > 1:
                columns = ", ".join(c.name for c in records.EXCHANGE)
                sql = duck.query("rewrite_exchanges", columns=columns, source=self._source(group))
                self._swap(group, [self._write(group[0], 0, sql)], proof=group)

    def _source(self, of: Sequence[Segment]) -> str:
        return duck.source(self._folder / segment.name for segment in of)

    def _sum_up(self, of: Sequence[Segment], grain_s: int) -> Segment:
        """A file of usage or shapes summed up from others of one day, in buckets of `grain_s`."""
        source = older.source([self._folder / segment.name for segment in of])
        if of[0].kind == "usage":
            sql = self._grouped(source, grain_s, meter.TEXT_KEYS, shapes.USAGE_FIGURES)
        else:
            if grain_s == QUARTER_S:  # days are made of quarter hours
                source = daycut.bounded(self._connection, source)
            sql = self._grouped(source, grain_s, shapes.KEYS, shapes.SHAPE_FIGURES)
        return self._write(of[0], grain_s, sql)

    def _grouped(self, source: str, grain_s: int, keys: Sequence[str], figures: Mapping[str, str]) -> str:
        """Rows of equal keys together, in buckets of `grain_s`, sorted as files of exchanges are."""
        bucket = f"minute_unix_s - (minute_unix_s % {grain_s} + {grain_s}) % {grain_s}"
        sql = duck.query(
            "rewrite_grouped",
            bucket=bucket,
            keys=", ".join(keys),
            figures=shapes.figures_sql(figures),
            source=source,
            groups=f"{bucket}, {', '.join(keys)}",
        )
        named = ["bucket_unix_s as minute_unix_s", *keys, *(f"sum_{name} as {name}" for name in figures)]
        return f"select {', '.join(named)} from ({sql})"

    def _write(self, like: Segment, grain_s: int, sql: str) -> Segment:
        """One new file of the kind and day of `like`, durable, with its control sums."""
        self._made += 1
        grain = f"-{grain_s}" if grain_s else ""
        name = f"{segments.day_folder(like.day_unix_s)}/{like.kind}{grain}-c{self._number:09}-{self._made}.parquet"
        path = self._folder / name

        def put(temporary: Path) -> None:
            duck.write(self._connection, sql, temporary, row_group=segments.ROW_GROUP)

        size = segments.place(path, put)
        wire_bytes = " + ".join(segments.WIRE)
        request = f"case when kind = {int(records.RowKind.EXCHANGE)} then 1 else 0 end"
        calls, wire = {
            "exchanges": (request, wire_bytes),
            "usage": ("calls", wire_bytes),
            "shapes": ("calls", wire_bytes),
        }.get(like.kind, ("0", "0"))
        control = duck.query("control", calls=calls, wire_bytes=wire, source=duck.source([path]))
        sums = self._connection.execute(control).fetchone()
        assert sums is not None  # an aggregate has one row
        return Segment(
            kind=like.kind, grain_s=grain_s, day_unix_s=like.day_unix_s, name=name, row_count=int(sums[2]), bytes=size,
            crc32=segments.checksum(path), calls=int(sums[0]), wire_bytes=int(sums[1]),
        )  # fmt: skip

    def _swap(self, old: Sequence[Segment], new: Sequence[Segment], *, proof: Sequence[Segment]) -> None:
        """Replace files by files of equal sums, in one transaction.

        proof: those of `old` whose sums each file of `new` must have; none for kinds without control sums.
        """
        wanted = (sum(s.calls for s in proof), sum(s.wire_bytes for s in proof))
        for made in new:
            if (made.calls, made.wire_bytes) != wanted:
                self._discard(new)
                raise LedgerError(
                    f"{made.name}: calls and wire bytes {(made.calls, made.wire_bytes)} != {wanted} of the files "
                    "it was made from; they stay, and it is removed"
                )
        try:
            with self._catalogue.transaction() as change:
                if remove(change, old, self._now) != len(old):
                    raise _Retired
                add(change, new, self._now)
        except _Retired:
            self._discard(new)
            return
        self.outcome.merged += len(old)
        self.outcome.made += len(new)

    def _discard(self, made: Sequence[Segment]) -> None:
        for segment in made:
            (self._folder / segment.name).unlink(missing_ok=True)


def compact(
    folder: Path | str,
    *,
    now_unix_s: int | None = None,
    memory_mb: int = duck.MEMORY_MB,
    keep_days: tuple[int, int, int] | None = None,
) -> Outcome:
    """Compact a ledger once, apply retention, delete what nobody reads any more.

    now_unix_s: the wall clock, where it is not to be read. keep_days: exchange, minute and hour days of
    `retention.retire`; None keeps everything.
    Raises LedgerError where there is no ledger, OSError when the disk is full; the ledger is whole then too.
    """
    folder = Path(folder)
    Catalogue.read(folder).close()  # no ledger is made where none was
    now = int(time.time()) if now_unix_s is None else now_unix_s
    with Catalogue.open(folder) as catalogue, lock(folder / COMPACT_LOCK) as alone:
        if not alone:
            return Outcome(busy=True)
        retention.sweep(catalogue, retention.is_compacted)  # what a killed run left
        # Files of this run's listing stay until it ends, though the daemon may retire them.
        with (
            lock(folder / READERS_LOCK, shared=True, wait=True),
            duck.session(memory_mb=memory_mb, threads=1, spill_in=folder) as duckdb_,
        ):
            run = Compaction(catalogue, duckdb_, now)
            run.run()
        outcome = run.outcome
        if keep_days is not None:
            exchange_days, minute_days, hour_days = keep_days
            retired = retention.retire(
                catalogue, exchange_days=exchange_days, minute_days=minute_days, hour_days=hour_days, now_unix_s=now
            )
            outcome.retired, outcome.deleted_files = retired.segments, retired.files
        else:
            outcome.deleted_files = retention.purge(catalogue, now_unix_s=now)
    return outcome


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 done (or another run is at it), 1 something could not be compacted, 2 no usable ledger."""
    parser = argparse.ArgumentParser(
        prog="python -m apicost.store.compact",
        description="Merge a ledger's small files, make its rollups, apply retention. Safe beside a running daemon.",
    )
    parser.add_argument("ledger", type=Path, help="the ledger's folder")
    parser.add_argument("--exchange-days", type=int, metavar="N", help="keep exchanges for N days (default: for ever)")
    parser.add_argument("--minute-days", type=int, metavar="N", help="keep usage by the minute for N days")
    parser.add_argument("--hour-days", type=int, metavar="N", help="keep usage in rollups for N days")
    parser.add_argument("--memory-mb", type=int, default=duck.MEMORY_MB, help="working memory (default: %(default)s)")
    options = parser.parse_args(argv)
    for_ever = 1_000_000
    days = [for_ever if d is None else d for d in (options.exchange_days, options.minute_days, options.hour_days)]
    try:
        outcome = compact(options.ledger, memory_mb=options.memory_mb, keep_days=(days[0], days[1], days[2]))
    except (LedgerError, OSError) as error:
        print(f"compact: {error}", file=sys.stderr)
        return 2
    for problem in outcome.problems:
        print(f"compact: {problem}", file=sys.stderr)
    print(json.dumps({name: getattr(outcome, name) for name in Outcome.__slots__}))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
