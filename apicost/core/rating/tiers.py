"""A stretch of a SKU's month cut into tiers, packages and free units, pool by pool.

Rules of this file:
- A pool's month is a line that begins at 0 on the first of the month. The free allowance covers its start; tiers
  and packages are counted from where the allowance ends. Stretches of days lie on the line one after the other.
- Within a stretch nobody is first: what a tier takes of a pool is shared among the pool's keys pro rata of what
  each has left, by largest remainder, ties in key order.
- Pools know nothing of each other: a pool is rated as if it were alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.pricebook import POOLS, Price, Sku

Ints = npt.NDArray[np.int64]

_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one tier, package price or free allowance takes of a stretch.

    label: of the charge, such as "tier 2"; number: of its price id.
    price: per `unit`, in the pricing currency. by_key: quantity of each key, `unit_base` of them in one unit.
    starts_at, pool: with one pool alone, where on its month the step begins and what was left to be shared; else 0.
    """

    label: str
    number: str
    price: Decimal
    place: str
    unit: str
    unit_base: int
    by_key: Ints
    starts_at: int
    pool: int


class Pools:
    """Who counts a month together.

    of: the pool of each key, from 0, where there are several; count: how many there are.
    """

    def __init__(self, of: npt.NDArray[np.integer], count: int) -> None:
        self.of = of
        self.count = count
        self._order: Ints | None = None
        self._starts: Ints | None = None

    @classmethod
    def by(cls, pool: str, keys: Iterable[pa.Table]) -> Pools:
        """The pools of a price: one, or one for each value of a key column; keys without a value are one, too.

        keys: one after the other. One pool asks for none of them.
        """
        column = POOLS[pool]
        if column is None:
            return cls(np.zeros(0, np.int32), 1)
        known: dict[str, int] = {}
        of = []
        for table in keys:
            codes, values = records.codes(table, column)
            of.append(np.array([*(known.setdefault(v, len(known) + 1) for v in values), 0], np.int32)[codes])
        return cls(np.concatenate(of), len(known) + 1)

    def total(self, by_key: Ints) -> Ints:
        """Sums by pool."""
        if self.count == 1:
            return np.array([money.exact_sum(by_key)], np.int64)
        return money.add_by(self.of, by_key, self.count)

    def take(self, amount: Ints, left: Ints) -> Ints:
        """`amount` of what each pool has `left`, by key: never more than a key has."""
        whole = self.total(left)
        if (amount == whole).all():
            return left
        if self.count == 1:
            return money.share(int(amount[0]), left) if amount[0] else np.zeros(len(left), np.int64)
        part = np.where((amount == whole)[self.of], left, 0)
        for pool in np.flatnonzero((amount > 0) & (amount < whole)).tolist():
            rows = self._rows(pool)
            part[rows] = money.share(int(amount[pool]), left[rows])
        return part

    def share(self, amount: Ints, weights: Ints) -> Ints:
        """`amount` of each pool given to its keys by weight, which is more than 0 where there is an amount."""
        part = np.zeros(len(weights), np.int64)
        for pool in np.flatnonzero(amount).tolist():
            rows = self._rows(pool)
            part[rows] = money.share(int(amount[pool]), weights[rows])
        return part

    def _rows(self, pool: int) -> Ints | slice:
        """The keys of a pool, in order."""
        if self.count == 1:
            return slice(None)
        if self._order is None or self._starts is None:
            self._order = np.argsort(self.of, kind="stable")
            self._starts = np.searchsorted(self.of[self._order], np.arange(self.count + 1))
        return self._order[self._starts[pool] : self._starts[pool + 1]]


def steps(sku: Sku, price: Price, pools: Pools, left: Ints, consumed: Ints, month: Ints) -> Iterator[Step]:
    """The steps of one stretch of days, in order; those that take nothing are left out.

    left: the stretch's quantity by key; it is overwritten. consumed: by pool, the units of the month's priced days
        before the stretch. month: by pool, those of all its priced days.
    """
    at, end = consumed, consumed + pools.total(left)
    if sku.free:
        upto = np.minimum(end, np.maximum(at, _bounded(sku.free)))
        part = pools.take(upto - at, left)
        yield from _step(sku, pools, "free", "free", Decimal(0), sku.place, part, at, end)
        left, at = _less(left, part), upto
        del part
    if price.mode == "package":
        yield from _packages(sku, price, pools, left, at, end)
        return
    reached = _volume_tiers(sku, price, month) if price.mode == "volume" else None
    for index, tier in enumerate(price.tiers):
        label = "flat" if price.mode == "flat" else f"tier {index + 1}"
        if reached is None:
            upto = end if tier.up_to is None else np.minimum(end, np.maximum(at, _bounded(sku.free + tier.up_to)))
        else:
            upto = np.where(reached == index, end, at)
        part = pools.take(upto - at, left)
        yield from _step(sku, pools, label, str(index + 1), tier.price, tier.place or price.place, part, at, end)
        left, at = _less(left, part), upto
        del part  # columns of all keys are what is large here


def _less(left: Ints, part: Ints) -> Ints:
    """What is left after a part: in the same place, unless the part is all of it and somebody's by now."""
    return np.zeros(len(left), np.int64) if part is left else np.subtract(left, part, out=left)


def _volume_tiers(sku: Sku, price: Price, month: Ints) -> Ints:
    """The tier that each pool's month reaches. A tier holds its last unit: up_to 10 is reached by 1 to 10."""
    ends = np.array([_bounded(tier.up_to) for tier in price.tiers if tier.up_to is not None], np.int64)
    return np.searchsorted(ends, np.maximum(month - _bounded(sku.free), 0), side="left")


def _packages(sku: Sku, price: Price, pools: Pools, left: Ints, at: Ints, end: Ints) -> Iterator[Step]:
    """The packages that begin on a pool's month between `at` and `end`, shared pro rata of the quantity.

    Raises OverflowError where their parts pass 2**62.
    """
    free, parts = _bounded(sku.free), price.package_parts
    begun = _started(np.maximum(end - free, 0), price.size) - _started(np.maximum(at - free, 0), price.size)
    if money.exact_sum(begun) * parts >= _LARGEST:
        raise OverflowError(f"{sku.id}: {money.exact_sum(begun)} packages in {parts} parts pass 2**62")
    (tier,) = price.tiers
    by_key = pools.share(begun * np.int64(parts), left)
    if by_key.any():
        unit = f"package of {money.plain(money.exact_decimal(Fraction(price.size, sku.unit_base)))} {sku.unit}"
        alone = pools.count == 1
        yield Step(
            label="package", number="1", price=tier.price, place=tier.place or price.place, unit=unit, unit_base=parts,
            by_key=by_key, starts_at=int(at[0]) if alone else 0, pool=int(end[0] - at[0]) if alone else 0,
        )  # fmt: skip


def _step(
    sku: Sku, pools: Pools, label: str, number: str, price: Decimal, place: str, part: Ints, at: Ints, end: Ints
) -> Iterator[Step]:
    if part.any():
        alone = pools.count == 1
        yield Step(
            label=label, number=number, price=price, place=place, unit=sku.unit, unit_base=sku.unit_base, by_key=part,
            starts_at=int(at[0]) if alone else 0, pool=int(end[0] - at[0]) if alone else 0,
        )  # fmt: skip


def _started(units: Ints, size: int) -> Ints:
    """How many packages so many units begin."""
    return -(-units // np.int64(_bounded(size)))


def _bounded(units: int) -> int:
    """Units as far as an int64 counts: no month reaches further."""
    return min(units, money.INT64_MAX)
