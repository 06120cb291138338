"""What the price book says, as plain data: made by `catalog/prices.py`, used by `core/rating/rate.py`.

Rules of this file:
- Money is Decimal, quantities are integers of the base unit (requests, bytes, tokens).
- A date is a calendar date of the book's time zone; `until` is exclusive, None is open.
- Each entry keeps its `place` (FILE:LINE), so that a charge can be traced to the line that priced it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

METERS = ("calls", "bytes", "tokens")

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
    """What a SKU costs from one date until another. Flat is one tier without end."""

    since: date
    until: date | None
    mode: str  # flat or graduated
    tiers: tuple[Tier, ...]
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sku:
    """A unit of sale: which usage it meters, and its dated prices.

    where: column of WHERE_COLUMNS -> accepted values; every condition must hold.
    columns: the usage columns whose sum is the quantity.
    free: base units per month that cost nothing, shared among the rows pro rata; 0 none.
    """

    id: str
    meter: str
    unit: str
    columns: tuple[str, ...]
    where: Mapping[str, tuple[str, ...]]
    prices: tuple[Price, ...]
    free: int = 0
    byte_basis: str = "wire"
    place: str = ""

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
class PriceBook:
    """A whole price book.

    scopes: (name, networks in CIDR notation), in order; the first match wins, none is "unknown".
    statement_scale: decimal places of billed costs.
    """

    id: str
    version: str
    currency: str
    time_zone: str
    skus: tuple[Sku, ...]
    scopes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shared_costs: tuple[SharedCost, ...] = ()
    statement_scale: int = 2
    file: str = ""
    remarks: tuple[str, ...] = field(default=())

    def price_changes(self, days: Sequence[date]) -> tuple[int, ...]:
        """Positions in `days` (consecutive dates) at which the price of some SKU changes; 0 is always there."""
        changed = {0}
        for sku in self.skus:
            prices = [sku.price_on(day) for day in days]
            changed |= {i for i in range(1, len(days)) if prices[i] is not prices[i - 1]}
        return tuple(sorted(changed))
