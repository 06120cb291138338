"""What reports ask of the ledger, while the daemon goes on writing it.

Rules of this file:
- A `Ledger` is one state of the catalogue: whatever is committed, compacted or retired meanwhile, its
  answers agree with each other.
- Each fact counts once: from the day's rollup where the whole day is asked for, from quarter hours or
  minutes where it is cut, and minutes that no rollup holds yet always as they are.
- A segment that can't be read is left out and named in `Ledger.damaged`, with what is missing for it. Where
  the same sums stand in another grain, that is read instead and nothing is missing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from apicost.core import meter, records
from apicost.store import duck, segments, shapes
from apicost.store.catalogue import (
    DAY_S,
    MINUTE_S,
    QUARTER_S,
    READERS_LOCK,
    Catalogue,
    LedgerError,
    Segment,
    lock,
)  # fmt: skip
from apicost.store.segments import Damage

__all__ = ["DAY_S", "KEYS", "Ledger", "LedgerError"]

T = TypeVar("T")
# So many rows of an answer are grouped in one go: about 700 B of DuckDB's memory for each.
ANSWER_AT_ONCE = 60_000
NS_PER_S = 1_000_000_000
# What usage can be grouped by; the time is given by the edges.
KEYS = meter.TEXT_KEYS
_FILTERS = {column.name for column in records.EXCHANGE if column.type == records.TEXT}


class Ledger:
    """One state of a ledger, open for questions. For short-lived processes: it imports DuckDB.

    damaged: segments left out of the answers so far, each with what is missing for it; reports print it.
    """

    def __init__(self, folder: Path, listing: Sequence[Segment], memory_mb: int, threads: int) -> None:
        self.folder = folder
        self._listing = listing
        self._limits = (memory_mb, threads)
        self._connection: duckdb.DuckDBPyConnection  # while a question is asked
        self._bad: dict[str, Damage] = {}  # found so far, by name
        self._missing: dict[str, Damage] = {}
        self._lease = contextlib.ExitStack()

    @classmethod
    def open(cls, folder: Path | str, *, memory_mb: int = duck.MEMORY_MB, threads: int = duck.THREADS) -> Ledger:
        """Take the ledger's present state; needs the right to read, none to write.

        Raises LedgerError where there is none, or its catalogue is damaged.
        """
        folder = Path(folder)
        with contextlib.ExitStack() as stack:
            with Catalogue.read(folder) as catalogue:
                # Held until `close`: the files of this listing stay, whatever is compacted meanwhile.
                stack.enter_context(lock(folder / READERS_LOCK, shared=True, wait=True))
                listing = catalogue.segments()
            ledger = cls(folder, listing, memory_mb, threads)
            ledger._lease = stack.pop_all()
            return ledger

    def close(self) -> None:
        self._lease.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def damaged(self) -> tuple[Damage, ...]:
        return tuple(self._missing[name] for name in sorted(self._missing))

    def span(self) -> tuple[int, int] | None:
        """First and last UTC day that has usage: starts in unix seconds. None for an empty ledger."""
        days = [segment.day_unix_s for segment in self._listing if segment.kind == "usage"]
        return (min(days), max(days)) if days else None

    def usage(
        self, edges: Sequence[int], by: Sequence[str] = KEYS, *, where: Mapping[str, str | None] | None = None
    ) -> pa.Table:
        """Usage of a period, by buckets of time and some keys.

        edges: unix seconds, ascending: start, ..., end (exclusive); a bucket from each to the next. Two
            give one bucket. Local midnights make local days.
        by: names of `KEYS`. where: key -> value that rows must have; None for rows without one.

        Returns columns as in `records.USAGE`, sorted by key: `minute_unix_s` is the start of the bucket,
        keys not in `by` are null. Raises ValueError for edges or keys that are none.
        """
        edges = [int(edge) for edge in edges]
        if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"edges {edges} are not two or more ascending times")
        conditions = _conditions(dict.fromkeys(by) | dict(where or {}), set(KEYS), where or {})
        chosen = [key for key in KEYS if key in set(by)]

        bucket = _bucket_sql(edges)

        def ask(paths: Sequence[Path]) -> list[pa.Table]:
            tables: list[pa.Table] = []
            for condition, values in self._passes(paths, chosen, len(edges) - 1, where or {}):
                sql = duck.query(
                    "usage",
                    bucket=bucket,
                    keys="".join(f"{key}, " for key in chosen),
                    sums=", ".join(f"cast(sum({name}) as bigint) as sum_{name}" for name in meter.SUMS),
                    source=duck.source(paths),
                    start=edges[0],
                    end=edges[-1],
                    filter=conditions[0] + condition,
                    groups=", ".join([bucket, *chosen]),
                )
                # Merged pass by pass: DuckDB's batches hold on to their memory, text included, while any of
                # their columns lives.
                tables.append(meter.merge(self._as_usage(sql, [*conditions[1], *values], chosen)))
            return tables

        nothing: list[pa.Table] = []
        tables = self._answer("usage", edges, ask, nothing)
        return tables[0] if len(tables) == 1 else meter.merge(tables)

    def completeness(self, start_unix_s: int, end_unix_s: int) -> dict[str, int]:
        """How complete the data of a period is: the sum of each metric of `records.COMPLETENESS`."""

        def ask(paths: Sequence[Path]) -> dict[str, int]:
            sql = duck.query("completeness", source=duck.source(paths), start=int(start_unix_s), end=int(end_unix_s))
            return {metric: int(value) for metric, value in self._connection.execute(sql).fetchall()}

        return self._answer("completeness", [start_unix_s, end_unix_s], ask, {})

    def shapes(
        self,
        start_unix_s: int,
        end_unix_s: int,
        *,
        by: Sequence[str] = shapes.KEYS,
        where: Mapping[str, str | None] | None = None,
    ) -> pa.Table:
        """What the traffic of a period looked like: one bucket, grouped by some keys.

        by: text columns of `records.SHAPE_KEYS`. where: key -> value that rows must have; None for rows without one.
        Returns columns as in `records.SHAPE`, sorted by key: `minute_unix_s` is the start, keys not in `by` are
        null. Raises ValueError for keys that are none.
        """
        wanted = dict(where or {})
        strange = sorted((set(by) | set(wanted)) - set(shapes.KEYS))
        if strange:
            raise ValueError(f"no such keys: {strange}; there are {sorted(shapes.KEYS)}")

        def ask(paths: Sequence[Path]) -> pa.Table:
            with duck.session(memory_mb=self._limits[0], threads=self._limits[1]) as connection:
                source = shapes.of_files(connection, *self._cut_and_whole(paths))
                return shapes.added_up(
                    connection, source, records.SHAPE, shapes.SHAPE_FIGURES,
                    start_unix_s=start_unix_s, end_unix_s=end_unix_s, by=by, where=wanted,
                )  # fmt: skip

        return self._answer("shapes", [start_unix_s, end_unix_s], ask, records.empty(records.SHAPE))

    def _cut_and_whole(self, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
        """Files of days that stand in one rollup, and those of days that do not: the latter are cut when read."""
        segment_of = {self.folder / segment.name: segment for segment in self._listing}
        loose = {segment_of[path].day_unix_s for path in paths if segment_of[path].grain_s == MINUTE_S}
        rolled = [path for path in paths if segment_of[path].day_unix_s not in loose]
        return rolled, [path for path in paths if segment_of[path].day_unix_s in loose]

    def samples(self, start_unix_s: int, end_unix_s: int) -> pa.Table:
        """What validating sampled bodies of a period found: one bucket of `records.SAMPLE`, sorted by key."""

        def ask(paths: Sequence[Path]) -> pa.Table:
            with duck.session(memory_mb=self._limits[0], threads=self._limits[1]) as connection:
                return shapes.added_up(
                    connection, duck.source(paths), records.SAMPLE, shapes.SAMPLE_FIGURES,
                    start_unix_s=start_unix_s, end_unix_s=end_unix_s, by=shapes.SAMPLE_KEYS, where={},
                )  # fmt: skip

        return self._answer("samples", [start_unix_s, end_unix_s], ask, records.empty(records.SAMPLE))

    def exchanges(
        self, start_unix_s: int, end_unix_s: int, *, where: Mapping[str, str | None] | None = None, limit: int = 20
    ) -> pa.Table:
        """The exchanges of a period with most wire bytes, largest first; ended in [start, end).

        where: a text column of `records.EXCHANGE` -> its value, None for absent.
        Returns columns as in `records.EXCHANGE`. They are kept for days only: no rows may mean that they
        have gone.
        """
        condition, values = _conditions(dict(where or {}), _FILTERS, where or {})
        schema = records.schema(records.EXCHANGE)

        def ask(paths: Sequence[Path]) -> pa.Table:
            sql = duck.query(
                "exchanges", columns=", ".join(schema.names), source=duck.source(paths), filter=condition,
                start_ns=int(start_unix_s) * NS_PER_S, end_ns=int(end_unix_s) * NS_PER_S, limit=int(limit),
            )  # fmt: skip
            found = [_typed(batch, schema) for batch in duck.batches(self._connection, sql, values)]
            return pa.concat_tables(found) if found else schema.empty_table()

        return self._answer("exchanges", [start_unix_s, end_unix_s], ask, schema.empty_table())

    def _passes(
        self, paths: Sequence[Path], chosen: Sequence[str], buckets: int, where: Mapping[str, str | None]
    ) -> Iterator[tuple[str, list[object]]]:
        """Conditions that cut a large answer into some that fit DuckDB's memory: by API, as files are sorted.

        A grouping that does not fit is spilled, at several times the CPU time and beyond the memory limit.
        """
        sizes = {self.folder / segment.name: segment.row_count for segment in self._listing}
        rows = sum(sizes[path] for path in paths)
        if rows <= ANSWER_AT_ONCE or "api" not in chosen or "api" in where:
            yield "", []
            return
        # What one file has of distinct keys tells how many rows the answer may have: as many for each bucket
        # where days are buckets, some more where other days bring keys of their own into one.
        largest = max(paths, key=sizes.__getitem__)
        sql = duck.query("distinct", keys=", ".join(chosen), source=duck.source([largest]))
        answer = max(2, min(buckets, len(paths))) * int(self._connection.sql(sql).fetchall()[0][0])
        most = rows * ANSWER_AT_ONCE // max(answer, 1)
        if most >= rows:
            yield "", []
            return
        found = self._connection.sql(duck.query("rows_by_api", source=duck.source(paths))).fetchall()
        group: list[object] = []
        held = 0
        for api, count in found:
            if api is None:
                yield " and api is null", []
                continue
            if group and held + count > most:
                yield f" and api in ({', '.join('?' * len(group))})", group
                group, held = [], 0
            group.append(api)
            held += count
        if group:
            yield f" and api in ({', '.join('?' * len(group))})", group

    def _as_usage(self, sql: str, values: Sequence[object], chosen: Sequence[str]) -> list[pa.Table]:
        """Rows of the query `usage` as USAGE, in no order."""
        schema = records.schema(records.USAGE)
        tables = []
        for batch in duck.batches(self._connection, sql, values):
            columns: list[Any] = []
            for field in schema:
                if field.name == "minute_unix_s":
                    columns.append(batch.column("bucket_unix_s").cast(pa.int64()))
                elif field.type == records.TEXT:
                    text = batch.column(field.name) if field.name in chosen else pa.nulls(batch.num_rows, pa.string())
                    columns.append(text.cast(pa.string()).dictionary_encode())
                else:
                    columns.append(batch.column(f"sum_{field.name}"))
            tables.append(pa.Table.from_arrays(columns, schema=schema))
        return tables

    def _answer(self, kind: str, edges: Sequence[int], ask: Callable[[Sequence[Path]], T], nothing: T) -> T:
        """Ask the files that hold a period; where one can't be read, find it, leave it out, ask again."""
        for _ in range(3):
            chosen = self._choose(kind, edges)
            if not chosen:
                return nothing
            try:
                # A session for each question: what it holds is free again when its answer is put together.
                with duck.session(memory_mb=self._limits[0], threads=self._limits[1]) as self._connection:
                    return ask([self.folder / segment.name for segment in chosen])
            except duck.Error:
                found = [d for s in chosen if (d := segments.damage(self.folder, s, whole=True))]
                if not found:
                    raise
                self._bad |= {damage.name: damage for damage in found}
        raise LedgerError(f"{self.folder}: segments go missing while they are read")

    def _choose(self, kind: str, edges: Sequence[int]) -> list[Segment]:
        """The readable segments that hold each fact of [first edge, last edge) once."""
        touched = [
            s for s in self._listing
            if s.kind == kind and s.day_unix_s < edges[-1] and s.day_unix_s + DAY_S > edges[0]
        ]  # fmt: skip
        for segment in touched:
            if segment.name not in self._bad and (damage := segments.damage(self.folder, segment)):
                self._bad[segment.name] = damage
        chosen: list[Segment] = []
        for day in sorted({segment.day_unix_s for segment in touched}):
            listing = [segment for segment in touched if segment.day_unix_s == day]
            chosen += self._choose_of_day(kind, day, listing, edges) if kind in segments.ROLLED_UP else listing
        self._missing |= {s.name: self._bad[s.name] for s in chosen if s.name in self._bad}
        return [segment for segment in chosen if segment.name not in self._bad]

    def _choose_of_day(self, kind: str, day: int, listing: Sequence[Segment], edges: Sequence[int]) -> list[Segment]:
        """One grain for what a day's rollups hold, and its minutes that they don't."""
        cuts = [edge for edge in edges if day < edge < day + DAY_S]
        grains = [DAY_S, QUARTER_S, MINUTE_S]
        if cuts:
            grains.remove(DAY_S)
        if any(cut % QUARTER_S for cut in cuts):
            grains.remove(QUARTER_S)
        loose = [s for s in listing if s.grain_s == MINUTE_S and not s.rolled]
        if loose and kind == "shapes":
            # What a day keeps apart goes by all its rows: a rollup has lost some already.
            grains.reverse()
        held = {g: [s for s in listing if s.grain_s == g and (g != MINUTE_S or s.rolled)] for g in grains}
        offered = [held[g] for g in grains if held[g]]
        if not offered:  # minutes have gone with the years: quarter hours are the finest there is
            offered = [[s for s in listing if s.grain_s == QUARTER_S]]
        whole = [group for group in offered if not any(s.name in self._bad for s in group)]
        return [*(whole or offered)[0], *loose]


