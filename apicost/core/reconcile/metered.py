"""What was metered, as the bridge takes it: quantity, cost and prices of each SKU in a month.

Rules of this file:
- Costs are contracted costs in the book's currency, exact; what is billed of them is their rounding.
- Quantities are base units of priced usage. Of a package price, usage counts, not the packages begun.
- What has no price is no cost; its quantity stands by itself, by what is known of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import external, money
from apicost.core.rating.bill import Bill, minor_of
from apicost.core.rating.match import matches
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import COMMITMENT, PriceBook, Sku
from apicost.core.rating.statement import PURCHASE, UNPRICED, Statement

NO_REQUEST = ("unattributed", "control")  # match states of bytes that no request claims


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredSku:
    """A SKU in the month.

    unit, unit_base: as in the book; None and 1 for fixed amounts, whose quantity is no usage.
    quantity: base units that have a price. cost, listed: what they cost by contract and by list, exact.
    billed: `cost` as the statement rounds it, all its charges added up.
    corrections: what the month carries of closed months' charges.
    edges: base units in the bill's period and not in the month, less those in the month and not in the bill's period.
    prices, list_prices: per base unit, of every tier in force in the month; `prices` by contract, too.
    first_price: the first of them that is not 0. measures: usage columns that it counts.
    without_request: the part of `cost` that falls on bytes that no request claims.
    """

    id: str
    unit: str | None
    unit_base: int = 1
    quantity: int = 0
    cost: Fraction = Fraction()
    listed: Fraction = Fraction()
    billed: Fraction = Fraction()
    corrections: Fraction = Fraction()
    edges: int = 0
    prices: frozenset[Fraction] = frozenset()
    list_prices: frozenset[Fraction] = frozenset()
    first_price: Fraction = Fraction()
    measures: tuple[str, ...] = ()
    without_request: Fraction = Fraction()

    @property
    def average(self) -> Fraction:
        """Cost of one base unit on average; of a SKU without priced usage its first price that is not 0."""
        return self.cost / self.quantity if self.quantity else self.first_price

    @property
    def tiered(self) -> bool:
        """Whether units have different list prices: tiers or a free allowance."""
        return len(self.list_prices) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """A month.

    total: the bill's total as it is signed. unpriced: measure -> what is known of it -> base units without a price;
        what is known is "unattributed" (no request claims it) or "unpriced".
    rates: currency -> what one unit is worth in the book's, in the month.
    """

    month: str
    currency: str
    scale: int
    total: Fraction
    skus: Mapping[str, MeteredSku]
    unpriced: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rates: Mapping[str, Fraction] = field(default_factory=dict)


def metered(bill: Bill, edges: Mapping[str, int] | None = None) -> Metered:
    """The month of a bill of ours. edges: SKU -> base units, by `edge_quantities`."""
    month = _Month(bill.statement)
    book, minor = bill.statement.book, 10**bill.statement.book.statement_scale
    corrections = _corrections(bill)
    found = {sku.id: month.usage(sku, (edges or {}).get(sku.id, 0), corrections) for sku in book.skus}
    names = {line.sku for line in bill.statement.lines if line.category == PURCHASE and line.sku}
    for name in sorted(names | {cost.id for cost in book.shared_costs} | set(corrections) | {COMMITMENT}):
        if name not in found:
            found[name] = month.fixed(name, corrections)
    rates = {rate.currency: Fraction(rate.rate) for rate in book.fx if rate.period == bill.statement.period.name}
    return Metered(
        month=bill.statement.period.name, currency=book.currency, scale=book.statement_scale,
        total=Fraction(bill.total_minor, minor), skus=found, unpriced=month.unpriced(), rates=rates,
    )  # fmt: skip


def edge_spans(period: Period, start_unix_s: int, end_unix_s: int) -> tuple[tuple[int, int, int], ...]:
    """The stretches of time that only one of month and bill has: (start, end, +1 the bill's, -1 the month's)."""
    spans = []
    for ours, theirs, sign in (
        (period.start_unix_s, start_unix_s, 1), (period.end_unix_s, end_unix_s, -1),
    ):  # fmt: skip
        if theirs < ours:
            spans.append((theirs, ours, sign))
        elif ours < theirs:
            spans.append((ours, theirs, -sign))
    return tuple(spans)


def edge_quantities(book: PriceBook, spans: Sequence[tuple[pa.Table, int]]) -> dict[str, int]:
    """What stretches of time add to each SKU. spans: usage as in records.USAGE, and its sign."""
    quantities = dict.fromkeys((sku.id for sku in book.skus), 0)
    for usage, sign in spans:
        for sku in book.skus:
            for column in sku.columns:
                outside = sku.is_external  # what models of a list cost, another SKU may price before it
                picked = external.covers(book, sku, usage, column) if outside else matches(sku.where, usage)
                values = records.numbers(usage, column).astype(np.int64, copy=False)
                quantities[sku.id] += sign * money.exact_sum(values[picked])
    return quantities


class _Month:
    """A statement added up by its lines, which the figures of SKUs are made from."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        count = len(statement.lines)
        no_request = matches({"match_state": NO_REQUEST}, statement.keys)[statement.key]
        self.billed_minor: list[int] = money.add_by(statement.line, statement.billed_minor, count).tolist()
        quantity = np.where(no_request, statement.quantity, 0)
        self.no_request: list[int] = money.add_by(statement.line, quantity, count).tolist()

    def usage(self, sku: Sku, edges: int, corrections: Mapping[str, Fraction]) -> MeteredSku:
        """A SKU of usage."""
        prices, list_prices, first = _prices(self.statement, sku)
        return replace(
            self.fixed(sku.id, corrections), unit=sku.unit, unit_base=sku.unit_base, edges=edges, prices=prices,
            quantity=_quantity(self.statement, sku), list_prices=list_prices, first_price=first, measures=sku.columns,
        )  # fmt: skip

    def fixed(self, sku: str, corrections: Mapping[str, Fraction]) -> MeteredSku:
        """What is known of everything that has a cost: all of a fixed amount."""
        numbers = _of(self.statement, sku)
        lines = self.statement.lines
        return MeteredSku(
            id=sku, unit=None, corrections=corrections.get(sku, Fraction()),
            cost=sum((lines[n].cost_of(lines[n].quantity) for n in numbers), Fraction()),
            listed=sum((lines[n].list_cost_of(lines[n].quantity) for n in numbers), Fraction()),
            billed=Fraction(sum(self.billed_minor[n] for n in numbers), 10**self.statement.book.statement_scale),
            without_request=sum((lines[n].cost_of(self.no_request[n]) for n in numbers), Fraction()),
        )  # fmt: skip

    def unpriced(self) -> dict[str, dict[str, int]]:
        """Base units without a price by measure; of a SKU that has none on some days by all that it counts."""
        found: dict[str, dict[str, int]] = {}
        for line, no_request in zip(self.statement.lines, self.no_request, strict=True):
            if line.state == UNPRICED:
                of_line = found.setdefault(line.meter, {"unattributed": 0, "unpriced": 0})
                of_line["unattributed"] += no_request
                of_line["unpriced"] += line.quantity - no_request
        return found


