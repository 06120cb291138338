"""A month's charges and usage as rows for every format: the columns and the order of the CSV files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from apicost.core import records
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
_FIRST = (
    "api", "operation_id", "method", "path_template", "consumer", "status_class", "sku", "tier", "quantity", "unit",
    "unit_price", "pricing_currency", "fx_rate", "list_cost", "contracted_cost", "billed_cost", "currency", "state",
    "reason", "charge_class", "period_start", "period_end",
)  # fmt: skip
_USAGE_FIRST = (
    "api", "operation_id", "method", "path_template", "consumer", "status_class", "scope", "period_start", "period_end",
    "calls",
)  # fmt: skip
SHOWN_PLACES = 6  # of exact costs: enough to see a millionth, few enough to read a column


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
    return Rows(columns=columns, pieces=pieces, count=last - first + len(corrections), split="api",
                sheets=_apis(bill, first, last, corrections), first=_FIRST)  # fmt: skip


def usage(
    lots: Callable[[], Iterable[UsageRows]], period: Period, api: str | None = None, apis: Iterable[str | None] = ()
) -> Rows:
    """Gathered usage, one lot after the other; of one API if named.

    lots: makes them anew at each call. apis: those that have usage.
    """
    columns = tuple(
        Column(name=name, kind=Kind.TIME) if name in _TIMES
        else Column(name=name, kind=Kind.COUNT, added=True) if name in export.USAGE_COUNTS
        else Column(name=name)
        for name in export.USAGE_COLUMNS
    )  # fmt: skip
    return Rows(
        columns=columns, pieces=lambda: (piece for lot in lots() for piece in export.usage_tables(lot, period, api)),
        split="api", sheets=_in_order(apis if api is None else (api,)), first=_USAGE_FIRST,
    )  # fmt: skip


def _charge_column(name: str, scale: int) -> Column:
    if name in _TIMES:
        return Column(name=name, kind=Kind.TIME)
    if name not in _AMOUNTS:
        return Column(name=name)
    places = scale if name == "billed_cost" else SHOWN_PLACES if name in _COSTS else None
    return Column(name=name, kind=Kind.AMOUNT, places=places, added=name in _COSTS)


def _apis(bill: Bill, first: int, last: int, corrections: pa.Table) -> tuple[str | None, ...]:
    """The APIs that have a row among some charges of a bill, or among the corrections."""
    found: set[str | None] = set()
    for table, rows in ((bill.statement.keys, bill.statement.key[first:last]), (corrections, slice(None))):
        codes, values = records.codes(table, "api")
        found |= {values[code] if code >= 0 else None for code in np.unique(codes[rows]).tolist()}
    return _in_order(found)


def _in_order(apis: Iterable[str | None]) -> tuple[str | None, ...]:
    """By name; what belongs to no API last."""
    return tuple(sorted(set(apis), key=lambda name: (name is None, name or "")))


def _span(bill: Bill, api: str | None) -> tuple[int, int]:
    """Where an API's charges lie: they are sorted by API first, so its own are together."""
    if api is None:
        return 0, len(bill.statement)
    mine = np.flatnonzero(export.keys_of(bill.statement.keys, api)[bill.statement.key])
    return (int(mine[0]), int(mine[-1]) + 1) if len(mine) else (0, 0)
