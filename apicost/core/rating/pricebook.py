"""What the price book says, as plain data: made by `catalog/prices.py`, used by `core/rating/rate.py`.

Rules of this file:
- Money is Decimal, quantities are integers of the base unit (requests, bytes, tokens).
- A price is in its pricing currency; every cost is in the book's, converted by the month's rate or not at all.
- A date is a calendar date of the book's time zone; `until` is exclusive, None is open.
- Each entry keeps its `place` (FILE:LINE), so that a charge can be traced to the line that priced it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction

from apicost.core.rating import money
from apicost.core.rating.models import NO_MODELS, ModelPrices

METERS = ("calls", "bytes", "tokens")
EXTERNAL = "external"

# Pricing unit -> (meter, base units in one of it).
UNITS: Mapping[str, tuple[str, int]] = {
    "Requests": ("calls", 1),
    "1000 Requests": ("calls", 1_000),
    "1000000 Requests": ("calls", 1_000_000),
    "GB": ("bytes", 10**9),
    "GiB": ("bytes", 1 << 30),
    "Tokens": ("tokens", 1),
    "1000 Tokens": ("tokens", 1_000),
    "1000000 Tokens": ("tokens", 1_000_000),
}

# What `where` may ask of a usage row -> the column that answers. `scope` is the client's on the
# downstream leg and the backend's on the upstream leg.
WHERE_COLUMNS: Mapping[str, str] = {
    "api": "api",
    "operation": "operation_id",
    "method": "method",
    "route": "route_id",
    "service": "service_id",
    "consumer": "consumer",
    "status_class": "status_class",
    "scope": "scope",
    "match_state": "match_state",
    "model": "llm_model",
}


# Who counts tiers, packages and the free allowance together -> the key column that tells them apart.
POOLS: Mapping[str, str | None] = {"billing_account": None, "consumer": "consumer", "api": "api"}

# Usage column -> accepted values, as `match.matches` takes it; every condition must hold.
Match = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A stretch of the month's quantity and its price per pricing unit.

    up_to: base units, counted from the month's first billable one; None is without end.
    """

    up_to: int | None
    price: Decimal
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a SKU costs from one date until another.

    mode: flat (one tier without end), graduated (each unit at its tier's price), volume (all units at the price
        of the tier that the pool's month reaches), package (one tier, priced per started `size`) or external (no
        tier: each model's prices stand in `PriceBook.models`).
    size: base units in one package; 0 for the other modes.
    pool: of POOLS. currency: the price's; None is the book's.
    source, provider: of an external price: whose list it is, and at whom models are looked up there ("": who claims
        their name).
    """

    since: date
    until: date | None
    mode: str
    tiers: tuple[Tier, ...]
    size: int = 0
    source: str = ""
    provider: str = ""
    pool: str = "billing_account"
    currency: str | None = None
    place: str = ""

    @property
    def package_parts(self) -> int:
        """Into how many parts a package is divided among rows: the power of ten from `size` on, so that a part is
        at most one base unit and every share is an exact decimal."""
        parts = 1
        while parts < self.size:
            parts *= 10
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sku:
    """A unit of sale: which usage it meters, and its dated prices. Within a month they have one pool.

    where: column of WHERE_COLUMNS -> accepted values; every condition must hold.
    columns: the usage columns whose sum is the quantity.
    free: base units per month and pool that cost nothing, shared among the rows pro rata; 0 none.
    quantum: bytes of a block of a request, each started one counted as a call; 0: requests are counted.
    """

    id: str
    meter: str
    unit: str
    columns: tuple[str, ...]
    where: Mapping[str, tuple[str, ...]]
    prices: tuple[Price, ...]
    free: int = 0
    byte_basis: str = "wire"
    quantum: int = 0
    place: str = ""

    @property
    def is_external(self) -> bool:
        """Whether models have their prices from a list outside the book, on some days at least."""
        return any(price.mode == EXTERNAL for price in self.prices)

    @property
    def unit_base(self) -> int:
        """Base units in one pricing unit."""
        return UNITS[self.unit][1]

    def price_on(self, day: date) -> Price | None:
        """The price in force on a calendar date; None where the book has none."""
        for price in self.prices:
            if price.since <= day and (price.until is None or day < price.until):
                return price
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCost:
    """A fixed monthly amount that is shared out by weights.

    weights: "calls" and "bytes" (wire bytes of both legs and directions) -> their part; they sum to 1.
    keep_unallocated: the part of the amount that stays unallocated as idle.
    since, until: first days of months; None is open.
    """

    id: str
    amount: Decimal
    method: str
    weights: Mapping[str, Decimal]
    keep_unallocated: Decimal = Decimal(0)
    since: date | None = None
    until: date | None = None
    place: str = ""

    def is_due(self, first_day: date) -> bool:
        """Whether the month that begins on `first_day` bears this cost."""
        return (self.since is None or self.since <= first_day) and (self.until is None or first_day < self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What somebody agreed to pay instead of the list price.

    skus: ids of those it is about; none is all.
    discount_pct: off every price; or price: for each unit but those of the free allowance, in the SKU's currency.
    """

    match: Match
    skus: tuple[str, ...] = ()
    discount_pct: Decimal | None = None
    price: Decimal | None = None
    since: date | None = None
    until: date | None = None
    place: str = ""

    def applies(self, sku: str, day: date) -> bool:
        """Whether the contract is about a SKU on a date."""
        return (
            (not self.skus or sku in self.skus)
            and (self.since is None or self.since <= day)
            and (self.until is None or day < self.until)
        )  # fmt: skip

    def price_for(self, listed: Decimal) -> Decimal:
        """The contracted price per unit, exactly. What is free stays free."""
        if self.discount_pct is not None:
            return money.exact_decimal(Fraction(listed) * (100 - Fraction(self.discount_pct)) * Fraction(1, 100))
        assert self.price is not None, f"{self.place}: a contract has a discount or a price"
        return self.price if listed else listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """What a consumer pays a month at least: what its usage falls short of it is a charge.

    since, until: first days of months; None is open.
    """

    consumer: str
    minimum: Decimal
    since: date | None = None
    until: date | None = None
    place: str = ""

    def is_due(self, first_day: date) -> bool:
        """Whether the month that begins on `first_day` is under this commitment."""
        return (self.since is None or self.since <= first_day) and (self.until is None or first_day < self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class FxRate:
    """What one unit of `currency` is worth in the book's, in one month (YYYY-MM).

    locked: whether finance has fixed it; a month is not closed by a rate that may still change.
    """

    currency: str
    period: str
    rate: Decimal
    locked: bool
    source: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What some part of a month may cost. match: of BUDGET_MATCH -> accepted values; every condition must hold."""

    match: Match
    month: str
    amount: Decimal
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRule:
    """Whose some usage is. tags: of TAGS -> value."""

    match: Match
    tags: Mapping[str, str]
    place: str = ""


COMMITMENT = "commitment"  # stands as SKU of what a consumer's month falls short of its minimum
TAGS = ("owner", "team", "cost_center")
# What a tag rule may ask, finest first: the finest rule that matches gives the tag.
TAG_MATCH = ("operation", "route", "service", "api", "consumer")
BUDGET_MATCH: Mapping[str, str] = {"api": "api", "consumer": "consumer", **{tag: tag for tag in TAGS}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBook:
    """A whole price book.

    scopes: (name, networks in CIDR notation), in order; the first match wins, none is "unknown".
    statement_scale: decimal places of billed costs.
    models: what external prices are for the models of a month's usage; put in when that is known
        (`catalog/model_prices.resolve`).
    """

    id: str
    version: str
    currency: str
    time_zone: str
    skus: tuple[Sku, ...]
    scopes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shared_costs: tuple[SharedCost, ...] = ()
    contracts: tuple[Contract, ...] = ()  # the first that matches a row is its contract
    commitments: tuple[Commitment, ...] = ()
    fx: tuple[FxRate, ...] = ()
    budgets: tuple[Budget, ...] = ()
    tags: tuple[TagRule, ...] = ()
    models: ModelPrices = NO_MODELS
    statement_scale: int = 2
    file: str = ""
    remarks: tuple[str, ...] = field(default=())

    def terms_on(self, sku: Sku, day: date) -> tuple[Price | None, tuple[int, ...]]:
        """The price of a SKU on a date, and the contracts about it, as positions in `contracts`."""
        price = sku.price_on(day)
        if price is None or not self.contracts:
            return price, ()
        return price, tuple(i for i, contract in enumerate(self.contracts) if contract.applies(sku.id, day))

    def stretches(self, sku: Sku, days: Sequence[date]) -> list[Stretch]:
        """Consecutive dates cut where a SKU's price, or a contract about it, begins or ends."""
        terms = [self.terms_on(sku, day) for day in days]
        starts = [i for i, (price, contracts) in enumerate(terms)
                  if i == 0 or price is not terms[i - 1][0] or contracts != terms[i - 1][1]]  # fmt: skip
        ends = [*starts[1:], len(terms)]
        return [
            Stretch(first_day=first, end_day=end, price=terms[first][0], contracts=terms[first][1])
            for first, end in zip(starts, ends, strict=True)
        ]

    def price_changes(self, days: Sequence[date]) -> tuple[int, ...]:
        """Positions in `days` (consecutive dates) at which the terms of some SKU change; 0 is always there."""
        changed = {stretch.first_day for sku in self.skus for stretch in self.stretches(sku, days)}
        if any(sku.is_external for sku in self.skus):
            changed |= {days.index(day) for day in self.models.changes if days[0] <= day <= days[-1]}
        return tuple(sorted({0, *changed}))

    def fx_rate(self, price: Price, month: str) -> FxRate | None:
        """The rate that converts a price's costs in a month; None where it is in the book's currency, or missing."""
        return next((rate for rate in self.fx if (rate.currency, rate.period) == (price.currency, month)), None)

    def is_foreign(self, price: Price) -> bool:
        """Whether a price is in another currency than the book."""
        return price.currency not in (None, self.currency)

    def without_rate(self, days: Sequence[date], month: str) -> tuple[tuple[Sku, Price], ...]:
        """Prices in force on some dates of a month that no exchange rate of that month converts."""
        in_force = {
            (sku.id, price.since): (sku, price)
            for sku in self.skus
            for price in (stretch.price for stretch in self.stretches(sku, days))
            if price is not None and self.is_foreign(price) and self.fx_rate(price, month) is None
        }
        return tuple(in_force.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Days on which a SKU has one price and the same contracts. The end is exclusive; days count from 0."""

    first_day: int
    end_day: int
    price: Price | None
    contracts: tuple[int, ...]
