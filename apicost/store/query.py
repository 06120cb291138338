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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from apicost.core import meter, prompts, records
from apicost.core.conformance.contract import Former
from apicost.store import documented, duck, lots, segments, shapes
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
from apicost.store.sums import TooManyRows, add_up

__all__ = ["DAY_S", "KEYS", "Ledger", "LedgerError", "TooManyRows"]

T = TypeVar("T")
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

    def segments(self, kind: str, start_unix_s: int, end_unix_s: int) -> tuple[Segment, ...]:
        """The segments of a kind whose UTC days touch a period."""
        return tuple(
            s for s in self._listing
            if s.kind == kind and s.day_unix_s < end_unix_s and s.day_unix_s + DAY_S > start_unix_s
        )  # fmt: skip

    def control_sums(self, start_unix_s: int, end_unix_s: int) -> tuple[tuple[int, int, int], ...]:
        """Calls and wire bytes of usage by UTC day (its start), as the catalogue has them, of days that touch a period.

        The same compacted or not; usage that is added changes them, since all usage has one or the other.
        """
        touched = self.segments("usage", start_unix_s, end_unix_s)
        days: dict[int, list[Segment]] = {}
        for segment in touched:
            days.setdefault(segment.day_unix_s, []).append(segment)
        chosen = {day: self._choose_of_day("usage", day, listing, ()) for day, listing in sorted(days.items())}
        return tuple((day, sum(s.calls for s in c), sum(s.wire_bytes for s in c)) for day, c in chosen.items())

    def prove(self, kind: str, start_unix_s: int, end_unix_s: int) -> None:
        """Read the files of a period whole and hold them against their checksums: answers then use good ones alone.

        What is missing for it stands in `damaged` after the answer.
        """
        for segment in self.segments(kind, start_unix_s, end_unix_s):
            if segment.name not in self._bad and (damage := segments.damage(self.folder, segment, whole=True)):
                self._bad[segment.name] = damage

    def usage(
        self,
        edges: Sequence[int],
        by: Sequence[str] = KEYS,
        *,
        where: Mapping[str, str | None] | None = None,
        sums: Sequence[str] = meter.SUMS,
        most: int | None = None,
    ) -> pa.Table:
        """Usage of a period, by buckets of time and some keys.

        edges: unix seconds, ascending: start, ..., end (exclusive); a bucket from each to the next. Two
            give one bucket. Local midnights make local days.
        by: names of `KEYS`. where: key -> value that rows must have; None for rows without one.
        sums: columns of `records.USAGE_SUMS`; each costs time, a month of quarter hours half a second. Parts of
            them by the length of prompts (`core/prompts`) can be asked for by name.
        most: TooManyRows is raised where the answer has more rows; see `usage_in_lots`.

        Returns columns as in `records.USAGE` but for the sums not asked for, then parts, sorted by key:
        `minute_unix_s` is the start of the bucket, keys not in `by` are null. Raises ValueError for edges, keys
        or sums that are none, and OverflowError where a sum may pass 2**63.
        """
        edges = [int(edge) for edge in edges]
        if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"edges {edges} are not two or more ascending times")
        _known(dict.fromkeys(by) | dict(where or {}), KEYS)
        _known((name for name in sums if not prompts.is_part(name)), meter.SUMS)
        schema = records.schema([c for c in records.USAGE if c.name in sums or c.name not in meter.SUMS])
        for name in filter(prompts.is_part, sums):
            schema = schema.append(pa.field(name, pa.int64()))

        def ask(paths: Sequence[Path]) -> pa.Table:
            return add_up(paths, edges, by, where or {}, sums, most)

        return self._answer("usage", edges, ask, schema.empty_table())

    def usage_in_lots(
        self,
        edges: Sequence[int],
        by: Sequence[str],
        folder: Path,
        *,
        sums: Sequence[str] = meter.SUMS,
        seen: Callable[[int], None] | None = None,
    ) -> Iterator[pa.Table]:
        """Usage of a period that is too large for `usage`: lot by lot, as `lots.split` has it."""

        def ask(paths: Sequence[Path]) -> Iterator[pa.Table]:
            return lots.split(paths, edges, by, sums, folder, seen=seen)

        return self._answer("usage", edges, ask, iter(()))

    def completeness(self, start_unix_s: int, end_unix_s: int) -> dict[str, int]:
        """How complete the data of a period is: the sum of each metric of `records.COMPLETENESS`."""

        def ask(paths: Sequence[Path]) -> dict[str, int]:
            sql = duck.query("completeness", source=duck.source(paths), start=int(start_unix_s), end=int(end_unix_s))
            with self._session() as connection:
                return {metric: int(value) for metric, value in connection.execute(sql).fetchall()}

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

    def former(
        self, present: Collection[tuple[str, str, str]], *, unreadable: Collection[str] = ()
    ) -> tuple[Former, ...]:
        """The operations that earlier documents had and the present ones have not, by API, template and method.

        present: (api, method, path_template) of the present documents. unreadable: document files whose operations
            nobody knows now; theirs are not taken for removed.
        """
        with Catalogue.read(self.folder) as catalogue:
            return documented.former(catalogue, present, unreadable)

    def exchanges(
        self, start_unix_s: int, end_unix_s: int, *, where: Mapping[str, str | None] | None = None, limit: int = 20
    ) -> pa.Table:
        """The exchanges of a period with most wire bytes, largest first; ended in [start, end).

        where: a text column of `records.EXCHANGE` -> its value, None for absent.
        Returns columns as in `records.EXCHANGE`. They are kept for days only: no rows may mean that they
        have gone.
        """
        _known(where or {}, _FILTERS)
        condition, values = _conditions(where or {})
        schema = records.schema(records.EXCHANGE)

        def ask(paths: Sequence[Path]) -> pa.Table:
            sql = duck.query(
                "exchanges", columns=", ".join(schema.names), source=duck.source(paths), filter=condition,
                start_ns=int(start_unix_s) * NS_PER_S, end_ns=int(end_unix_s) * NS_PER_S, limit=int(limit),
            )  # fmt: skip
            with self._session() as connection:
                found = [_typed(batch, schema) for batch in duck.batches(connection, sql, values)]
            return pa.concat_tables(found) if found else schema.empty_table()

        return self._answer("exchanges", [start_unix_s, end_unix_s], ask, schema.empty_table())

    def _session(self) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A session for each question: what it holds is free again when its answer is put together."""
        return duck.session(memory_mb=self._limits[0], threads=self._limits[1])

    def _answer(self, kind: str, edges: Sequence[int], ask: Callable[[Sequence[Path]], T], nothing: T) -> T:
        """Ask the files that hold a period; where one can't be read, find it, leave it out, ask again."""
        for _ in range(3):
            chosen = self._choose(kind, edges)
            if not chosen:
                return nothing
            try:
                return ask([self.folder / segment.name for segment in chosen])
            except (duck.Error, pa.ArrowException, OSError):
                found = [d for s in chosen if (d := segments.damage(self.folder, s, whole=True))]
                if not found:
                    raise
                self._bad |= {damage.name: damage for damage in found}
        raise LedgerError(f"{self.folder}: segments go missing while they are read")

    def _choose(self, kind: str, edges: Sequence[int]) -> list[Segment]:
        """The readable segments that hold each fact of [first edge, last edge) once."""
        touched = self.segments(kind, edges[0], edges[-1])
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


def _known(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for a name that is none."""
    strange = sorted(set(names) - set(known))
    if strange:
        raise ValueError(f"no such columns: {strange}; there are {sorted(known)}")


def _conditions(where: Mapping[str, str | None]) -> tuple[str, list[object]]:
    """`and` conditions for `where`, and their parameters."""
    parts: list[str] = []
    values: list[object] = []
    for name, value in where.items():
        parts.append(f" and {name} is null" if value is None else f" and {name} = ?")
        values += [] if value is None else [value]
    return "".join(parts), values


def _typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        column = batch.column(field.name)
        columns.append(
            column.cast(pa.string()).dictionary_encode() if field.type == records.TEXT else column.cast(field.type)
        )
    return pa.Table.from_arrays(columns, schema=schema)
