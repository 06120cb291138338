"""The table formats by their names, which are the suffixes of their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from apicost.report import csvfile
from apicost.report.tables import jsonfile, parquetfile, xlsx
from apicost.report.tables.rows import Rows, Seen
from apicost.report.tables.xlsx import About

FORMATS = ("csv", "parquet", "xlsx", "json")


def write(name: str, rows: Rows, path: Path, seen: Seen, about: About) -> int:
    """Write rows in one of FORMATS, whole or not at all; returns their number.

    seen: called with the rows written so far. about: what a workbook says beside them.
    Raises OSError (disk full, read-only folder).
    """
    if name == "csv":
        return _csv(rows, path, seen)
    if name == "xlsx":
        return xlsx.write(rows, path, seen, about)
    return jsonfile.write(rows, path, seen) if name == "json" else parquetfile.write(rows, path, seen)


def _csv(rows: Rows, path: Path, seen: Seen) -> int:
    count = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal count
        for piece in rows.selected():
            yield piece
            count += len(piece)
            seen(count)

    csvfile.write(path, [column.name for column in rows.columns], counted())
    return count
