"""CSV that spreadsheets can't be tricked with and that never changes for equal content.

Rules of this file:
- UTF-8 without a byte order mark, comma, LF, a header; quotes only where a cell needs them; absent is empty.
- A text cell that begins with = + - @ TAB CR or LF gets a leading apostrophe, so that no spreadsheet takes it for
  a formula. Numbers stay numbers: they are made here, not by whoever sent a request.
- Numbers are plain decimals: never an exponent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from apicost import durable
from apicost.core.rating import money

# Columns of text made by this program: numbers, whose minus sign is theirs, and hexadecimal digits.
OURS = frozenset(
    ("quantity", "unit_price", "list_cost", "billed_cost", "charge_id", "contracted_cost", "contracted_unit_price")
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NEEDS_QUOTES = (",", '"', "\r", "\n")


def write(path: Path, names: Sequence[str], pieces: Iterable[pa.Table]) -> int:
    """Write tables of the same columns as one file, whole or not at all; returns its size in bytes.

    Raises OSError (disk full, read-only folder).
    """
    return write_lines(path, names, (encode(piece.select(list(names))) for piece in pieces))


def write_lines(path: Path, names: Sequence[str], pieces: Iterable[bytes]) -> int:
    """`write` for rows that are CSV already."""

    def fill(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.write((",".join(names) + "\n").encode())
            for piece in pieces:
                stream.write(piece)

    return durable.write_file(path, fill)


def encode(table: pa.Table) -> bytes:
    """The rows of a table as CSV, without a header."""
    return lines(join([cells(table.column(name), name) for name in table.column_names]))


def join(columns: Sequence[Any]) -> Any:
    """Cells side by side, as one column."""
    return money.joined(columns, ",") if len(columns) > 1 else columns[0]


def lines(rows: Any) -> bytes:
    """Rows one below the other."""
    if not len(rows):
        return b""
    whole: Any = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows), "\n")
    return bytes(whole[0].as_buffer()) + b"\n"


def safe(text: str) -> str:
    """One text cell: no formula, quoted where needed."""
    if text.startswith(_FORMULA):
        text = "'" + text
    if any(mark in text for mark in _NEEDS_QUOTES):
        return '"' + text.replace('"', '""') + '"'
    return text


def cells(column: Any, name: str) -> Any:
    """A column as text cells, null as the empty one."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_dictionary(column.type):
        values = column.dictionary.to_pylist()
        texts = pa.array(values if name in OURS else [safe(value) for value in values], pa.string())
        column = pa.DictionaryArray.from_arrays(column.indices, texts).cast(pa.string())
    elif pa.types.is_string(column.type):
        if name not in OURS:
            column = pa.array([None if value is None else safe(value) for value in column.to_pylist()], pa.string())
    else:
        column = column.cast(pa.string())
    return column.fill_null("")
