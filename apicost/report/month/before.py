"""The month before, as far as a report holds its own figures against it: small, whatever the month's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from apicost.core.rating import money, rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.statement import UNALLOCATED
from apicost.report.export import ApiInfo, tags_of
from apicost.report.month import cells, movers, overhead
from apicost.report.month.breakdown import CLIENT_BYTES, billed_by
from apicost.report.month.cells import Cell, CellKey, Conditions
from apicost.report.month.corrections import corrections_of
from apicost.report.month.labels import GROUPINGS, UNDOCUMENTED_STATES, Label
from apicost.report.month.movers import Prices
from apicost.report.month.overhead import wire_costs
from apicost.report.month.part import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What is worth a question, in minor units: of the month's own usage, without corrections.

    undocumented: of traffic that no OpenAPI document describes; client_errors, server_errors: of requests answered with
    4xx and 5xx; overhead: of wire bytes that are not the requests' own; unallocated: shared cost that nobody bears.
    """

    undocumented: int
    client_errors: int
    server_errors: int
    overhead: int
    unallocated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The month before.

    total_minor: with corrections; of one API where the report is about one. total_exact: without them, before
    rounding. tables: Grouping.id -> label -> billed cost. prices: as movers.prices_in_force gives them. conditions:
    those of both months' contracts, by which `cells` are told apart.
    """

    month: str
    total_minor: int
    corrections_minor: int
    total_exact: Fraction
    calls: int
    client_bytes: int
    tables: Mapping[str, Mapping[Label, int]]
    cells: Mapping[CellKey, Cell]
    spend: Spend
    prices: Prices
    conditions: Conditions


def sums_needed(book: PriceBook) -> tuple[str, ...]:
    """The sums of usage that the month before is rated and compared by: two thirds of all."""
    return tuple(dict.fromkeys((*rate.sums_needed(book), "calls", *CLIENT_BYTES, *overhead.sums_needed(book))))


def before_of(bill: Bill, this: PriceBook, apis: Mapping[str, ApiInfo], api: str | None = None) -> Before:
    """What to keep of the month before. this: the price book of the month that is reported."""
    statement = bill.statement
    part = Part(statement, api, tags_of(statement.keys, apis, statement.book.tags))
    corrected = corrections_of(bill, api)
    asked = cells.conditions((statement.book, this))
    sums = {name: money.exact_sum(statement.usage.sums[name][part.rows]) for name in ("calls", *CLIENT_BYTES)}
    return Before(
        month=statement.period.name, total_minor=part.total_minor + corrected.billed_minor,
        corrections_minor=corrected.billed_minor, total_exact=part.exact_total(), calls=sums["calls"],
        client_bytes=sum(sums[name] for name in CLIENT_BYTES),
        tables={by.id: billed_by(part, by, corrected.billed_minor) for by in GROUPINGS},
        cells=cells.cells_of(part, asked), spend=spend_of(part),
        prices=movers.prices_in_force(statement), conditions=asked,
    )  # fmt: skip


def spend_of(part: Part) -> Spend:
    """What of a part is worth a question."""
    return Spend(
        undocumented=part.billed_in("match_state", UNDOCUMENTED_STATES),
        client_errors=part.billed_in("status_class", ("4xx",)), server_errors=part.billed_in("status_class", ("5xx",)),
        overhead=sum(row.overhead_minor for row in wire_costs(part)),
        unallocated=part.billed_of([line.state == UNALLOCATED for line in part.statement.lines]),
    )  # fmt: skip
