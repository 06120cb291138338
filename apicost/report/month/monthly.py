"""The figures of a month: computed once, rendered by every format.

Rules of this file:
- Every figure is a number or text of `Figures`: a template formats, it never adds up.
- Billed costs of each table sum to the total: the tables are sums of the same charges that the CSV lists.
- The total is what the month bills: its own usage, and corrections of closed months.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa

from apicost.core import records
from apicost.core.rating import budget, days, money
from apicost.core.rating.bill import Bill
from apicost.core.rating.budget import Variance
from apicost.core.rating.days import DayFigure
from apicost.core.rating.usage_rows import UsageRows
from apicost.report.export import ApiInfo, tags_of, with_owners
from apicost.report.month import labels, movers
from apicost.report.month.before import Before, Spend, spend_of
from apicost.report.month.breakdown import BACKEND_BYTES, CLIENT_BYTES, TOP_ROWS, Breakdown, Row, billed_by, breakdown
from apicost.report.month.cells import cells_of
from apicost.report.month.corrections import Corrections, corrections_of
from apicost.report.month.forecast import DayQuantity, Forecast, forecast
from apicost.report.month.movers import Movers
from apicost.report.month.overhead import WireCost, wire_costs
from apicost.report.month.part import Part
from apicost.report.month.shared import SharedFigure, shared_figures

__all__ = ["TOP_ROWS", "Breakdown", "Figures", "LegFigure", "Row", "SkuRow", "figures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkuRow:
    """What one price of one SKU came to; price and cost are None where there is no price.

    price: what is paid per unit, in `currency`; list_price: the book's without a contract.
    list_cost, contracted_cost: in the statement's currency.
    scope: network scope, for what has no price: it is what a price book is most often silent about.
    """

    sku: str | None
    meter: str
    tier: str | None
    days: tuple[int, int]
    reason: str | None
    quantity: Fraction
    unit: str
    price: Decimal | None
    list_cost: Fraction | None
    contracted_cost: Fraction | None
    list_price: Decimal | None
    currency: str = ""
    scope: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LegFigure:
    """Bytes of one leg: on the wire, and how much of that the application asked for."""

    leg: str
    wire_bytes: int
    app_bytes: int
    payload_bytes: int
    overhead_bytes: int
    resent_bytes: int
    packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that a month's report says."""

    month: str
    time_zone: str
    start_unix_s: int
    end_unix_s: int
    api: str | None
    currency: str
    scale: int
    price_book: str
    price_book_version: str
    closed: bool  # what the month says never changes
    total_minor: int  # usage_minor and corrections
    usage_minor: int  # of the month's own charges
    corrections: Corrections
    total_exact: Fraction  # of the month's own charges, before rounding
    total_list: Fraction  # what the same would have cost without contracts
    whole_minor: int  # the bill's total, of which this report's may be one API's part
    before: Before | None  # the month before
    movers: Movers | None  # None without a month before
    calls: int
    client_bytes: int
    backend_bytes: int
    by_api: Breakdown
    by_operation: Breakdown
    by_consumer: Breakdown
    by_status: Breakdown
    by_team: Breakdown | None  # None where nobody has a team
    days: tuple[DayFigure, ...]
    no_day_minor: int
    skus: tuple[SkuRow, ...]
    unpriced: tuple[SkuRow, ...]
    spend: Spend
    wire: tuple[WireCost, ...]
    shared: tuple[SharedFigure, ...]
    legs: tuple[LegFigure, ...]
    confidence: tuple[tuple[str, int], ...]
    app_only_bytes: int
    app_only_calls: int
    completeness: tuple[tuple[str, int], ...] | None
    damaged: tuple[str, ...]
    charges: int
    apis: Mapping[str, ApiInfo]
    budgets: tuple[Variance, ...] = ()
    forecast: Forecast | None = None  # of a month that has not ended
    unlocked: tuple[str, ...] = ()  # currencies whose exchange rate of the month may still change

    @property
    def failing_minor(self) -> int:
        """Of requests answered with 4xx and 5xx."""
        return self.spend.client_errors + self.spend.server_errors


