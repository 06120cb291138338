"""What a closed month would say now, less what was booked: the rows that put it right in the open month.

Rules of this file:
- Rows are compared by identity (KEYS and TERMS): who bears the charge, when, what for and at which unit prices. What is
  no money, such as an owner or the price book's version, is no part of it.
- The difference of an identity is one row: a price that changed is two, the old quantity back and the new one. So
  quantity x unit price x rate is the exact cost of every row, and booked rows with the corrections are, identity by
  identity, the statement of now: tier shifts and rounding included.
- Rows are compared as columns of integers and decimals; only those that differ become Python objects.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from decimal import Context, Decimal, Inexact
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core import records
from apicost.core.rating import money, tags
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import TAGS, PriceBook
from apicost.core.rating.statement import CHARGE, CORRECTION, Statement
from apicost.core.rating.usage_rows import KEYS

Ints = npt.NDArray[np.int64]

# With KEYS the identity of a charge.
TERMS = (
    "period_start", "period_end", "sku", "sku_price_id", "tier", "meter", "state", "unit", "unit_price",
    "contracted_unit_price", "pricing_currency", "fx_rate",
)  # fmt: skip
_WORDS = ("reason", "charge_category", "pricing_category")  # said of the terms, and no part of the identity
NEEDED = (*KEYS, *TERMS, *_WORDS, "quantity", "billed_cost")  # the columns that booked charges must have

# Quantities have 19 digits before the point at most, and places by their unit: 30 in GiB, else few.
_FEW_PLACES, _ALL_PLACES = pa.decimal128(38, 18), pa.decimal256(76, 40)
_EXACT = Context(prec=400, traps=[Inexact])
_LARGEST = 1 << 62


def corrections(booked: Sequence[pa.Table], now: Statement, *, billing_month: str) -> pa.Table:
    """The charges that turn what was booked of a month into its statement of now.

    booked: the month's own charges and all earlier corrections of it, with the columns NEEDED of CHARGE.
    now: the month's statement from the present usage and price book.
    billing_month: YYYY-MM that bears the corrections.

    Returns columns as in CHARGE, sorted by key, then terms; no row where nothing differs.
    Raises ValueError for booked costs of another scale or currency than the statement's.
    """
    scale = now.book.statement_scale
    before = pa.concat_tables([_typed(table) for table in booked] or [_typed(records.empty(CHARGE))])
    before = before.unify_dictionaries()
    keys_before, key_before = _distinct(before, KEYS)
    terms_before, terms_of_before = _distinct(before, (*TERMS, *_WORDS))
    keys = pa.concat_tables([_text(now.keys, KEYS), keys_before]).unify_dictionaries()
    terms = pa.concat_tables([_text(now.line_table(), (*TERMS, *_WORDS)), terms_before]).unify_dictionaries()
    # The statement's rows first, so that an identity that both have speaks in the words of now.
    key = np.concatenate([now.key.astype(np.int64), key_before + len(now.keys)])
    term = np.concatenate([now.line.astype(np.int64), terms_of_before + len(now.lines)])
    key_id, term_id = _numbers(keys, KEYS), _numbers(terms, TERMS)
    width = int(term_id.max(initial=0)) + 1
    _, first, group = _unique(key_id[key] * width + term_id[term])
    texts = [_quantities(now), before.column("quantity").combine_chunks()]
    try:
        quantity = _sums(group, len(first), texts, _FEW_PLACES)
    except pa.ArrowInvalid:
        quantity = _sums(group, len(first), texts, _ALL_PLACES)
    billed_before = _minor(before.column("billed_cost"), scale)
    billed = money.add_by(group, np.concatenate([now.billed_minor.astype(np.int64), -billed_before]), len(first))
    changed = np.flatnonzero(_not_zero(quantity) | (billed != 0))
    whole = money.exact_sum(billed_before) + sum(billed[changed].tolist())
    if whole != now.total_minor:
        raise ValueError(f"{now.period.name}: booked and corrected {whole}, not the statement's {now.total_minor}")
    of_key, of_term = keys.take(_at(key[first[changed]])), terms.take(_at(term[first[changed]]))
    return _charges(of_key, of_term, quantity.take(_at(changed)), billed[changed].tolist(), now, billing_month)


def same_terms(one: PriceBook, other: PriceBook, period: Period) -> bool:
    """Whether two price books are sure to rate every usage of a month the same.

    False may be said of books that do, never True of books that do not: then rating says it.
    """
    return _terms(one, period) == _terms(other, period)


def _terms(book: PriceBook, period: Period) -> Any:
    """What of a price book a month is rated by, without what only says where it stands or whose costs are."""
    first, last = period.days[0], period.days[-1]

    def lasting(dated: Iterable[Any]) -> tuple[Any, ...]:
        """Those in force in the month; an end after the month is none."""
        return tuple(
            replace(one, until=None if one.until is None or one.until > last else one.until)
            for one in dated
            if (one.since is None or one.since <= last) and (one.until is None or first < one.until)
        )

    unnamed = replace(book.models, models=tuple(replace(model, source="") for model in book.models.models))
    return _plain(
        replace(
            book, id="", version="", file="", remarks=(), budgets=(), tags=(), scopes=(),
            skus=tuple(replace(sku, prices=lasting(sku.prices)) for sku in book.skus),
            shared_costs=lasting(book.shared_costs), contracts=lasting(book.contracts),
            commitments=lasting(book.commitments), models=unnamed,
            fx=tuple(rate for rate in book.fx if rate.period == period.name),
        )
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """Dataclasses as data that compares by content, without the places of its lines."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, {
            f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "place"
        }
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _charges(
    keys: pa.Table, terms: pa.Table, quantity: pa.Array, billed: Sequence[int], now: Statement, billing_month: str
) -> pa.Table:
    """Differences as CHARGE rows. keys, terms: one row per difference, with quantity and billed minor units."""
    book, wanted = now.book, records.schema(CHARGE)
    columns: dict[str, Any] = {name: keys.column(name) for name in KEYS}
    columns |= {name: terms.column(name) for name in (*TERMS, *_WORDS)}
    columns |= dict(zip(TAGS, tags.of_keys(keys, book.tags).columns, strict=True))
    about = f"correction\x1f{billing_month}\x1f{now.period.name}\x1f".encode()
    said: Any = money.joined([_plainly(columns[name]).fill_null("\x00") for name in (*KEYS, *TERMS)], "\x1f")
    columns["charge_id"] = [
        hashlib.blake2b(about + row, digest_size=14).hexdigest() for row in said.cast(pa.binary()).to_pylist()
    ]
    numbers: Any = quantity.to_pylist()
    quantities = [_plain_text(number) for number in numbers]
    priced_by = (_plainly(columns[n]).to_pylist() for n in ("unit_price", "contracted_unit_price", "fx_rate"))
    costs = [
        None if price is None else _cost(number, price, paid, rate)
        for number, price, paid, rate in zip(numbers, *priced_by, strict=True)
    ]
    columns["quantity"] = quantities
    columns["list_cost"] = [cost and cost[0] for cost in costs]
    columns["contracted_cost"] = [cost and cost[1] for cost in costs]
    columns["billed_cost"] = [
        None if cost is None else money.fixed(minor, book.statement_scale)
        for cost, minor in zip(costs, billed, strict=True)
    ]
    everywhere = {
        "currency": book.currency, "price_book_id": book.id, "price_book_version": book.version,
        "charge_class": CORRECTION, "billing_month": billing_month,
    }  # fmt: skip
    columns |= {name: [text] * len(quantities) for name, text in everywhere.items()}
    arrays = [_as(columns[field.name], field.type) for field in wanted]
    return pa.table(arrays, schema=wanted)


