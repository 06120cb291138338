"""Parquet: types in which every reader adds up exactly, and the same bytes for the same rows.

Rules of this file:
- Amounts are DECIMAL(38, 18): 38 digits is what DuckDB, Spark and warehouses hold exactly. Where a value of a column
  has more than 18 places, that column has as many as it needs; where 38 digits do not hold it, the column is text.
- Counts are 64-bit integers, times are timestamps in UTC, text is dictionary-encoded; null is null.
- Nothing of the run is in the file: no time, no path. The library's version is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apicost import durable
from apicost.report.tables.rows import Column, Kind, Rows, Seen, plain

PRECISION = 38
SCALE = 18
GROUP_ROWS = 1 << 16  # about 100 MB while one is written
_TIME = pa.timestamp("ms", tz="UTC")

# Digits of a column: most before the point, most after it.
_Digits = dict[str, tuple[int, int]]


class _TooWide(Exception):
    """A value that the usual decimal type does not hold."""


def write(rows: Rows, path: Path, seen: Seen) -> int:
    """Write rows as one file, whole or not at all; returns their number. Raises OSError."""
    try:
        return _written(rows, path, seen, {})
    except _TooWide:  # seldom: so the first writing does not wait for a look at all values
        return _written(rows, path, seen, _digits_of_all(rows))


def amount_type(digits: tuple[int, int]) -> pa.DataType:
    """The type for amounts with so many digits before and after the point."""
    before, after = digits
    if before <= PRECISION - SCALE and after <= SCALE:
        return pa.decimal128(PRECISION, SCALE)
    return pa.decimal128(PRECISION, after) if max(before, 1) + after <= PRECISION else pa.string()


def _written(rows: Rows, path: Path, seen: Seen, digits: _Digits) -> int:
    types = {column.name: _type(column, digits) for column in rows.columns}
    count = 0

    def fill(temporary: Path) -> None:
        nonlocal count
        schema = pa.schema([pa.field(name, type_) for name, type_ in types.items()])
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in _groups(rows.selected()):
                columns = {name: _cast(group.column(name), type_) for name, type_ in types.items()}
                writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP_ROWS)
                count += len(group)
                seen(count)

    durable.write_file(path, fill)
    return count


def _type(column: Column, digits: Mapping[str, tuple[int, int]]) -> pa.DataType:
    if column.kind is Kind.TEXT:
        return pa.dictionary(pa.int32(), pa.string())
    if column.kind is Kind.COUNT:
        return pa.int64()
    return _TIME if column.kind is Kind.TIME else amount_type(digits.get(column.name, (0, 0)))


def _groups(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Pieces put together to row groups of GROUP_ROWS, however they were cut."""
    waiting: list[pa.Table] = []
    for piece in pieces:
        waiting.append(pa.table([plain(column) for column in piece.columns], piece.column_names))
        while sum(map(len, waiting)) >= GROUP_ROWS:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, GROUP_ROWS)
            waiting = [whole.slice(GROUP_ROWS)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _cast(values: Any, type_: pa.DataType) -> Any:
    whole: Any = plain(values)
    if pa.types.is_dictionary(type_):
        # By first appearance: what dictionaries the rows came with depends on how they were made.
        return whole.dictionary_encode().cast(type_)
    if pa.types.is_decimal(type_):
        before, after = _digits(whole)
        # Arrow's own cast says nothing of a number with too many digits.
        if after > type_.scale or before > type_.precision - type_.scale:
            raise _TooWide
    return whole.cast(type_)


def _digits_of_all(rows: Rows) -> _Digits:
    digits: _Digits = {}
    for piece in rows.selected():
        for name in rows.of_kind(Kind.AMOUNT):
            found = _digits(plain(piece.column(name)))
            digits[name] = tuple(np.maximum(digits.get(name, (0, 0)), found).tolist())
    return digits


def _digits(texts: Any) -> tuple[int, int]:
    """Most digits before and after the point of plain decimal texts; a sign is none."""
    length = pc.binary_length(texts).fill_null(0).to_numpy()
    point = pc.find_substring(texts, ".").fill_null(-1).to_numpy()
    sign = pc.starts_with(texts, "-").fill_null(False).to_numpy(zero_copy_only=False)
    before = np.where(point < 0, length, point) - sign
    after = np.where(point < 0, 0, length - point - 1)
    return int(before.max(initial=0)), int(after.max(initial=0))
