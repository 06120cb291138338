"""Usage of a month to charges, by a price book: exact, pure, and the same whatever the order of rows.

Rules of this file:
- Quantities are integers of the base unit; costs are exact fractions until the one rounding at the end.
  There is no float, and a test reads this file to hold that.
- How a month is counted in tiers, packages and free units stands in tiers.py. A stretch of days ends where the
  price or a contract about it begins or ends.
- A contract changes what is paid for a unit, not how units are counted: list costs are those without it, and
  billed costs come from contracted ones.
- Costs are in the book's currency, converted by the rate of the month; without a rate nothing is rated.
- What has no price is a charge without a cost, with its quantity and the reason. A measure for which the
  book has no SKU at all is one such charge for the month.
- A commitment's shortfall is a charge of the consumer, exact, before any rounding: the minimum less what all
  priced usage of the consumer comes to; shares of shared costs don't count.
- Shared costs are split over the rows by weight, in units of 10**-10 of the currency (10**-6 from 100 million
  on); parts without weight stay unallocated.
- The total is rounded once, half-even; billed costs are rounded to it (money.round_tree).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import lcm

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.rating import external, money, tiers
from apicost.core.rating.match import matches
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import COMMITMENT, EXTERNAL, Commitment, PriceBook, SharedCost, Sku, Stretch
from apicost.core.rating.statement import PRICED, PURCHASE, UNALLOCATED, UNPRICED, USAGE, Line, Statement
from apicost.core.rating.usage_rows import KEYS, UsageRows, gather

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

WIRE_BYTES = tuple(f"{leg}_{way}_wire_bytes" for leg in records.LEGS for way in ("in", "out"))
TOKENS = ("llm_prompt_tokens", "llm_completion_tokens")
# What a book can sell: measure -> unit in which a quantity without a price is shown.
MEASURES = {"calls": "Requests", **dict.fromkeys(WIRE_BYTES, "GB"), **dict.fromkeys(TOKENS, "Tokens")}
_BASES = {"Requests": 1, "GB": 10**9, "Tokens": 1}
# Meter -> the requests of which its quantity is not known.
_UNCOUNTED = {"calls": "calls_without_quanta", "tokens": "llm_calls_without_tokens"}
# Levels of the tree that billed costs are rounded down: API, operation, consumer.
_LEVELS = (1, 5, 6)

NO_PRICE = "no price of this SKU is in force on these days"
NO_SKU = "no SKU of the price book covers this row"
NOT_SOLD = "the price book has no SKU for this measure"
NO_BLOCKS = "the blocks of these requests were not counted"
NO_TOKENS = "the gateway has no token counts of these requests: their tokens are in no charge"
APP_ONLY = "no kernel flow was seen: the gateway's own count, not wire bytes"
IDLE = "kept unallocated as idle by the price book"
NO_WEIGHT = "nothing in the month carries this weight"


def rate(usage: pa.Table, book: PriceBook, period: Period) -> Statement:
    """Price a month's usage.

    usage: as `usage_rows.gather` takes it: the columns of records.USAGE, of any time grain that does not
        cross midnight of the book's time zone, in any order; keys may be missing.
    period: `period.month(name, book.time_zone)`.

    Returns the statement: charges sorted by key, then by line of the book.
    Raises ValueError for usage outside the period, OverflowError where a month's sum passes 2**62.
    """
    usage = prompts.with_parts(usage, external.columns_needed(book))
    return rate_rows(gather(usage, period, book.price_changes(period.days)), book, period)


def rate_rows(usage: UsageRows, book: PriceBook, period: Period) -> Statement:
    """Price usage that is gathered already, by stretches that no price change cuts.

    Raises ValueError where one does, or where a price in force has no exchange rate of the month: see
    `PriceBook.without_rate`.
    """
    uncut = sorted(set(book.price_changes(period.days)) - set(usage.cuts))
    if uncut:
        raise ValueError(f"usage of {period.name} is not cut at the price changes of days {uncut}")
    if missing := book.without_rate(period.days, period.name):
        raise ValueError(f"no exchange rate of {period.name} for {[price.place for _, price in missing]}")
    sheet = _Sheet(usage, book, period)
    for sku in book.skus:
        sheet.add_sku(sku)
    sheet.add_what_no_sku_covers()
    for shared in book.shared_costs:
        if shared.is_due(period.days[0]):
            sheet.add_shared(shared)
    for commitment in sheet.due:
        sheet.add_commitment(commitment)
    return sheet.statement()


def sums_needed(book: PriceBook) -> tuple[str, ...]:
    """The columns of records.USAGE_SUMS that a statement's charges are made from."""
    sold = {column for sku in book.skus for column in sku.columns} | set(external.columns_needed(book))
    sold |= {_UNCOUNTED[sku.meter] for sku in book.skus if sku.quantum or sku.meter == "tokens"}
    return tuple(sorted({"calls", "app_only_bytes", *WIRE_BYTES, *MEASURES, *sold}))


