"""Bills for tests: a month's statement, with corrections of the month before."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.period import month
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.statement import CHARGE, CORRECTION, Statement
from apicost.report.tables.rows import Column, Kind, Rows

_AMOUNTS = ("quantity", "list_cost", "contracted_cost", "billed_cost")


def statement(usage: pa.Table, book: PriceBook, name: str = "2026-11") -> Statement:
    """A month rated."""
    return rate.rate(usage, book, month(name, book.time_zone))


def with_corrections(usage: pa.Table, book: PriceBook, every: int, name: str = "2026-11") -> Bill:
    """The month, with every so-many-th of its charges taken back as if the month before had booked them wrongly."""
    made = statement(usage, book, name)
    return Bill(statement=made, corrections=taken_back(made, list(range(0, len(made), every))))


def taken_back(made: Statement, charges: list[int]) -> pa.Table:
    """Corrections that take back some charges of a statement; columns as in CHARGE."""
    rows = made.charges.take(pa.array(charges, pa.int64())).to_pylist()
    for row in rows:
        row |= {"charge_class": CORRECTION, "period_start": "2026-09-30T22:00:00Z"}
        row |= {"period_end": "2026-10-31T23:00:00Z", "charge_id": row["charge_id"][::-1]}
        row |= {name: row[name] and _negative(row[name]) for name in _AMOUNTS}
    wanted = records.schema(CHARGE)
    columns = {f.name: pa.array([row[f.name] for row in rows], pa.string()).cast(f.type) for f in wanted}
    return pa.table(columns, schema=wanted)


def _negative(text: str) -> str:
    places = len(text.partition(".")[2])
    return money.fixed(-int(Decimal(text).scaleb(places)), places)


def text_rows(values: list[str | None], name: str = "list_cost") -> Rows:
    """Rows of one amount column, a piece for each two values."""
    table = pa.table({name: pa.array(values, pa.string())})
    pieces = [table.slice(start, 2) for start in range(0, len(values), 2)]
    return Rows(columns=(Column(name=name, kind=Kind.AMOUNT, added=True),), pieces=lambda: iter(pieces))
