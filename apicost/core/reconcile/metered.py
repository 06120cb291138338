"""What was metered, as the bridge takes it: quantity, cost and prices of each SKU in a month.

Rules of this file:
- Costs are contracted costs in the book's currency, exact; what is billed of them is their rounding.
- Quantities are base units of priced usage. Of a package price, usage counts, not the packages begun.
- What has no price is no cost; its quantity stands by itself, by what is known of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.bill import Bill, minor_of
from apicost.core.rating.match import matches
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import COMMITMENT, Price, PriceBook, Sku
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
    prices, list_prices: per base unit, of every tier in force in the month.
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
    statement = bill.statement
    book, minor = statement.book, 10**statement.book.statement_scale
    corrections = _corrections(bill)
    found = {sku.id: _sku(statement, sku, (edges or {}).get(sku.id, 0), corrections) for sku in book.skus}
    names = {line.sku for line in statement.lines if line.category == PURCHASE and line.sku}
    for name in sorted(names | {cost.id for cost in book.shared_costs} | set(corrections) | {COMMITMENT}):
        if name not in found:
            cost, listed, billed = _costs(statement, name)
            found[name] = MeteredSku(
                id=name, unit=None, cost=cost, listed=listed, billed=billed,
                corrections=corrections.get(name, Fraction()),
            )  # fmt: skip
    rates = {rate.currency: Fraction(rate.rate) for rate in book.fx if rate.period == statement.period.name}
    return Metered(
        month=statement.period.name, currency=book.currency, scale=book.statement_scale,
        total=Fraction(bill.total_minor, minor), skus=found, unpriced=_unpriced(statement), rates=rates,
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
            picked = matches(sku.where, usage)
            for column in sku.columns:
                values = records.numbers(usage, column).astype(np.int64, copy=False)
                quantities[sku.id] += sign * money.exact_sum(values[picked])
    return quantities


def _sku(statement: Statement, sku: Sku, edges: int, corrections: Mapping[str, Fraction]) -> MeteredSku:
    cost, listed, billed = _costs(statement, sku.id)
    prices, list_prices, first = _prices(statement, sku)
    return MeteredSku(
        id=sku.id, unit=sku.unit, unit_base=sku.unit_base, quantity=_quantity(statement, sku), cost=cost,
        listed=listed, billed=billed, corrections=corrections.get(sku.id, Fraction()), edges=edges, prices=prices,
        list_prices=list_prices, first_price=first, measures=sku.columns, without_request=_unclaimed(statement, sku.id),
    )  # fmt: skip


def _of(statement: Statement, sku: str) -> list[int]:
    """The priced lines of a SKU."""
    return [n for n, line in enumerate(statement.lines) if line.sku == sku and line.price is not None]


def _costs(statement: Statement, sku: str) -> tuple[Fraction, Fraction, Fraction]:
    """Contracted and list cost, and what is billed."""
    numbers = _of(statement, sku)
    lines = [statement.lines[n] for n in numbers]
    billed = money.exact_sum(statement.billed_minor[np.isin(statement.line, numbers)])
    return (
        sum((line.cost_of(line.quantity) for line in lines), Fraction()),
        sum((line.list_cost_of(line.quantity) for line in lines), Fraction()),
        Fraction(billed, 10**statement.book.statement_scale),
    )


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
    lines = [statement.lines[n] for n in _of(statement, sku.id)]
    plain = [line for line in lines if line.unit == sku.unit]  # a package is no base unit
    paid = {Fraction(*line.cost_ratio()) for line in plain}
    listed = {Fraction(*line.list_ratio()) for line in plain}
    first = Fraction()
    for stretch in statement.book.stretches(sku, statement.period.days):
        if stretch.price is None:
            continue
        of_stretch = _list_prices(statement, sku, stretch.price)
        first = first or next((price for price in of_stretch if price), Fraction())
        listed.update(of_stretch)
        paid.update(of_stretch)
    return frozenset(paid), frozenset(listed), first


def _list_prices(statement: Statement, sku: Sku, price: Price) -> list[Fraction]:
    rate = statement.book.fx_rate(price, statement.period.name) if statement.book.is_foreign(price) else None
    base = Fraction(1 if rate is None else rate.rate) / (price.size or sku.unit_base)
    return [*([Fraction()] if sku.free else []), *(Fraction(tier.price) * base for tier in price.tiers)]


def _unclaimed(statement: Statement, sku: str) -> Fraction:
    """The part of a SKU's cost that falls on bytes that no request claims."""
    without = _no_request(statement)[statement.key]
    total = Fraction()
    for number in _of(statement, sku):
        rows = (statement.line == number) & without
        total += statement.lines[number].cost_of(money.exact_sum(statement.quantity[rows]))
    return total


def _no_request(statement: Statement) -> npt.NDArray[np.bool_]:
    return matches({"match_state": NO_REQUEST}, statement.keys)


def _unpriced(statement: Statement) -> dict[str, dict[str, int]]:
    """Base units without a price by measure; of a SKU that has none on some days by all that it counts."""
    without = _no_request(statement)[statement.key]
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(statement.lines):
        if line.state != UNPRICED:
            continue
        rows = statement.line == number
        of_line = found.setdefault(line.meter, {"unattributed": 0, "unpriced": 0})
        of_line["unattributed"] += money.exact_sum(statement.quantity[rows & without])
        of_line["unpriced"] += money.exact_sum(statement.quantity[rows & ~without])
    return found


def _corrections(bill: Bill) -> dict[str, Fraction]:
    """What corrections come to, by SKU."""
    scale = bill.statement.book.statement_scale
    found: dict[str, Fraction] = {}
    names = bill.corrections.column("sku").to_pylist()
    for name, minor in zip(names, minor_of(bill.corrections, scale), strict=True):
        if name is not None:
            found[name] = found.get(name, Fraction()) + Fraction(minor, 10**scale)
    return found