@dataclass(slots=True)
class _Piece:
    """Charges of one line: the keys that bear it and their quantities."""

    line: Line
    keys: Keys
    quantity: Ints


class _Sheet:
    """A statement in the making."""

    def __init__(self, usage: UsageRows, book: PriceBook, period: Period) -> None:
        self.usage = usage
        self.book = book
        self.period = period
        self.keys = len(usage.keys)
        self.pieces: list[_Piece] = []
        self.covered: dict[str, Mask] = {}
        self.pools: dict[str, tiers.Pools] = {}
        self.due = [commitment for commitment in book.commitments if commitment.is_due(period.days[0])]
        # A shortfall is no usage row's: it has a key of its consumer alone, after the usage's keys.
        self.consumers = sorted({commitment.consumer for commitment in self.due})

    # -- usage ---------------------------------------------------------------------------------------------

    def add_sku(self, sku: Sku) -> None:
        """Charges of one SKU: stretch by stretch of days with one price, then tier by tier."""
        picked = picks(sku, self.usage.keys)
        for column in _measures(sku):
            self.covered[column] = self.covered.get(column, np.zeros(self.keys, np.bool_)) | picked
        quantity = self._quantity(sku, picked)
        stretches = self.book.stretches(sku, self.period.days)
        pools = self._pools(sku, stretches)
        month = self._month(sku, stretches, pools, quantity)
        consumed = np.zeros(pools.count, np.int64)
        for stretch in stretches:
            first, end = stretch.first_day, stretch.end_day
            within = (self.usage.day >= first) & (self.usage.day < end)
            left = self._by_key(np.where(within, quantity, 0))
            if stretch.price is None:
                line = _line(sku, first, end, state=UNPRICED, reason=NO_PRICE, place=sku.place)
                self._add(line, left)
                continue
            price = stretch.price
            blank = replace(
                _line(sku, first, end), currency=price.currency or self.book.currency,
                fx=self.book.fx_rate(price, self.period.name) if self.book.is_foreign(price) else None,
            )  # fmt: skip
            if price.mode == EXTERNAL:
                self._add_models(sku, stretch, blank)
                continue
            for step in tiers.steps(sku, price, pools, left, consumed, month):
                line = replace(
                    blank, price=step.price, tier=step.label, price_id=f"{sku.id}/{price.since}/{step.number}",
                    place=step.place, unit=step.unit, unit_base=step.unit_base, starts_at=step.starts_at,
                    pool=step.pool,
                )  # fmt: skip
                self._add_contracted(line, step.by_key, stretch.contracts)
            consumed = consumed + pools.total(left)
        if sku.quantum:
            line = _line(sku, 0, len(self.period.days), state=UNPRICED, reason=NO_BLOCKS, place=sku.place)
            column = _UNCOUNTED[sku.meter]
            values = np.where(picked[self.usage.key], self.usage.of((column,)), 0)
            self._add(replace(line, meter=column, columns=(column,)), self._by_key(values))

    def _quantity(self, sku: Sku, picked: Mask) -> Ints:
        """What a SKU counts of each usage row."""
        if not sku.is_external:
            return np.where(picked[self.usage.key], self.usage.of(sku.columns), 0)
        total = np.zeros(len(self.usage.key), np.int64)
        for column in sku.columns:
            mine = external.covers(self.book, sku, self.usage.keys, column)
            total += np.where(mine[self.usage.key], self.usage.of((column,)), 0)
        return total

    def _add_models(self, sku: Sku, stretch: Stretch, blank: Line) -> None:
        """Charges of days on which each model has its own price."""
        assert stretch.price is not None
        first, end = stretch.first_day, stretch.end_day
        for step in external.steps(self.book, sku, stretch.price, self.usage, self.period.days, first, end):
            line = replace(
                blank, meter=step.column, columns=(step.column,), first_day=step.first_day, end_day=step.end_day,
                place=stretch.price.place,
            )  # fmt: skip
            keys, quantity = step.keys.astype(np.int32), step.quantity
            if step.price is None:
                line = replace(line, state=UNPRICED, reason=step.reason, currency="", fx=None)
                self.pieces.append(_Piece(line, keys, quantity))
                continue
            line = replace(line, price=step.price, tier=step.label, price_id=step.price_id)
            which = contract_of(self.book, stretch.contracts, self.usage.keys)[keys]
            for number in sorted(set(which.tolist())):
                own = line
                if number >= 0:
                    contract = self.book.contracts[number]
                    own = replace(line, contracted=contract.price_for(step.price), contract=contract)
                self.pieces.append(_Piece(own, keys[which == number], quantity[which == number]))

    def _pools(self, sku: Sku, stretches: Sequence[Stretch]) -> tiers.Pools:
        """Who counts the SKU's month together."""
        names = {stretch.price.pool for stretch in stretches if stretch.price is not None} or {"billing_account"}
        if len(names) > 1:
            raise ValueError(f"{sku.id}: the pool changes within {self.period.name}: {sorted(names)}")
        (name,) = names
        if name not in self.pools:
            self.pools[name] = tiers.Pools.by(name, self.usage.keys)
        return self.pools[name]

    def _month(self, sku: Sku, stretches: Sequence[Stretch], pools: tiers.Pools, quantity: Ints) -> Ints:
        """Each pool's units of the month's priced days, where a price asks for them."""
        if not any(stretch.price is not None and stretch.price.mode == "volume" for stretch in stretches):
            return np.zeros(pools.count, np.int64)
        priced = np.zeros(len(self.period.days), np.bool_)
        for stretch in stretches:
            priced[stretch.first_day : stretch.end_day] = stretch.price is not None
        return pools.total(self._by_key(np.where(priced[self.usage.day], quantity, 0)))

    def _add_contracted(self, line: Line, by_key: Ints, contracts: Sequence[int]) -> None:
        """Charges of one line, of those without a contract first, then contract by contract."""
        if not contracts:
            self._add(line, by_key)
            return
        assert line.price is not None, f"{line.sku}: an unpriced line has no contract"
        which = contract_of(self.book, contracts, self.usage.keys)
        self._add(line, np.where(which < 0, by_key, 0))
        for number in contracts:
            contract = self.book.contracts[number]
            own = replace(line, contracted=contract.price_for(line.price), contract=contract)
            self._add(own, np.where(which == number, by_key, 0))

    def add_what_no_sku_covers(self) -> None:
        """Charges without a cost: what was measured and the book does not price."""
        for measure, unit in MEASURES.items():
            blank = Line(
                sku=None, state=UNPRICED, meter=measure, unit=unit, unit_base=_BASES[unit], price=None, tier=None,
                first_day=0, end_day=len(self.period.days), reason=NO_SKU,
            )  # fmt: skip
            values = self.usage.of((measure,))
            if measure in self.covered:
                open_ = np.where(self.covered[measure][self.usage.key], 0, values)
                self._add(blank, self._by_key(open_))
            else:
                self._add_for_month(replace(blank, reason=NOT_SOLD), money.exact_sum(values))
        if any(sku.meter == "bytes" and sku.byte_basis != "app" for sku in self.book.skus):
            values = self.usage.of(("app_only_bytes",))
            line = Line(
                sku=None, state=UNPRICED, meter="app_only_bytes", unit="GB", unit_base=10**9, price=None, tier=None,
                first_day=0, end_day=len(self.period.days), reason=APP_ONLY,
            )  # fmt: skip
            self._add(line, self._by_key(values))
        if any(sku.meter == "tokens" for sku in self.book.skus):
            column = _UNCOUNTED["tokens"]
            line = Line(
                sku=None, state=UNPRICED, meter=column, unit="Requests", unit_base=1, price=None, tier=None,
                first_day=0, end_day=len(self.period.days), reason=NO_TOKENS,
            )  # fmt: skip
            self._add(line, self._by_key(self.usage.of((column,))))

    # -- shared costs --------------------------------------------------------------------------------------

    def add_shared(self, shared: SharedCost) -> None:
        """Charges of a fixed monthly cost. The quantity is money, so the unit price is 1."""
        scale = 10 if shared.amount < 10**8 else 6  # amounts below 10**12: the product stays below 2**63
        top, bottom = money.ratio(shared.amount)
        unit = 10**scale
        assert unit % bottom == 0, f"{shared.id}: {shared.amount} has more than {scale} decimals"
        idle = Fraction(shared.keep_unallocated)
        parts = [idle, *((1 - idle) * Fraction(weight) for weight in shared.weights.values())]
        whole = lcm(*(part.denominator for part in parts))
        weights = np.array([int(part * whole) for part in parts], object)
        idle_units, *units = money.share(top * (unit // bottom), weights).tolist()
        blank = Line(
            sku=shared.id, state=PRICED, meter="+".join(shared.weights), unit=self.book.currency, unit_base=unit,
            price=Decimal(1), tier="share", first_day=0, end_day=len(self.period.days),
            price_id=f"{shared.id}/{shared.method}", place=shared.place, currency=self.book.currency,
            category=PURCHASE,
        )  # fmt: skip
        self._add_for_month(replace(blank, state=UNALLOCATED, tier="idle", reason=IDLE), idle_units)
        for name, part in zip(shared.weights, units, strict=True):
            columns = WIRE_BYTES if name == "bytes" else ("calls",)
            weight = self._by_key(self.usage.of(columns))
            line = replace(
                blank, meter=name, columns=columns, tier=f"share by {name}", pool=money.exact_sum(weight),
                price_id=f"{shared.id}/{shared.method}/{name}",
            )  # fmt: skip
            if line.pool:
                self._add(line, money.share(part, weight))
            else:
                self._add_for_month(replace(line, state=UNALLOCATED, reason=NO_WEIGHT), part)

    # -- commitments ---------------------------------------------------------------------------------------

    def add_commitment(self, commitment: Commitment) -> None:
        """What a consumer's month falls short of its minimum: one unit at that price."""
        mine = matches({"consumer": (commitment.consumer,)}, self.usage.keys)
        paid = Fraction()
        for piece in self.pieces:
            if piece.line.price is not None and piece.line.category == USAGE:
                paid += piece.line.cost_of(money.exact_sum(piece.quantity[mine[piece.keys]]))
        short = Fraction(commitment.minimum) - paid
        if short <= 0:
            return
        line = Line(
            sku=COMMITMENT, state=PRICED, meter=COMMITMENT, unit="Month", unit_base=1,
            price=money.exact_decimal(short), tier="commitment shortfall", first_day=0, end_day=len(self.period.days),
            price_id=f"{COMMITMENT}/{commitment.consumer}", place=commitment.place, currency=self.book.currency,
            category=PURCHASE,
        )  # fmt: skip
        key = self.keys + self.consumers.index(commitment.consumer)
        self.pieces.append(_Piece(line, np.array([key], np.int32), np.ones(1, np.int64)))

    # -- putting together ----------------------------------------------------------------------------------

    def statement(self) -> Statement:
        """All charges in order, with the total and the billed costs."""
        lines = [replace(p.line, quantity=money.exact_sum(p.quantity)) for p in self.pieces]
        number = np.repeat(np.arange(len(lines), dtype=np.int32), [len(p.keys) for p in self.pieces])
        key = np.concatenate([np.empty(0, np.int32), *(p.keys for p in self.pieces)])
        quantity = np.concatenate([np.empty(0, np.int64), *(p.quantity for p in self.pieces)])
        self.pieces.clear()
        order = np.argsort(key, kind="stable")  # pieces lie in the order of lines
        key, number, quantity = key[order], number[order], quantity[order]
        del order
        more: dict[str, pa.Array] = {n: pa.nulls(len(self.consumers) + 1, pa.string()) for n in KEYS}
        more["consumer"] = pa.array([*self.consumers, None], pa.string())
        no_usage = pa.table({n: column.dictionary_encode() for n, column in more.items()})
        keys = pa.concat_tables([self.usage.keys, no_usage.cast(self.usage.keys.schema)]).unify_dictionaries()
        exact = sum((line.cost_of(line.quantity) for line in lines if line.price is not None), Fraction())
        minor = 10**self.book.statement_scale
        total_minor = money.half_even(exact * minor)
        billed = _billed(lines, keys, key, number, quantity, minor, total_minor)
        return Statement(
            book=self.book, period=self.period, usage=self.usage, keys=keys, lines=tuple(lines), key=key, line=number,
            quantity=quantity, billed_minor=billed, total_exact=exact, total_minor=total_minor,
        )  # fmt: skip

    def _add(self, line: Line, by_key: Ints) -> None:
        keys = np.flatnonzero(by_key)
        if len(keys):
            self.pieces.append(_Piece(line, keys.astype(np.int32), by_key[keys]))

    def _add_for_month(self, line: Line, quantity: int) -> None:
        """A charge that no usage row bears: its key is the last one, all null."""
        if quantity:
            last = np.array([self.keys + len(self.consumers)], np.int32)
            self.pieces.append(_Piece(line, last, np.array([quantity], np.int64)))

    def _by_key(self, values: Ints) -> Ints:
        return money.add_by(self.usage.key, values, self.keys)


def picks(sku: Sku, keys: pa.Table) -> Mask:
    """Which keys fulfil every condition of a SKU."""
    return matches(sku.where, keys)


def contract_of(book: PriceBook, contracts: Sequence[int], keys: pa.Table) -> Keys:
    """The first of some contracts (positions in the book's) that matches each key; -1 where none does."""
    which = np.full(len(keys), -1, np.int32)
    for number in reversed(contracts):
        which[matches(book.contracts[number].match, keys)] = number
    return which


def _billed(
    lines: Sequence[Line], keys: pa.Table, key: Keys, number: Keys, quantity: Ints, minor: int, total_minor: int
) -> Ints:
    """Billed cost of each charge in minor units; 0 for those without a price."""
    ratios = [Fraction(*line.cost_ratio()) * minor if line.price is not None else None for line in lines]
    divisor = lcm(1, *(r.denominator for r in ratios if r is not None))
    whole: money.Column = np.zeros(len(key), np.int64)
    rest: money.Column = np.zeros(len(key), np.int64 if divisor <= money.INT64_MAX else object)
    priced = np.zeros(len(key), np.bool_)
    for at, ratio in enumerate(ratios):
        if ratio is None:
            continue
        rows = number == at
        priced |= rows
        whole[rows], part = money.product(quantity[rows], ratio.numerator, ratio.denominator)
        rest[rows] = part.astype(rest.dtype) * (divisor // ratio.denominator)
    if not priced.all():
        key, whole, rest = key[priced], whole[priced], rest[priced]
    levels = (_nodes(keys, columns, key) for columns in _LEVELS)
    billed = np.zeros(len(priced), np.int64)
    billed[priced] = money.round_tree(whole, rest, divisor, levels, total_minor)
    return billed


def _nodes(keys: pa.Table, columns: int, key: Keys) -> Keys:
    """Numbers the runs of charges whose first `columns` key columns are the same."""
    new = np.zeros(len(keys), np.bool_)
    new[-1] = True  # the last key is the one of nulls: what no usage bears is a node of its own
    for name in KEYS[:columns]:
        codes = records.codes(keys, name)[0]
        new[1:] |= codes[1:] != codes[:-1]
    node = np.cumsum(new, dtype=np.int32)[key]
    return np.concatenate(([0], np.cumsum(node[1:] != node[:-1]))).astype(np.int32)[: len(node)]


def _line(sku: Sku, first: int, end: int, **what: str) -> Line:
    return Line(
        sku=sku.id, state=what.pop("state", PRICED), meter="+".join(sku.columns), columns=sku.columns, unit=sku.unit,
        unit_base=sku.unit_base, price=None, tier=None, first_day=first, end_day=end, reason=what.get("reason"),
        place=what.get("place", ""),
    )  # fmt: skip


def _measures(sku: Sku) -> list[str]:
    """The measures that a SKU covers, whichever bytes or blocks it counts them by."""
    if sku.quantum:
        return ["calls"]
    return [name.replace("_payload_", "_wire_").replace("_app_", "_wire_") for name in sku.columns]