def figures(
    bill: Bill,
    daily: UsageRows,
    *,
    apis: Mapping[str, ApiInfo] | None = None,
    completeness: Mapping[str, int] | None = None,
    damaged: Sequence[str] = (),
    before: Before | None = None,
    api: str | None = None,
    complete_days: int | None = None,
    past: Sequence[DayQuantity] = (),
) -> Figures:
    """The figures of a bill, or of one API's part of it.

    daily: the statement's usage by day, as `days.by_day` takes it.
    completeness: sums of records.COMPLETENESS of the month; None where the ledger has none.
    damaged: what of the ledger could not be read, in words. before: the month before, of the same `api`.
    complete_days: so many days of the month are complete, of one that has not ended; None is all of them. past: the
        days of the month before, for the forecast.
    """
    statement = bill.statement
    book, period = statement.book, statement.period
    tagged = tags_of(statement.keys, apis or {}, book.tags)
    part = Part(statement, api, tagged)
    corrected = corrections_of(bill, api)
    day_figures, no_day = days.by_day(statement, daily, api)
    sums = part.sums()
    skus = _skus(part)

    budgets = () if api else _budgets(bill, tagged, apis or {})
    coming = None
    if complete_days is not None:
        so_far = [DayQuantity(day=day.day, calls=day.calls, wire_bytes=day.wire_bytes) for day in day_figures]
        coming = forecast(
            statement, daily, so_far, past, complete_days,
            extra_minor=corrected.billed_minor, api=api, budgets=budgets,
        )  # fmt: skip

    def table(by: labels.Grouping) -> Breakdown:
        return breakdown(part, by, corrected, before.tables[by.id] if before else None)

    return Figures(
        month=period.name, time_zone=period.time_zone, start_unix_s=period.start_unix_s, end_unix_s=period.end_unix_s,
        api=api, currency=book.currency, scale=book.statement_scale, price_book=book.id,
        price_book_version=book.version, closed=bill.closed, total_minor=part.total_minor + corrected.billed_minor,
        usage_minor=part.total_minor, corrections=corrected, total_exact=part.exact_total(),
        total_list=part.list_total(), whole_minor=bill.total_minor, before=before,
        movers=_movers(part, corrected, before) if before else None, calls=sums["calls"],
        client_bytes=sum(sums[name] for name in CLIENT_BYTES), backend_bytes=sum(sums[name] for name in BACKEND_BYTES),
        by_api=table(labels.BY_API), by_operation=table(labels.BY_OPERATION), by_consumer=table(labels.BY_CONSUMER),
        by_status=table(labels.BY_STATUS),
        by_team=table(labels.BY_TEAM) if tagged.column("team").null_count < len(tagged) else None,
        days=day_figures, no_day_minor=no_day, skus=tuple(row for row in skus if row.price is not None),
        unpriced=tuple(row for row in skus if row.price is None), spend=spend_of(part), wire=wire_costs(part),
        shared=shared_figures(part), legs=tuple(_leg(leg, sums) for leg in records.LEGS),
        confidence=tuple((n, sums[f"{n}_bytes"]) for n in ("exact", "aligned", "apportioned", "unattributed")),
        app_only_bytes=sums["app_only_bytes"], app_only_calls=sums["app_only_calls"],
        completeness=None if completeness is None else tuple(sorted(completeness.items())), damaged=tuple(damaged),
        charges=int(part.charges.sum()) + corrected.count, apis=dict(apis or {}),
        budgets=budgets, forecast=coming, unlocked=tuple(rate.currency for rate in statement.unlocked_rates),
    )  # fmt: skip


def _budgets(bill: Bill, tagged: pa.Table, apis: Mapping[str, ApiInfo]) -> tuple[Variance, ...]:
    statement = bill.statement
    corrections = with_owners(bill.corrections, apis, statement.book.tags)
    return budget.variance(statement, statement.book, tagged, corrections)


def _movers(part: Part, corrected: Corrections, before: Before) -> Movers:
    billed = {by.id: billed_by(part, by, corrected.billed_minor) for by in (labels.BY_API, labels.BY_OPERATION)}
    books = movers.book_change(before.prices, movers.prices_in_force(part.statement))
    now = cells_of(part, before.conditions)
    return movers.movers(before.cells, now, before.tables, billed, books, part.statement.book.statement_scale)


def _leg(leg: str, sums: Mapping[str, int]) -> LegFigure:
    def both(kind: str) -> int:
        return sums[f"{leg}_in_{kind}"] + sums[f"{leg}_out_{kind}"]

    return LegFigure(
        leg=leg, wire_bytes=both("wire_bytes"), app_bytes=both("app_bytes"), payload_bytes=both("payload_bytes"),
        overhead_bytes=sums[f"{leg}_overhead_bytes"], resent_bytes=sums[f"{leg}_resent_bytes"],
        packets=both("packets"),
    )  # fmt: skip


def _skus(part: Part) -> list[SkuRow]:
    """What each line of the statement came to; lines without a price by scope."""
    statement = part.statement
    rows = []
    for line, picked, total in zip(statement.lines, part.of_line, part.by_line, strict=True):
        parts: list[tuple[str | None, int]] = [(None, total)]
        if line.price is None:
            side = "upstream_scope" if line.meter.startswith("upstream") else "scope"
            codes, texts = records.codes(statement.keys, side)
            sums = money.add_by(codes[statement.key[picked]] + 1, statement.quantity[picked], len(texts) + 1)
            parts = [(text, int(sums[i])) for i, text in enumerate([None, *texts])]
        rows += [
            SkuRow(
                sku=line.sku, meter=line.meter, tier=line.tier, days=(line.first_day, line.end_day),
                reason=line.reason, quantity=Fraction(amount, line.unit_base), unit=line.unit,
                price=line.contracted_price, list_price=line.price, currency=line.currency,
                list_cost=None if line.price is None else line.list_cost_of(amount),
                contracted_cost=None if line.price is None else line.cost_of(amount), scope=scope,
            )
            for scope, amount in parts
            if amount
        ]  # fmt: skip
    return rows
