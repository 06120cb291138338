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

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.rating import external, money, tiers
from apicost.core.rating.match import matches
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import COMMITMENT, EXTERNAL, Commitment, Price, PriceBook, SharedCost, Sku, Stretch
from apicost.core.rating.rounding import Rounding
from apicost.core.rating.statement import (
    PRICED,
    PURCHASE,
    UNALLOCATED,
    UNPRICED,
    USAGE,
    Line,
    Statement,
    StatementInLots,
)  # fmt: skip
from apicost.core.rating.usage_rows import KEYS, UsageRows, gather

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
Kept = Callable[[], Column]
Keep = Callable[[Column], Kept]

WIRE_BYTES = tuple(f"{leg}_{way}_wire_bytes" for leg in records.LEGS for way in ("in", "out"))
TOKENS = ("llm_prompt_tokens", "llm_completion_tokens")
# What a book can sell: measure -> unit in which a quantity without a price is shown.
MEASURES = {"calls": "Requests", **dict.fromkeys(WIRE_BYTES, "GB"), **dict.fromkeys(TOKENS, "Tokens")}
_BASES = {"Requests": 1, "GB": 10**9, "Tokens": 1}
# Meter -> the requests of which its quantity is not known.
_UNCOUNTED = {"calls": "calls_without_quanta", "tokens": "llm_calls_without_tokens"}

NO_PRICE = "no price of this SKU is in force on these days"
NO_SKU = "no SKU of the price book covers this row"
NOT_SOLD = "the price book has no SKU for this measure"
NO_BLOCKS = "the blocks of these requests were not counted"
NO_TOKENS = "the gateway has not both token counts of these requests: what it did not count is in no charge"
APP_ONLY = "no kernel flow was seen: the gateway's own count, not wire bytes"
IDLE = "kept unallocated as idle by the price book"
NO_WEIGHT = "nothing in the month carries this weight"


def in_memory(column: Column) -> Kept:
    """Keeps a column as it is."""
    return lambda: column


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
    (statement,) = rate_lots([usage], book, period).parts()
    return statement


def rate_lots(lots: Sequence[UsageRows], book: PriceBook, period: Period, keep: Keep = in_memory) -> StatementInLots:
    """`rate_rows` for usage that is too large to be held at once: the same charges, lot by lot.

    lots: one at least, gathered with the same cuts. The keys of each come after those of the lot before it, and no
        two lots share an operation (the same first five of KEYS). They are read several times, one at a time.
    keep: where charges are kept while all are made; it takes a column and returns what gives it back.

    What is held of all lots is 20 to 30 bytes a key; of each lot, all its charges. Raises ValueError as `rate_rows`.
    """
    uncut = sorted(set(book.price_changes(period.days)) - set(lots[0].cuts))
    if uncut:
        raise ValueError(f"usage of {period.name} is not cut at the price changes of days {uncut}")
    if missing := book.without_rate(period.days, period.name):
        raise ValueError(f"no exchange rate of {period.name} for {[price.place for _, price in missing]}")
    sheet = _Sheet(lots, book, period, keep)
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
    """Charges of one line: lot by lot the keys that bear it and their quantities; None where there are none.

    keys are numbered within the lot. The last lot has further ones: see `_Sheet`.
    """

    line: Line
    charges: int
    lots: list[tuple[Kept, Kept] | None]

    def put(self, lot: int, keys: Keys, quantity: Ints, keep: Keep) -> None:
        """Charges of a lot that has none of this line yet."""
        if len(keys):
            self.lots[lot] = (keep(keys), keep(quantity))
            self.charges += len(keys)
            self.line = replace(self.line, quantity=self.line.quantity + money.exact_sum(quantity))

    def of(self, lot: int) -> tuple[Keys, Ints]:
        """Charges of a lot."""
        found = self.lots[lot]
        return (found[0](), found[1]()) if found else (np.empty(0, np.int32), np.empty(0, np.int64))


