"""A month's charges: what `rate` makes and every report, export and explanation reads.

Rules of this file:
- Charges are kept as four integer columns (key, line, quantity, billed minor units); text and exact
  decimals are made from them when asked for, so that a million charges stay small.
- A charge's list cost is its quantity times its line's price, exactly, and its contracted cost that times what its
  contract says. Its billed cost is the contracted cost rounded, so that all sum to the statement's total.
- What has no price has no cost: null in `list_cost`, `contracted_cost` and `billed_cost`, never 0.
- Unit prices are in the pricing currency, costs in the book's: quantity x unit price x fx_rate, exactly.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core import records
from apicost.core.rating import money, tags
from apicost.core.rating.period import Period, utc_text
from apicost.core.rating.pricebook import TAGS, Contract, FxRate, PriceBook
from apicost.core.rating.usage_rows import KEYS, UsageRows

Ints = npt.NDArray[np.int64]

PRICED = "priced"
UNPRICED = "unpriced"  # measured, but the book names no price: a quantity without a cost
UNALLOCATED = "unallocated"  # a shared cost that no usage bears

# In the words of FOCUS: the class of a charge, null for most, and its category.
CORRECTION = "Correction"
USAGE = "Usage"
PURCHASE = "Purchase"  # fixed amounts: shared costs and shortfalls of commitments

_KEY_BYTES = 10  # of a charge's identity, that say its key

CHARGE = records._columns(
    ("charge_id", pa.string(), "", "the same for the same key, month, price and book version"),
    ("period_start", pa.string(), "UTC", "start of the charge period"),
    ("period_end", pa.string(), "UTC", "its end, exclusive"),
    ("api", records.TEXT, "", "null: none"),
    ("operation_id", records.TEXT, "", "null: none"),
    ("method", records.TEXT, "", ""),
    ("path_template", records.TEXT, "", "null: none"),
    ("match_state", records.TEXT, "", "as in records.NAMING; null for what no usage row bears"),
    ("consumer", records.TEXT, "", ""),
    ("route_id", records.TEXT, "", ""),
    ("service_id", records.TEXT, "", ""),
    ("status_class", records.TEXT, "", ""),
    ("scope", records.TEXT, "", "network scope of the client"),
    ("upstream_scope", records.TEXT, "", "network scope of the backend"),
    ("llm_model", records.TEXT, "", ""),
    ("sku", records.TEXT, "", "null: no SKU of the book covers it"),
    ("sku_price_id", records.TEXT, "", "SKU/first day of the price/tier; null when unpriced"),
    ("tier", records.TEXT, "", "flat, free, tier 1, ..., package, share, commitment shortfall; null when unpriced"),
    ("meter", records.TEXT, "", "the usage columns that were added up"),
    ("state", records.TEXT, "", "priced, unpriced or unallocated"),
    ("reason", records.TEXT, "", "why it is not priced or not allocated; null otherwise"),
    ("quantity", pa.string(), "unit", "exact decimal"),
    ("unit", records.TEXT, "", "pricing unit"),
    ("unit_price", records.TEXT, "pricing_currency", "list price per unit, exact; null when unpriced"),
    ("list_cost", pa.string(), "currency", "quantity x unit_price x fx_rate, exact; null when unpriced"),
    ("billed_cost", pa.string(), "currency", "rounded; all of a statement sum to its total; null when unpriced"),
    ("currency", records.TEXT, "", "ISO 4217"),
    ("price_book_id", records.TEXT, "", ""),
    ("price_book_version", records.TEXT, "", ""),
    ("owner", records.TEXT, "", "by the book's tags; null: none"),
    ("team", records.TEXT, "", "by the book's tags; null: none"),
    ("cost_center", records.TEXT, "", "by the book's tags; null: none"),
    ("contracted_cost", pa.string(), "currency", "quantity x contracted_unit_price x fx_rate, exact"),
    ("contracted_unit_price", records.TEXT, "pricing_currency", "what is paid per unit; unit_price without a contract"),
    ("charge_category", records.TEXT, "", "Usage, or Purchase for fixed amounts"),
    ("pricing_category", records.TEXT, "", "Standard for usage, Other for fixed amounts; null when unpriced"),
    ("pricing_currency", records.TEXT, "", "ISO 4217, of the unit prices; null when unpriced"),
    ("fx_rate", records.TEXT, "currency", "per unit of pricing_currency; 1 for the same one; null when unpriced"),
    ("charge_class", records.TEXT, "", "Correction of a closed month's charge; else null"),
    ("billing_month", records.TEXT, "", "YYYY-MM that bills the charge: for a correction not the month it is about"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One price, or one reason for having none, that charges of a statement share.

    first_day, end_day: days of the period, from 0; the end is exclusive.
    columns: the usage columns that were added up, by which the line's cost falls on days.
    starts_at, pool: where on the SKU's month this line begins, and the quantity of the stretch of days
        that was left to be shared when the line was given out (base units). With `quantity`, the sum over
        the line's charges, they say how a tier was shared: pro rata of what was left of each row. Both are 0
        where several pools count by themselves.
    price: list price per unit, contracted: what a contract makes of it (None: nothing), both in `currency`.
    fx: the rate that converts costs to the book's currency; None where that is `currency`.
    """

    sku: str | None
    state: str
    meter: str
    unit: str
    unit_base: int
    price: Decimal | None
    tier: str | None
    first_day: int
    end_day: int
    price_id: str | None = None
    reason: str | None = None
    columns: tuple[str, ...] = ()
    place: str = ""
    starts_at: int = 0
    pool: int = 0
    quantity: int = 0
    contracted: Decimal | None = None
    contract: Contract | None = None
    currency: str = ""
    fx: FxRate | None = None
    category: str = USAGE

    @property
    def contracted_price(self) -> Decimal | None:
        """What is paid per unit."""
        return self.price if self.contracted is None else self.contracted

    def cost_ratio(self) -> tuple[int, int]:
        """Contracted cost of one base unit in the book's currency as numerator and denominator, reduced."""
        return self._ratio(self.contracted_price)

    def list_ratio(self) -> tuple[int, int]:
        """The same for the list cost."""
        return self._ratio(self.price)

    def cost_of(self, quantity: int) -> Fraction:
        """Exact contracted cost of a quantity in base units: what is billed, before rounding."""
        return quantity * Fraction(*self.cost_ratio())

    def list_cost_of(self, quantity: int) -> Fraction:
        """Exact list cost of a quantity in base units."""
        return quantity * Fraction(*self.list_ratio())

    def _ratio(self, price: Decimal | None) -> tuple[int, int]:
        assert price is not None, f"{self.sku}: an unpriced line has no cost"
        top, bottom = money.ratio(price)
        rate = Fraction(1) if self.fx is None else Fraction(self.fx.rate)
        exact = Fraction(top, bottom * self.unit_base) * rate
        return exact.numerator, exact.denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A month rated with one price book.

    keys: KEYS of the usage rows, sorted; then consumers with a commitment, each alone; and one last row of nulls
        for what nobody bears.
    key, line, quantity, billed_minor: one value per charge, sorted by key, then line. `quantity` is in base
        units; `billed_minor` in 10**-statement_scale of the currency, 0 where the line has no price.
    total_minor: the statement's total, half-even rounding of `total_exact`.
    """

    book: PriceBook
    period: Period
    usage: UsageRows
    keys: pa.Table
    lines: tuple[Line, ...]
    key: npt.NDArray[np.int32]
    line: npt.NDArray[np.int32]
    quantity: npt.NDArray[np.int64]
    billed_minor: npt.NDArray[np.int64]
    total_exact: Fraction
    total_minor: int

    def __len__(self) -> int:
        return len(self.key)

    def parts(self) -> Iterator[Statement]:
        """The statement as one part: see `StatementInLots`."""
        yield self

    @property
    def priced(self) -> npt.NDArray[np.bool_]:
        """Which charges have a cost."""
        return np.array([line.price is not None for line in self.lines], np.bool_)[self.line]

    @property
    def unlocked_rates(self) -> tuple[FxRate, ...]:
        """Exchange rates in this statement that may still change: a month with one is not final."""
        used = {(line.fx.currency, line.fx.period): line.fx for line in self.lines if line.fx is not None}
        return tuple(rate for _, rate in sorted(used.items()) if not rate.locked)

    @property
    def total(self) -> str:
        """The statement's total as text, with all its places."""
        return money.fixed(self.total_minor, self.book.statement_scale)

    @property
    def charges(self) -> pa.Table:
        """All charges, columns as in CHARGE."""
        return self.table(0, len(self))

    def charge_ids(self, charges: npt.NDArray[np.integer]) -> list[str]:
        """Identities of some charges: the line's 32 bits and the key's 80 as hexadecimal digits.

        The same key, month, price and book version give the same identity whatever else the month holds.
        """
        ids: Any = self._charge_ids(charges)
        return list(ids.to_pylist())

    def _charge_ids(self, charges: npt.NDArray[np.integer]) -> pa.Array:
        rows, place = np.unique(self.key[charges], return_inverse=True)
        line: Any = pa.array(self.line[charges])
        row: Any = pa.array(place)
        return money.joined([self.line_ids().take(line), self.key_ids(self.keys.take(rows)).take(row)], "")

    def line_ids(self) -> pa.Array:
        """The first part of a charge's identity, by line."""
        return pa.array([self._line_hash(line) for line in self.lines], pa.string())

    def key_ids(self, keys: pa.Table) -> pa.Array:
        """The second part of a charge's identity, by key."""
        begun = hashlib.blake2b(f"{self.period.name}\x1f".encode(), digest_size=_KEY_BYTES)
        joined: Any = money.joined([_texts(keys, name).fill_null("\x00") for name in KEYS], "\x1f").cast(pa.binary())
        names: list[bytes] = joined.to_pylist()
        digests = [_digest(begun, name) for name in names]
        ends: Any = np.arange(len(names) + 1, dtype=np.int32) * np.int32(2 * _KEY_BYTES)
        texts = b"".join(digests).hex().encode()
        return pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(texts))

    def find(self, charge_id: str) -> int | None:
        """The position of a charge; None where this statement has none of that identity."""
        lines = [n for n, line in enumerate(self.lines) if charge_id.startswith(self._line_hash(line))]
        candidates = np.flatnonzero(np.isin(self.line, lines))
        ids = self.charge_ids(candidates)
        return int(candidates[ids.index(charge_id)]) if charge_id in ids else None

    def _line_hash(self, line: Line) -> str:
        first = self.period.days[line.first_day] if line.end_day > line.first_day else ""
        parts = (
            self.book.id, self.book.version, self.period.name, line.sku, line.price_id,
            line.tier, line.meter, line.state, line.reason, first,
        )  # fmt: skip
        return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=4).hexdigest()

    def table(self, start: int, stop: int) -> pa.Table:
        """Some charges in their order, columns as in CHARGE: a million of them are written in pieces."""
        line: Any = pa.array(self.line[start:stop])
        columns: dict[str, Any] = dict(self.own_columns(start, stop))
        of_line = self.line_table()
        columns |= {name: of_line.column(name).combine_chunks().take(line) for name in of_line.column_names}
        keys = self.keys.take(self.key[start:stop])
        columns |= {name: keys.column(name).combine_chunks() for name in KEYS}
        tagged = tags.of_keys(keys, self.book.tags)
        columns |= {name: tagged.column(name).combine_chunks() for name in TAGS}
        wanted = records.schema(CHARGE)
        return pa.table([columns[f.name].cast(f.type) for f in wanted], schema=wanted)

    def own_columns(self, start: int, stop: int) -> dict[str, pa.Array]:
        """The columns of some charges that neither their key nor their line decides."""
        amounts, place = self.amounts(start, stop)
        at: Any = pa.array(place)
        own: dict[str, pa.Array] = {name: texts.take(at) for name, texts in amounts.items()}
        return {"charge_id": self._charge_ids(np.arange(start, stop)), **own}

    def amounts(self, start: int, stop: int) -> tuple[dict[str, pa.Array], Ints]:
        """Quantity and costs of some charges as exact decimals, sorted by line, and the place of each charge there."""
        line = self.line[start:stop]
        few = line.astype(np.int16) if len(self.lines) < 1 << 15 else line  # sorted by its digits, ten times as fast
        order = np.argsort(few, kind="stable")
        line, quantity = line[order], self.quantity[start:stop][order]
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        ends = np.searchsorted(line, np.arange(len(self.lines) + 1)).tolist()
        of_line = [quantity[first:end] for first, end in itertools.pairwise(ends)]
        listed = [x.list_ratio() if x.price is not None else None for x in self.lines]
        contracted = [x.cost_ratio() if x.price is not None else None for x in self.lines]
        list_cost = _products(of_line, listed)
        priced = np.array([x.price is not None for x in self.lines], np.bool_)
        billed = money.fixed_texts(self.billed_minor[start:stop][order], self.book.statement_scale)
        return {
            "quantity": _products(of_line, [(1, x.unit_base) for x in self.lines]),
            "list_cost": list_cost,
            # Without a contract, one text is both.
            "contracted_cost": list_cost if contracted == listed else _products(of_line, contracted),
            "billed_cost": pc.if_else(pa.array(priced[line]), billed, pa.scalar(None, pa.string())),
        }, place

    def line_table(self) -> pa.Table:
        """The columns that a charge's line decides, one row per line."""
        lines = self.lines
        columns: dict[str, list[str | None]] = {
            "period_start": [utc_text(self.period.starts[x.first_day]) for x in lines],
            "period_end": [utc_text(self.period.starts[x.end_day]) for x in lines],
            "sku": [x.sku for x in lines],
            "sku_price_id": [x.price_id for x in lines],
            "tier": [x.tier for x in lines],
            "meter": [x.meter for x in lines],
            "state": [x.state for x in lines],
            "reason": [x.reason for x in lines],
            "unit": [x.unit for x in lines],
            "unit_price": [None if x.price is None else money.plain(x.price) for x in lines],
            "currency": [self.book.currency] * len(lines),
            "price_book_id": [self.book.id] * len(lines),
            "price_book_version": [self.book.version] * len(lines),
            "contracted_unit_price": [None if x.price is None else money.plain(x.contracted_price or 0) for x in lines],
            "charge_category": [x.category for x in lines],
            "pricing_category": [
                None if x.price is None else "Standard" if x.category == USAGE else "Other" for x in lines
            ],
            "pricing_currency": [None if x.price is None else x.currency for x in lines],
            "fx_rate": [None if x.price is None else "1" if x.fx is None else money.plain(x.fx.rate) for x in lines],
            "charge_class": [None] * len(lines),
            "billing_month": [self.period.name] * len(lines),
        }
        return pa.table({n: pa.array(texts, pa.string()).dictionary_encode() for n, texts in columns.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementInLots:
    """A statement too large to be held at once: its lines, its total, and its charges part by part.

    parts are statements: the charges of some keys each, in order, whose totals are their own; their lines are those
    of the whole. The last part's keys end as a statement's do.
    """

    book: PriceBook
    period: Period
    lines: tuple[Line, ...]
    charges: int
    total_exact: Fraction
    total_minor: int
    lots: int
    part: Callable[[int], Statement]

    def __len__(self) -> int:
        return self.charges

    def parts(self) -> Iterator[Statement]:
        """All charges in their order; each part is made when it is asked for."""
        for number in range(self.lots):
            yield self.part(number)


def _products(values: Sequence[Ints], ratios: Sequence[tuple[int, int] | None]) -> pa.Array:
    """Each column times its ratio as exact decimal texts, one after the other; None is null."""
    known = [(column, ratio) for column, ratio in zip(values, ratios, strict=True) if ratio is not None]
    texts = money.products_texts([column for column, _ in known], [ratio for _, ratio in known])
    if len(known) == len(ratios):
        return texts
    pieces: list[pa.Array] = [pa.array([], pa.string())]
    start = 0
    for column, ratio in zip(values, ratios, strict=True):
        pieces.append(pa.nulls(len(column), pa.string()) if ratio is None else texts.slice(start, len(column)))
        start += len(column) if ratio is not None else 0
    return pa.concat_arrays(pieces)


def _digest(begun: Any, more: bytes) -> bytes:
    """A hash gone on with; a copy of one that is begun takes half the time of a new one."""
    digest = begun.copy()
    digest.update(more)
    return bytes(digest.digest())


def _texts(table: pa.Table, name: str) -> Any:
    return table.column(name).cast(pa.string()).combine_chunks()