def _cost(quantity: Decimal, price: str, paid: str, rate: str) -> tuple[str, str]:
    """List and contracted cost of a quantity, exactly."""
    converted = quantity if rate == "1" else _EXACT.multiply(quantity, _decimal(rate))
    listed = _plain_text(_EXACT.multiply(converted, _decimal(price)))
    return listed, listed if paid == price else _plain_text(_EXACT.multiply(converted, _decimal(paid)))


@functools.lru_cache(1 << 12)
def _decimal(text: str) -> Decimal:
    return Decimal(text)


def _plain_text(number: Decimal) -> str:
    return money.plain(number) if number else "0"


def _minor(costs: pa.ChunkedArray, scale: int) -> Ints:
    """Billed costs in minor units, 0 for null. Raises ValueError for one that has not `scale` places."""
    texts: Any = costs.cast(pa.string()).combine_chunks()
    form = rf"^-?[0-9]+\.[0-9]{{{scale}}}$" if scale else r"^-?[0-9]+$"
    if not pc.all(pc.match_substring_regex(texts, form), min_count=0).as_py():
        raise ValueError(f"a billed cost has not {scale} places")
    return _whole(pc.replace_substring(texts, ".", ""))


def _at(rows: Ints) -> Any:
    """Positions as `take` wants them."""
    return pa.array(rows, pa.int64())