class _Sheet:
    """A statement in the making.

    A shortfall is no usage row's, nor is what belongs to the month: after the usage's keys come consumers with a
    commitment, each alone, and a key of nulls.
    """

    def __init__(self, lots: Sequence[UsageRows], book: PriceBook, period: Period, keep: Keep) -> None:
        self.lots = lots
        self.starts = list(itertools.accumulate((len(lot.keys) for lot in lots), initial=0))
        self.keys = self.starts[-1]
        self.book = book
        self.period = period
        self.keep = keep
        self.pieces: list[_Piece] = []
        self.covered: dict[str, Mask] = {}
        self.pools: dict[str, tiers.Pools] = {}
        self.due = [commitment for commitment in book.commitments if commitment.is_due(period.days[0])]
        self.consumers = sorted({commitment.consumer for commitment in self.due})

    # -- usage ---------------------------------------------------------------------------------------------

    def add_sku(self, sku: Sku) -> None:
        """Charges of one SKU: stretch by stretch of days with one price, then tier by tier."""
        picked = np.concatenate([picks(sku, lot.keys) for lot in self.lots])
        for column in _measures(sku):
            self.covered[column] = self.covered.get(column, np.zeros(self.keys, np.bool_)) | picked
        stretches = self.book.stretches(sku, self.period.days)
        pools = self._pools(sku, stretches)
        month = self._month(sku, stretches, pools, picked)
        consumed = np.zeros(pools.count, np.int64)
        for stretch in stretches:
            first, end = stretch.first_day, stretch.end_day
            left = self._quantity(sku, picked, self._days([stretch]))
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
            steps = tiers.steps(sku, price, pools, left, consumed, month)
            consumed = consumed + pools.total(left)
            del left  # it is the steps' now, who let go of it: columns of all keys are what is large here
            for step in steps:
                line = replace(
                    blank, price=step.price, tier=step.label, price_id=f"{sku.id}/{price.since}/{step.number}",
                    place=step.place, unit=step.unit, unit_base=step.unit_base, starts_at=step.starts_at,
                    pool=step.pool,
                )  # fmt: skip
                self._add_contracted(line, step.by_key, stretch.contracts)
                del step
        if sku.quantum:
            line = _line(sku, 0, len(self.period.days), state=UNPRICED, reason=NO_BLOCKS, place=sku.place)
            column = _UNCOUNTED[sku.meter]
            self._add(replace(line, meter=column, columns=(column,)), self._by_key((column,), picked))

    def _quantity(self, sku: Sku, picked: Mask, days: Mask) -> Ints:
        """What a SKU counts on some days, by key."""
        if not sku.is_external:
            return self._by_key(sku.columns, picked, days)
        total = np.zeros(self.keys, np.int64)
        for column in sku.columns:
            mine = [external.covers(self.book, sku, lot.keys, column) for lot in self.lots]
            total += self._by_key((column,), np.concatenate(mine), days)
        return total

    def _add_models(self, sku: Sku, stretch: Stretch, blank: Line) -> None:
        """Charges of days on which each model has its own price: what is priced first, contract by contract."""
        assert stretch.price is not None
        found: dict[tuple[bool, str, str, int, int, int], _Piece] = {}
        for place, lot in enumerate(self.lots):
            which_of_key = contract_of(self.book, stretch.contracts, lot.keys)
            days = (self.period.days, stretch.first_day, stretch.end_day)
            for step in external.steps(self.book, sku, stretch.price, lot, *days):
                name = step.price_id or step.reason or ""
                which = which_of_key[step.keys] if step.price is not None else np.full(len(step.keys), -1, np.int32)
                for number in sorted(set(which.tolist())):
                    at = (step.price is None, name, step.column, step.first_day, step.end_day, number)
                    if at not in found:
                        line = self._line_of_model(step, stretch.price, blank, number)
                        found[at] = _Piece(line, 0, [None] * len(self.lots))
                    mine = which == number
                    found[at].put(place, step.keys[mine].astype(np.int32), step.quantity[mine], self.keep)
        self.pieces += [found[at] for at in sorted(found)]

    def _line_of_model(self, step: external.ModelStep, price: Price, blank: Line, number: int) -> Line:
        """number: of the contract, -1 for none."""
        line = replace(
            blank, meter=step.column, columns=(step.column,), first_day=step.first_day, end_day=step.end_day,
            place=price.place,
        )  # fmt: skip
        if step.price is None:
            return replace(line, state=UNPRICED, reason=step.reason, currency="", fx=None)
        line = replace(line, price=step.price, tier=step.label, price_id=step.price_id)
        if number < 0:
            return line
        contract = self.book.contracts[number]
        return replace(line, contracted=contract.price_for(step.price), contract=contract)

    def _pools(self, sku: Sku, stretches: Sequence[Stretch]) -> tiers.Pools:
        """Who counts the SKU's month together."""
        names = {stretch.price.pool for stretch in stretches if stretch.price is not None} or {"billing_account"}
        if len(names) > 1:
            raise ValueError(f"{sku.id}: the pool changes within {self.period.name}: {sorted(names)}")
        (name,) = names
        if name not in self.pools:
            self.pools[name] = tiers.Pools.by(name, (lot.keys for lot in self.lots))
        return self.pools[name]

    def _month(self, sku: Sku, stretches: Sequence[Stretch], pools: tiers.Pools, picked: Mask) -> Ints:
        """Each pool's units of the month's priced days, where a price asks for them."""
        if not any(stretch.price is not None and stretch.price.mode == "volume" for stretch in stretches):
            return np.zeros(pools.count, np.int64)
        priced = self._days([stretch for stretch in stretches if stretch.price is not None])
        return pools.total(self._quantity(sku, picked, priced))

    def _days(self, stretches: Sequence[Stretch]) -> Mask:
        """The days of some stretches."""
        days = np.zeros(len(self.period.days), np.bool_)
        for stretch in stretches:
            days[stretch.first_day : stretch.end_day] = True
        return days

    def _add_contracted(self, line: Line, by_key: Ints, contracts: Sequence[int]) -> None:
        """Charges of one line, of those without a contract first, then contract by contract."""
        if not contracts:
            self._add(line, by_key)
            return
        assert line.price is not None, f"{line.sku}: an unpriced line has no contract"
        which = np.concatenate([contract_of(self.book, contracts, lot.keys) for lot in self.lots])
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
            if measure in self.covered:
                self._add(blank, self._by_key((measure,), ~self.covered[measure]))
            else:
                whole = sum(money.exact_sum(lot.of((measure,))) for lot in self.lots)
                self._add_for_month(replace(blank, reason=NOT_SOLD), whole)
        if any(sku.meter == "bytes" and sku.byte_basis != "app" for sku in self.book.skus):
            line = Line(
                sku=None, state=UNPRICED, meter="app_only_bytes", unit="GB", unit_base=10**9, price=None, tier=None,
                first_day=0, end_day=len(self.period.days), reason=APP_ONLY,
            )  # fmt: skip
            self._add(line, self._by_key(("app_only_bytes",)))
        if any(sku.meter == "tokens" for sku in self.book.skus):
            column = _UNCOUNTED["tokens"]
            line = Line(
                sku=None, state=UNPRICED, meter=column, unit="Requests", unit_base=1, price=None, tier=None,
                first_day=0, end_day=len(self.period.days), reason=NO_TOKENS,
            )  # fmt: skip
            self._add(line, self._by_key((column,)))

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
            weight = self._by_key(columns)
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
        paid = Fraction()
        for number, lot in enumerate(self.lots):
            mine = matches({"consumer": (commitment.consumer,)}, lot.keys)
            for piece in self.pieces:
                if piece.line.price is not None and piece.line.category == USAGE:
                    keys, quantity = piece.of(number)
                    paid += piece.line.cost_of(money.exact_sum(quantity[mine[keys]]))
        short = Fraction(commitment.minimum) - paid
        if short <= 0:
            return
        line = Line(
            sku=COMMITMENT, state=PRICED, meter=COMMITMENT, unit="Month", unit_base=1,
            price=money.exact_decimal(short), tier="commitment shortfall", first_day=0, end_day=len(self.period.days),
            price_id=f"{COMMITMENT}/{commitment.consumer}", place=commitment.place, currency=self.book.currency,
            category=PURCHASE,
        )  # fmt: skip
        self._add_further(line, self.consumers.index(commitment.consumer), 1)

    # -- putting together ----------------------------------------------------------------------------------

    def statement(self) -> StatementInLots:
        """All charges in order, with the total and the billed costs."""
        lines = tuple(piece.line for piece in self.pieces)
        exact = _cost(lines, [line.quantity for line in lines])
        minor = 10**self.book.statement_scale
        total_minor = money.half_even(exact * minor)
        rounding = Rounding(lines, minor)
        for number in range(len(self.lots)):
            rounding.add(self._keys(number), self._charges(number), last=number == len(self.lots) - 1)
        amounts = rounding.settle(total_minor)

        def part(number: int) -> Statement:
            keys, charges = self._keys(number), list(self._charges(number))
            line = np.repeat(np.arange(len(lines), dtype=np.int32), [len(key) for key, _ in charges])
            key = np.concatenate([np.empty(0, np.int32), *(key for key, _ in charges)])
            order = np.argsort(key, kind="stable")  # charges lie in the order of lines
            billed = rounding.billed(keys, charges, order, amounts[number], last=number == len(self.lots) - 1)
            own = [money.exact_sum(quantity) for _, quantity in charges]
            quantity = np.concatenate([np.empty(0, np.int64), *(quantity for _, quantity in charges)])
            return Statement(
                book=self.book, period=self.period, usage=self.lots[number], keys=keys, lines=lines, key=key[order],
                line=line[order], quantity=quantity[order], billed_minor=billed, total_exact=_cost(lines, own),
                total_minor=money.exact_sum(billed),
            )  # fmt: skip

        return StatementInLots(
            book=self.book, period=self.period, lines=lines, charges=sum(piece.charges for piece in self.pieces),
            total_exact=exact, total_minor=total_minor, lots=len(self.lots), part=part,
        )  # fmt: skip

    def _keys(self, number: int) -> pa.Table:
        """The keys of a lot; of the last one, the further ones too."""
        keys = self.lots[number].keys
        if number < len(self.lots) - 1:
            return keys
        more: dict[str, pa.Array] = {n: pa.nulls(len(self.consumers) + 1, pa.string()) for n in KEYS}
        more["consumer"] = pa.array([*self.consumers, None], pa.string())
        no_usage = pa.table({n: column.dictionary_encode() for n, column in more.items()})
        return pa.concat_tables([keys, no_usage.cast(keys.schema)]).unify_dictionaries()

    def _charges(self, number: int) -> Iterator[tuple[Keys, Ints]]:
        """Of each line, the keys of a lot that bear it, and their quantities."""
        for piece in self.pieces:
            yield piece.of(number)

    def _add(self, line: Line, by_key: Ints) -> None:
        piece = _Piece(line, 0, [None] * len(self.lots))
        for number, (first, end) in enumerate(itertools.pairwise(self.starts)):
            keys = np.flatnonzero(by_key[first:end]).astype(np.int32)
            piece.put(number, keys, by_key[first:end][keys], self.keep)
        if piece.charges:
            self.pieces.append(piece)

    def _add_for_month(self, line: Line, quantity: int) -> None:
        """A charge that no usage row bears: its key is the last one, all null."""
        if quantity:
            self._add_further(line, len(self.consumers), quantity)

    def _add_further(self, line: Line, further: int, quantity: int) -> None:
        """A charge of a key after those of usage."""
        piece = _Piece(line, 0, [None] * len(self.lots))
        key = np.array([self.starts[-1] - self.starts[-2] + further], np.int32)
        piece.put(len(self.lots) - 1, key, np.array([quantity], np.int64), self.keep)
        self.pieces.append(piece)

    def _by_key(self, columns: Sequence[str], picked: Mask | None = None, days: Mask | None = None) -> Ints:
        """The sum of some columns by key. picked: of which keys; days: of which days; None is all."""
        sums = np.empty(self.keys, np.int64)
        for lot, (first, end) in zip(self.lots, itertools.pairwise(self.starts), strict=True):
            values = lot.of(columns)
            if picked is not None:
                values = np.where(picked[first:end][lot.key], values, 0)
            if days is not None and not days.all():
                values = np.where(days[lot.day], values, 0)
            sums[first:end] = money.add_by(lot.key, values, end - first)
        return sums


def _cost(lines: Sequence[Line], quantities: Sequence[int]) -> Fraction:
    """Exact contracted cost of so much of each line."""
    both = zip(lines, quantities, strict=True)
    return sum((line.cost_of(quantity) for line, quantity in both if line.price is not None), Fraction())


def picks(sku: Sku, keys: pa.Table) -> Mask:
    """Which keys fulfil every condition of a SKU."""
    return matches(sku.where, keys)


def contract_of(book: PriceBook, contracts: Sequence[int], keys: pa.Table) -> Keys:
    """The first of some contracts (positions in the book's) that matches each key; -1 where none does."""
    which = np.full(len(keys), -1, np.int32)
    for number in reversed(contracts):
        which[matches(book.contracts[number].match, keys)] = number
    return which


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
