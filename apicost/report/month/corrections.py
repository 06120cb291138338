"""What a month's bill corrects in closed months: by the month that is corrected, and by API."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import pyarrow as pa

from apicost.core.rating.bill import Bill, minor_of
from apicost.core.rating.statement import UNALLOCATED
from apicost.report.export import keys_of
from apicost.report.month.labels import NOBODY, Label, api_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What a bill corrects of one API in one closed month. Costs are differences and have a sign.

    rows: how many charges say so.
    """

    month: str
    label: Label
    rows: int
    billed_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """All corrections of a bill, or those of one API. rows: by month, then by what is largest."""

    rows: tuple[Corrected, ...] = ()
    count: int = 0
    billed_minor: int = 0
    list_cost: Fraction = Fraction()
    contracted_cost: Fraction = Fraction()


def corrections_of(bill: Bill, api: str | None = None) -> Corrections:
    """The corrections that a bill carries; of one API if named."""
    charges = chosen(bill, api)
    if not len(charges):
        return Corrections()
    zone = ZoneInfo(bill.statement.book.time_zone)
    minor = minor_of(charges, bill.statement.book.statement_scale)
    sums: dict[tuple[str, Label], int] = defaultdict(int)
    counts: dict[tuple[str, Label], int] = defaultdict(int)
    columns = (charges.column(name).to_pylist() for name in ("period_start", "api", "match_state", "state"))
    for start, name, matched, state, amount in zip(*columns, minor, strict=True):
        month = datetime.fromisoformat(start).astimezone(zone).strftime("%Y-%m")
        nobody = state == UNALLOCATED
        cell = month, NOBODY if nobody else api_label({"api": name, "match_state": matched})
        sums[cell] += amount
        counts[cell] += 1
    ordered = sorted(sums, key=lambda cell: (cell[0], -abs(sums[cell]), cell[1]))
    return Corrections(
        rows=tuple(
            Corrected(month=month, label=label, rows=counts[month, label], billed_minor=sums[month, label])
            for month, label in ordered
        ),
        count=len(charges), billed_minor=sum(minor), list_cost=_sum(charges, "list_cost"),
        contracted_cost=_sum(charges, "contracted_cost"),
    )  # fmt: skip


def chosen(bill: Bill, api: str | None) -> pa.Table:
    """The correction rows of a bill, or those of one API; columns as in CHARGE."""
    return bill.corrections if api is None else bill.corrections.filter(pa.array(keys_of(bill.corrections, api)))


def _sum(charges: pa.Table, column: str) -> Fraction:
    return sum((Fraction(text) for text in charges.column(column).to_pylist() if text is not None), Fraction())