def _whole(texts: Any) -> Ints:
    found: Ints = texts.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _quantities(now: Statement) -> pa.Array:
    """Quantities of a statement's charges in their pricing units, as text."""
    order = np.argsort(now.line, kind="stable")
    ends = np.searchsorted(now.line[order], np.arange(len(now.lines) + 1))
    pieces = [
        money.product_texts(now.quantity[order[start:end]], 1, line.unit_base)
        for line, start, end in zip(now.lines, ends[:-1], ends[1:], strict=True)
    ]
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_arrays([pa.array([], pa.string()), *pieces]).take(_at(back))


def _sums(group: Ints, count: int, texts: Sequence[pa.Array], wide: pa.DataType) -> pa.Array:
    """What is now less what was booked by group number, in the order of the groups; every group has a row.

    texts: plain decimals of now, then of what was booked. Raises pa.ArrowInvalid for more places than `wide` has.
    """
    now, booked = (column.cast(wide) for column in texts)
    taken_back: Any = pc.negate(booked)  # type: ignore[type-var]
    table = pa.table({"group": _at(group), "value": pa.concat_arrays([now, taken_back])})
    summed = table.group_by("group", use_threads=False).aggregate([("value", "sum")]).sort_by("group")
    assert len(summed) == count, f"{count} groups, {len(summed)} sums"
    return summed.column("value_sum").cast(wide).combine_chunks()


def _not_zero(values: pa.Array) -> npt.NDArray[np.bool_]:
    differs: Any = pc.not_equal(values, pa.scalar(Decimal(0), values.type))
    found: npt.NDArray[np.bool_] = differs.to_numpy(zero_copy_only=False).astype(np.bool_)
    return found


def _typed(charges: pa.Table) -> pa.Table:
    """Booked charges: the columns NEEDED, text as dictionaries but for the numbers."""
    numbers = ("quantity", "billed_cost")
    words = _text(charges, [name for name in NEEDED if name not in numbers])
    for name in numbers:
        words = words.append_column(name, charges.column(name).cast(pa.string()))
    return words


def _text(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Some columns, all TEXT."""
    return pa.table({name: _as(table.column(name), records.TEXT) for name in names})


def _plainly(column: Any) -> Any:
    """A text column without its dictionary, in one piece."""
    plain = column.cast(pa.string())
    return plain.combine_chunks() if isinstance(plain, pa.ChunkedArray) else plain


def _as(column: Any, wanted: pa.DataType) -> Any:
    """A column, or a list of texts, as text of a type: plain or dictionary-encoded."""
    if not isinstance(column, pa.ChunkedArray | pa.Array):
        column = pa.array(column, pa.string())
    if column.type == wanted:
        return column
    plain = column.cast(pa.string())
    return plain.dictionary_encode() if wanted == records.TEXT else plain


def _distinct(table: pa.Table, names: Sequence[str]) -> tuple[pa.Table, Ints]:
    """The distinct rows of some text columns, and which of them each row is."""
    _, first, which = _unique(_numbers(table, names))
    return table.select(list(names)).take(_at(first)), which


def _numbers(table: pa.Table, names: Sequence[str]) -> Ints:
    """A number for each row, equal for equal texts and in their order, column after column, null first."""
    combined, size = np.zeros(len(table), np.int64), 1
    for name in names:
        codes, values = records.codes(table, name)
        rank = np.zeros(len(values) + 1, np.int64)  # the last place serves code -1: null
        rank[sorted(range(len(values)), key=values.__getitem__)] = np.arange(1, len(values) + 1)
        if size * (len(values) + 1) >= _LARGEST:
            found, combined = np.unique(combined, return_inverse=True)
            size = len(found)
        combined, size = combined * (len(values) + 1) + rank[codes], size * (len(values) + 1)
    return np.unique(combined, return_inverse=True)[1].astype(np.int64)


def _unique(values: Ints) -> tuple[Ints, Ints, Ints]:
    """Distinct values in order, where each is first, and which of them each value is."""
    found: Any = np.unique(values, return_index=True, return_inverse=True)
    return found[0], found[1], found[2].astype(np.int64)
