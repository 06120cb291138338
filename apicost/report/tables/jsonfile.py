"""JSON: one array of objects, an object per line.

Rules of this file:
- Every object has every column, in order; what is absent is null.
- Amounts are strings: no program that reads them rounds. Counts are numbers.
- UTF-8. Control characters are escaped, other letters stand as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from apicost import durable
from apicost.report.tables.rows import Column, Kind, Rows, Seen, plain


def write(rows: Rows, path: Path, seen: Seen) -> int:
    """Write rows as one file, whole or not at all; returns their number. Raises OSError."""
    count = 0

    def pieces() -> Iterator[bytes]:
        nonlocal count
        for piece in rows.selected():
            yield (b",\n" if count else b"[\n") + _objects(piece, rows.columns)
            count += len(piece)
            seen(count)
        yield b"\n]\n" if count else b"[]\n"

    def fill(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.writelines(pieces())

    durable.write_file(path, fill)
    return count


def _objects(piece: pa.Table, columns: tuple[Column, ...]) -> bytes:
    members: list[Any] = []
    for position, column in enumerate(columns):
        before = ("{" if position == 0 else ", ") + json.dumps(column.name) + ": "
        members += [before, _values(piece.column(column.name), column)]
    objects = _join(*members, "}")
    whole: Any = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(objects)], pa.int32()), objects), ",\n")
    return bytes(whole[0].as_buffer())


def _join(*parts: Any) -> Any:
    """Arrays and texts joined to one array, row by row; null where one of them is."""
    join: Any = pc.binary_join_element_wise  # its stubs know no mix of arrays and texts
    return join(*parts, "")


def _values(values: Any, column: Column) -> Any:
    whole: Any = plain(values)
    if column.kind is Kind.COUNT:
        return whole.cast(pa.string()).fill_null("null")
    if column.kind is Kind.TEXT:
        coded = whole.dictionary_encode()
        texts = [json.dumps(text, ensure_ascii=False) for text in coded.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(coded.indices).fill_null("null")
    return _join('"', whole, '"').fill_null("null")
