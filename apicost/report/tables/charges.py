"""A month's charges and usage as rows for every format: the columns and the order of the CSV files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from apicost.core.rating.bill import Bill
from apicost.core.rating.period import Period
from apicost.core.rating.usage_rows import UsageRows
from apicost.report import export
from apicost.report.export import ApiInfo
from apicost.report.tables.rows import Column, Kind, Rows

PIECE_ROWS = 1 << 15

_AMOUNTS = (
    "quantity", "unit_price", "list_cost", "billed_cost", "contracted_cost", "contracted_unit_price", "fx_rate",
)  # fmt: skip
_COSTS = ("list_cost", "contracted_cost", "billed_cost")
_TIMES = ("period_start", "period_end")


def charges(bill: Bill, apis: Mapping[str, ApiInfo], api: str | None = None) -> Rows:
    """A bill's charges, then its corrections; of one API if named."""
    book = bill.statement.book
    first, last = _span(bill, api)
    corrections = bill.corrections
    if api is not None:
        corrections = corrections.filter(pa.array(export.keys_of(corrections, api)))

    def pieces() -> Iterator[pa.Table]:
        for start in range(first, last, PIECE_ROWS):
            yield export.with_owners(bill.statement.table(start, min(start + PIECE_ROWS, last)), apis, book.tags)
        for start in range(0, len(corrections), PIECE_ROWS):
            yield export.with_owners(corrections.slice(start, PIECE_ROWS), apis, book.tags)

    columns = tuple(_charge_column(name, book.statement_scale) for name in export.CHARGE_COLUMNS)
    return Rows(columns=columns, pieces=pieces, count=last - first + len(corrections))


def usage(lots: Callable[[], Iterable[UsageRows]], period: Period, api: str | None = None) -> Rows:
    """Gathered usage, one lot after the other; of one API if named. lots: makes them anew at each call."""
    columns = tuple(
        Column(name=name, kind=Kind.TIME) if name in _TIMES
        else Column(name=name, kind=Kind.COUNT, added=True) if name in export.USAGE_COUNTS
        else Column(name=name)
        for name in export.USAGE_COLUMNS
    )  # fmt: skip
    return Rows(
        columns=columns, pieces=lambda: (piece for lot in lots() for piece in export.usage_tables(lot, period, api))
    )


def _charge_column(name: str, scale: int) -> Column:
    if name in _TIMES:
        return Column(name=name, kind=Kind.TIME)
    if name not in _AMOUNTS:
        return Column(name=name)
    return Column(name=name, kind=Kind.AMOUNT, places=scale if name == "billed_cost" else None, added=name in _COSTS)


def _span(bill: Bill, api: str | None) -> tuple[int, int]:
    """Where an API's charges lie: they are sorted by API first, so its own are together."""
    if api is None:
        return 0, len(bill.statement)
    mine = np.flatnonzero(export.keys_of(bill.statement.keys, api)[bill.statement.key])
    return (int(mine[0]), int(mine[-1]) + 1) if len(mine) else (0, 0)