def _conditions(
    names: Mapping[str, str | None], known: set[str] | Sequence[str], where: Mapping[str, str | None]
) -> tuple[str, list[object]]:
    """`and` conditions for `where`, and their parameters. Raises ValueError for a name that is none."""
    strange = sorted(set(names) - set(known))
    if strange:
        raise ValueError(f"no such keys: {strange}; there are {sorted(known)}")
    parts: list[str] = []
    values: list[object] = []
    for name, value in where.items():
        parts.append(f" and {name} is null" if value is None else f" and {name} = ?")
        values += [] if value is None else [value]
    return "".join(parts), values


def _bucket_sql(edges: Sequence[int]) -> str:
    """The start of a row's bucket, as an expression of minute_unix_s.

    Buckets of equal length (days between two clock changes) are one division, so that a month of local
    days is at most three cases.
    """
    runs: list[tuple[int, int, int]] = []  # (start, length of a bucket, end)
    for start, end in itertools.pairwise(edges):
        if runs and runs[-1][1] == end - start:
            runs[-1] = (runs[-1][0], end - start, end)
        else:
            runs.append((start, end - start, end))
    cases = [
        f"when minute_unix_s < {end} then minute_unix_s - (minute_unix_s - {start}) % {length}"
        if end - start > length
        else f"when minute_unix_s < {end} then {start}"
        for start, length, end in runs
    ]
    return f"cast(case {' '.join(cases)} end as bigint)"


def _typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        column = batch.column(field.name)
        columns.append(
            column.cast(pa.string()).dictionary_encode() if field.type == records.TEXT else column.cast(field.type)
        )
    return pa.Table.from_arrays(columns, schema=schema)