def _of(statement: Statement, sku: str) -> list[int]:
    """The priced lines of a SKU."""
    return [n for n, line in enumerate(statement.lines) if line.sku == sku and line.price is not None]


def _quantity(statement: Statement, sku: Sku) -> int:
    """Priced base units. Packages don't say how many: there it is the usage of days that have a price."""
    lines = [statement.lines[n] for n in _of(statement, sku.id)]
    if all(line.unit == sku.unit for line in lines):
        return sum(line.quantity for line in lines)
    usage, days = statement.usage, statement.period.days
    priced = np.array([sku.price_on(day) is not None for day in days], np.bool_)
    rows = matches(sku.where, usage.keys)[usage.key] & priced[usage.day]
    return money.exact_sum(usage.of(sku.columns)[rows])


def _prices(statement: Statement, sku: Sku) -> tuple[frozenset[Fraction], frozenset[Fraction], Fraction]:
    """Per base unit in the book's currency: what is paid, what the list says, and the first that is not 0."""
    book, period = statement.book, statement.period
    lines = [statement.lines[n] for n in _of(statement, sku.id)]
    plain = [line for line in lines if line.unit == sku.unit]  # a package is no base unit
    paid = {Fraction(*line.cost_ratio()) for line in plain}
    listed = {Fraction(*line.list_ratio()) for line in plain}
    first = Fraction()
    for stretch in book.stretches(sku, period.days):
        price = stretch.price
        if price is None:
            continue
        rate = book.fx_rate(price, period.name) if book.is_foreign(price) else None
        base = Fraction(1 if rate is None else rate.rate) / (price.size or sku.unit_base)
        contracts = [book.contracts[n] for n in stretch.contracts]
        of_tiers = [Fraction(tier.price) * base for tier in price.tiers]
        first = first or next((each for each in of_tiers if each), Fraction())
        listed.update([*of_tiers, *([Fraction()] if sku.free else [])])
        paid.update(Fraction(c.price_for(tier.price)) * base for tier in price.tiers for c in contracts)
    return frozenset(paid | listed), frozenset(listed), first


def _corrections(bill: Bill) -> dict[str, Fraction]:
    """What corrections come to, by SKU."""
    scale = bill.statement.book.statement_scale
    found: dict[str, Fraction] = {}
    names = bill.corrections.column("sku").to_pylist()
    for name, minor in zip(names, minor_of(bill.corrections, scale), strict=True):
        if name is not None:
            found[name] = found.get(name, Fraction()) + Fraction(minor, 10**scale)
    return found
