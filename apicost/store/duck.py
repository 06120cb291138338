"""DuckDB, bounded and offline: the one place that knows its interface.

It is for short-lived processes (a report, a compaction): it holds up to its memory limit, and the daemon has
none to spare.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from apicost import scratch

MEMORY_MB = 256
# One: a report runs beside the gateway, and answers in seconds as it is.
THREADS = 1
Error = duckdb.Error


@contextlib.contextmanager
def session(
    *, memory_mb: int = MEMORY_MB, threads: int = THREADS, spill_in: Path | str | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty in-memory database. What exceeds its memory goes to a folder of its own, removed at the end.

    spill_in: where that is; None is the system's folder for temporary files, for who may not write the ledger.
    """
    with scratch.folder("duckdb", spill_in) as spill:
        connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{memory_mb}MB",
                "threads": str(threads),
                "temp_directory": str(spill),
                # The order of rows is made here by sorting, never inherited.
                "preserve_insertion_order": "false",
                # Nothing is fetched from anywhere.
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        # It would appear between the lines of whoever asks.
        connection.execute("set enable_progress_bar = false")
        try:
            yield connection
        finally:
            connection.close()


@functools.cache
def _queries() -> dict[str, str]:
    text = Path(__file__).with_name("queries.sql").read_text()
    found = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def query(name: str, **words: object) -> str:
    """A query of queries.sql with its words filled in."""
    return _queries()[name].format(**words)


def batches(connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[object] = ()) -> Iterator[pa.RecordBatch]:
    """The rows of a query, a batch at a time."""
    relation: Any = connection.sql(sql, params=list(values))
    yield from relation.to_arrow_reader(1 << 16)


def source(paths: Iterable[Path]) -> str:
    """A table of Parquet files, for `from`."""
    return f"read_parquet([{', '.join(quoted(str(path)) for path in paths)}])"


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def write(connection: duckdb.DuckDBPyConnection, sql: str, path: Path, *, row_group: int) -> None:
    """The rows of a query as a Parquet file, in their order."""
    connection.execute(
        f"copy ({sql}) to {quoted(str(path))} (format parquet, compression zstd, row_group_size {row_group})"
    )
