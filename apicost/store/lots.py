"""Usage of more keys than can be held at once: in lots, kept in a folder for passing files.

Rules of this file:
- A lot is a range of (api, operation) in sort order: the keys of each lot come after those of the lot before it, and
  no operation is in two.
- The ledger's files are read twice: to count each operation's rows, then to give each row to its lot.
- What is kept is read through the page cache; nothing of it is needed any more when the process has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating.money import exact_sum
from apicost.core.rating.usage_rows import LARGEST, UsageRows
from apicost.store.sums import Texts, read

Ints = npt.NDArray[np.int64]

LOT_BYTES = 36 << 20  # of rows, as far as operations have fewer: about 260,000 to rate, 110,000 with all sums
MOST_LOTS = 256  # each has a file open while rows are given out
_BOUNDS = ("api", "operation_id")


def split(
    paths: Sequence[Path],
    edges: Sequence[int],
    by: Sequence[str],
    sums: Sequence[str],
    folder: Path,
    *,
    lot_rows: int | None = None,
    seen: Callable[[int], None] | None = None,
) -> Iterator[pa.Table]:
    """The rows of usage files lot by lot, not added up; arguments as in `sums.add_up`.

    by: keys, among them those of an operation. folder: for passing files, on a disk with room: 4 B a row for each key
        and 8 B for each sum. lot_rows: so many rows to a lot, or one operation's; None is by LOT_BYTES. seen: told the
        rows read so far.

    Returns tables, each made when it is asked for: columns as in `records.USAGE` but for keys and sums that were not
    asked for, then parts of sums; rows in no order, dictionaries sorted and of values in use.
    Raises as `add_up`, and OSError where the disk is full.
    """
    texts = {name: Texts() for name in by}
    lot_rows = lot_rows or LOT_BYTES // (4 * (len(by) + 1) + 8 * len(sums))
    lot_of = _lots(_counts(paths, edges, texts), texts, lot_rows)
    chosen = list(by)
    at = [chosen.index(name) for name in _BOUNDS]
    schema = pa.schema([*((name, pa.int32()) for name in (*chosen, "bucket")), *((name, pa.int64()) for name in sums)])
    count = len(set(lot_of.values()))
    files = [folder / f"rows-{number}.arrow" for number in range(count)]
    pairs = np.array(sorted(lot_of), np.int64)
    lot_of_pair = np.array([lot_of[pair] for pair in pairs.tolist()], np.int16)
    done = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(file), schema)) for file in files]
        for codes, columns in read(paths, edges, texts, chosen, {}, sums):
            found = np.searchsorted(pairs, _pair(codes[at[0]], codes[at[1]]))
            lot = lot_of_pair[found]
            order = np.argsort(lot, kind="stable")
            ends = np.searchsorted(lot[order], np.arange(count + 1))
            values = dict(columns)
            arrays = [code.astype(np.int32)[order] for code in codes] + [values[name][order] for name in sums]
            batch = pa.record_batch([pa.array(array) for array in arrays], schema=schema)
            for writer, (first, end) in zip(writers, itertools.pairwise(ends.tolist()), strict=True):
                if end > first:
                    writer.write_batch(batch.slice(first, end - first))
            done += len(order)
            if seen:
                seen(done)
    pa.default_memory_pool().release_unused()
    return (_table(file, edges, chosen, texts, sums) for file in files)


def _counts(paths: Sequence[Path], edges: Sequence[int], texts: Mapping[str, Texts]) -> dict[int, int]:
    """Rows of each operation, by its pair of codes."""
    counts: dict[int, int] = {}
    for codes, _ in read(paths, edges, {name: texts[name] for name in _BOUNDS}, _BOUNDS, {}, ()):
        pairs, rows = np.unique(_pair(codes[0], codes[1]), return_counts=True)
        for pair, more in zip(pairs.tolist(), rows.tolist(), strict=True):
            counts[pair] = counts.get(pair, 0) + more
    return counts


def _lots(counts: Mapping[int, int], texts: Mapping[str, Texts], lot_rows: int) -> dict[int, int]:
    """The lot of each operation, in the order of its names, null first."""
    api, operation = (texts[name].values() for name in _BOUNDS)
    ordered = sorted(counts, key=lambda pair: (_name(api, pair >> 32), _name(operation, pair & 0xFFFFFFFF)))
    most = max(lot_rows, -(-sum(counts.values()) // (MOST_LOTS // 2)))
    lot_of: dict[int, int] = {}
    lot, held = 0, 0
    for pair in ordered:
        if held and held + counts[pair] > most:
            lot, held = lot + 1, 0
        lot_of[pair] = lot
        held += counts[pair]
    return lot_of


def _name(values: Sequence[str], code: int) -> tuple[bool, str]:
    return (code > 0, values[code - 1] if code > 0 else "")


def _pair(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> Ints:
    return (first.astype(np.int64) << 32) | second


def _table(
    file: Path, edges: Sequence[int], chosen: Sequence[str], texts: Mapping[str, Texts], sums: Sequence[str]
) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        rows = pa.ipc.open_stream(source).read_all()
    file.unlink()
    bucket = records.numbers(rows, "bucket")
    columns: dict[str, Any] = {"minute_unix_s": pa.array(np.array(edges, np.int64)[bucket])}
    for name in chosen:
        ranks, distinct = texts[name].ranked(_ints(rows, name))
        columns[name] = records.text(ranks - 1, distinct)
    return pa.table(columns | {name: rows.column(name).combine_chunks() for name in sums})


class KeptLots(Sequence[UsageRows]):
    """Gathered usage kept in a folder, lot by lot: each is read when it is asked for, as far as it is looked at."""

    def __init__(self, folder: Path, lots: Iterable[UsageRows]) -> None:
        self._folder = folder
        self._cuts: list[tuple[int, ...]] = []
        totals: dict[str, int] = {}
        for lot in lots:
            for sum_name, values in lot.sums.items():
                totals[sum_name] = totals.get(sum_name, 0) + exact_sum(values)
                if totals[sum_name] >= LARGEST:
                    raise OverflowError(f"the sum of {sum_name} passes 2**62: its counters are broken")
            number = len(self._cuts)
            rows = pa.table({name: pa.array(v) for name, v in {"key": lot.key, "day": lot.day, **lot.sums}.items()})
            for name, table in (("keys", lot.keys), ("sums", rows)):
                with pa.ipc.new_file(str(folder / f"{name}-{number}.arrow"), table.schema) as writer:
                    writer.write_table(table)
            self._cuts.append(lot.cuts)
        pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, number: int) -> UsageRows:  # type: ignore[override]
        keys, rows = (self._read(f"{name}-{range(len(self))[number]}.arrow") for name in ("keys", "sums"))
        sums = {name: _ints(rows, name) for name in rows.column_names}
        key, day = sums.pop("key"), sums.pop("day")
        return UsageRows(cuts=self._cuts[number], keys=keys, key=key, day=day, sums=sums)

    def _read(self, name: str) -> pa.Table:
        with pa.memory_map(str(self._folder / name)) as source:
            return pa.ipc.open_file(source).read_all()


def _ints(table: pa.Table, name: str) -> Any:
    return records.numbers(table, name)


class Shelf:
    """Columns kept in one file of a folder: what `rate.rate_lots` takes as `keep`."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / "columns", "w+b", buffering=0)  # noqa: SIM115 - closed by `close`
        self._size = 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __call__(self, column: Any) -> Callable[[], Any]:
        start, count, kind = self._size, len(column), column.dtype
        values: Any = np.ascontiguousarray(column).view(np.uint8)
        content = memoryview(values)
        while len(content):
            written = os.pwrite(self._file.fileno(), content, self._size)
            self._size, content = self._size + written, content[written:]

        def kept() -> Any:
            values: Any = np.empty(count, kind)
            view, at = memoryview(values.view(np.uint8)), start
            while len(view):
                got = os.preadv(self._file.fileno(), [view], at)
                if not got:
                    raise OSError(f"{self._file.name} ends at {at}, before what was written to it")
                view, at = view[got:], at + got
            return values

        return kept
