"""CSV that spreadsheets can't be tricked with and that never changes for equal content.

Rules of this file:
- UTF-8 without a byte order mark, comma, LF, a header; quotes only where a cell needs them; absent is empty.
- A text cell that begins with = + - @ TAB CR or LF gets a leading apostrophe, so that no spreadsheet takes it for
  a formula. Numbers stay numbers: they are made here, not by whoever sent a request.
- Numbers are plain decimals: never an exponent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost import bulk, durable
from apicost.core.rating import money
from apicost.report.focus.columns import MADE

Bytes = bytes | memoryview

# Columns of text made by this program: numbers, whose minus sign is theirs, and hexadecimal digits.
OURS = MADE | frozenset(
    ("quantity", "unit_price", "list_cost", "billed_cost", "charge_id", "contracted_cost", "contracted_unit_price")
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NEEDS_QUOTES = (",", '"', "\r", "\n")


def write(path: Path, names: Sequence[str], pieces: Iterable[pa.Table]) -> int:
    """Write tables of the same columns as one file, whole or not at all; returns its size in bytes.

    Raises OSError (disk full, read-only folder).
    """
    return write_lines(path, names, (encode(piece.select(list(names))) for piece in pieces))


def write_lines(path: Path, names: Sequence[str], pieces: Iterable[Bytes]) -> int:
    """`write` for rows that are CSV already."""

    def fill(temporary: Path) -> None:
        with bulk.writer(temporary) as write:
            write((",".join(names) + "\n").encode())
            for piece in pieces:
                write(piece)

    return durable.write_file(path, fill)


def encode(table: pa.Table) -> bytes:
    """The rows of a table as CSV, without a header."""
    return lines(join([cells(table.column(name), name) for name in table.column_names]))


def join(columns: Sequence[Any]) -> Any:
    """Cells side by side, as one column."""
    return money.joined(columns, ",") if len(columns) > 1 else columns[0]


def interleave(parts: Sequence[tuple[Any, npt.NDArray[np.integer]]]) -> Bytes:
    """One text of all rows: each row is one text of every part, in the order of the parts.

    parts: a list of texts (null is the empty one), and for each row the position of its text in that list. A list may
    serve several parts. This is what makes files of millions of rows: each text is made once and copied once.
    """
    lists = {id(texts): texts for texts, _ in parts}
    starts = dict(zip(lists, itertools.accumulate([0, *map(len, lists.values())]), strict=False))
    index = np.empty((len(parts[0][1]), len(parts)), np.int64)
    for column, (texts, at) in enumerate(parts):
        np.add(at, starts[id(texts)], out=index[:, column])
    rows = pa.concat_arrays(list(lists.values())).take(pa.array(index.ravel()))
    offsets = np.frombuffer(rows.buffers()[1], np.int32)[rows.offset : rows.offset + len(rows) + 1]
    return memoryview(rows.buffers()[2])[offsets[0] : offsets[-1]] if len(rows) else b""


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
        column = pa.DictionaryArray.from_arrays(column.indices, _of_values(column, name)).cast(pa.string())
    elif pa.types.is_string(column.type):
        if name not in OURS:
            column = pa.array([None if value is None else safe(value) for value in column.to_pylist()], pa.string())
    else:
        column = column.cast(pa.string())
    return column.fill_null("")


def coded(column: Any, name: str) -> tuple[Any, npt.NDArray[np.int32]]:
    """A dictionary column as its cells, the empty one for null first, and each row's position among them."""
    column = column.unify_dictionaries().combine_chunks()
    texts = pa.concat_arrays([pa.array([""]), _of_values(column, name)])
    code: npt.NDArray[np.int32] = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return texts, code + np.int32(1)


def _of_values(column: Any, name: str) -> Any:
    values = column.dictionary.to_pylist()
    return pa.array(values if name in OURS else [safe(value) for value in values], pa.string())
