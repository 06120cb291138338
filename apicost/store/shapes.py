"""Shapes and samples as the ledger adds them up: how each of their columns merges, in SQL.

Rules of this file:
- The columns and how they merge are those of `core/records`; `core/conformance/shapes` does the same in memory.
- DuckDB does it, since it may spill: a day of shapes can be larger than a report's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from apicost.core import meter, records
from apicost.store import daycut, duck, older

KEYS = tuple(c.name for c in records.SHAPE_KEYS if c.type == records.TEXT)
SAMPLE_KEYS = tuple(c.name for c in records.SAMPLE_KEYS if c.type == records.TEXT)
_MERGED = {
    "first_unix_ns": "min(first_unix_ns)",
    "last_unix_ns": "max(last_unix_ns)",
    # -1 stands for "no request", which is no size.
    "least_out_app_bytes": "coalesce(min(case when least_out_app_bytes >= 0 then least_out_app_bytes end), -1)",
    "most_out_app_bytes": "max(most_out_app_bytes)",
    "clients": "bit_or(clients)",
}
# Column -> the expression that puts rows of equal keys together.
USAGE_FIGURES: Mapping[str, str] = {name: f"sum({name})" for name in meter.SUMS}
SHAPE_FIGURES: Mapping[str, str] = {**USAGE_FIGURES, **{c.name: _MERGED[c.name] for c in records.SHAPE_MERGED}}
SAMPLE_FIGURES: Mapping[str, str] = {
    "samples": "sum(samples)",
    "app_bytes": "sum(app_bytes)",
    "first_unix_ns": _MERGED["first_unix_ns"],
    "last_unix_ns": _MERGED["last_unix_ns"],
}


def figures_sql(figures: Mapping[str, str]) -> str:
    """The expressions of a select, each named `sum_` and its column: no alias may name an input column."""
    return ", ".join(f"cast({expression} as bigint) as sum_{name}" for name, expression in figures.items())


def of_files(connection: duckdb.DuckDBPyConnection, rolled: Sequence[Path], whole_days: Sequence[Path]) -> str:
    """Shapes as a table, for `from`: rollups as they are, and files of whole days cut as rollups are."""
    columns = ", ".join(column.name for column in records.SHAPE)
    parts = [older.source(rolled)] if rolled else []
    parts += [daycut.bounded(connection, older.source(whole_days))] if whole_days else []
    return f"({' union all '.join(f'select {columns} from {part} as part' for part in parts)})"


def added_up(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    columns: Sequence[records.Column],
    figures: Mapping[str, str],
    *,
    start_unix_s: int,
    end_unix_s: int,
    by: Sequence[str],
    where: Mapping[str, str | None],
) -> pa.Table:
    """The rows of [start, end) as one bucket, grouped by some keys.

    source: a table, for `from`. columns: of the answer. where: key -> value that rows must have, None for rows
        without one.
    Returns `columns`: `minute_unix_s` is the start, keys not in `by` are null; sorted by key.
    """
    schema = records.schema(columns)
    chosen = [field.name for field in schema if field.name in set(by)]
    conditions = [f" and {name} is null" if value is None else f" and {name} = ?" for name, value in where.items()]
    sql = duck.query(
        "one_bucket",
        keys="".join(f"{name}, " for name in chosen),
        figures=figures_sql(figures),
        source=source,
        start=int(start_unix_s),
        end=int(end_unix_s),
        filter="".join(conditions),
        having="" if chosen else "having count(*) > 0",
        groups=f"group by {', '.join(chosen)}" if chosen else "",
        order=f"order by {', '.join(f'{name} nulls first' for name in chosen)}" if chosen else "",
    )
    values = [value for value in where.values() if value is not None]
    tables = []
    for batch in duck.batches(connection, sql, values):
        filled: list[Any] = []
        for field in schema:
            if field.name == "minute_unix_s":
                filled.append(pa.array([int(start_unix_s)] * batch.num_rows, pa.int64()))
            elif field.type == records.TEXT:
                text = batch.column(field.name) if field.name in chosen else pa.nulls(batch.num_rows, pa.string())
                filled.append(text.cast(pa.string()).dictionary_encode())
            else:
                filled.append(batch.column(f"sum_{field.name}"))
        tables.append(pa.Table.from_arrays(filled, schema=schema))
    return pa.concat_tables(tables).unify_dictionaries() if tables else schema.empty_table()
