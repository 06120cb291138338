"""How one charge came to be: from the measured quantity to the rounded cent, worked out a second time.

Rules of this file:
- The second working-out is its own: whole Python integers, row by row, from the usage and the price book.
  It uses none of the column arithmetic of `core/rating/rate`, so that the two check each other.
- Each statement names its source: usage columns, or FILE:LINE of the price book.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor

import numpy as np

from apicost.core import prompts
from apicost.core.rating import money
from apicost.core.rating.pricebook import COMMITMENT, EXTERNAL, POOLS, Contract, Match, Price, SharedCost, Sku
from apicost.core.rating.rate import WIRE_BYTES
from apicost.core.rating.statement import UNALLOCATED, USAGE, Line, Statement
from apicost.core.rating.usage_rows import KEYS

_NAMES = {"match_state": "match", "status_class": "status", "llm_model": "model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A charge explained. steps: (what, text), in order; agrees: whether working it out again gave the same."""

    charge_id: str
    steps: tuple[tuple[str, str], ...]
    agrees: bool


def explain(statement: Statement, charge_id: str) -> Explanation | None:
    """The explanation of a charge of this statement; None where it has no such charge."""
    position = statement.find(charge_id)
    if position is None:
        return None
    line = statement.lines[int(statement.line[position])]
    key = int(statement.key[position])
    quantity = int(statement.quantity[position])
    book, period = statement.book, statement.period
    row = {name: value for name, (value,) in statement.keys.slice(key, 1).to_pydict().items() if value is not None}
    steps = [
        ("charge", charge_id),
        ("bearer", bearer_of(row)),
        ("days", f"{period.days[line.first_day]} to {period.days[line.end_day - 1]}, clocks of {period.time_zone}"),
        ("price book", f"{book.id} {book.version}, {book.currency} ({book.file})"),
    ]
    sku = next((s for s in book.skus if s.id == line.sku), None)
    shared = next((s for s in book.shared_costs if s.id == line.sku), None)
    if line.sku == COMMITMENT:
        again = _commitment(statement, line, key, steps)
    elif shared is not None:
        again = _shared(statement, line, shared, key, steps)
    elif sku is not None and line.price is not None:
        again = _priced(statement, line, sku, key, steps)
    else:
        again = quantity  # the measured sum is all there is
        steps.append(("quantity", f"{_in_unit(quantity, line)}: the sum of {line.meter}"))
        steps.append(("no price", line.reason or ""))
    agrees = again == quantity
    if line.price is not None:
        agrees &= _money(statement, line, position, key, quantity, steps)
    steps.append(("checked", "worked out again from usage and price book: " + ("the same" if agrees else
                  f"DIFFERENT: {again} base units, not {quantity}")))  # fmt: skip
    return Explanation(charge_id=charge_id, steps=tuple(steps), agrees=agrees)


def bearer_of(row: Mapping[str, str]) -> str:
    """Who bears a charge, in words. row: its keys that are not null."""
    return ", ".join(f"{_NAMES.get(n, n)} {row[n]}" for n in KEYS if n in row) or "nobody: no usage bears it"


def _priced(statement: Statement, line: Line, sku: Sku, key: int, steps: list[tuple[str, str]]) -> int:
    """Steps from the measured quantity to this tier's share of it; returns that share worked out again."""
    price = sku.price_on(statement.period.days[line.first_day])
    assert price is not None, f"{line.price_id} has no price on its own first day"
    if price.mode == EXTERNAL:
        return _external(statement, line, sku, price, key, steps)
    picked = _picked(statement, sku.where)
    alone = _pool(statement, price, key)
    if alone is not None:
        column, value, mask = alone
        picked &= mask
    stretch = _sums(statement, sku.columns, picked, line.first_day, line.end_day)
    before = _month(statement, sku, picked, line.first_day)
    steps.append(("measured", f"{stretch[key]:,} = {line.meter} of this bearer on these days"))
    where = ", ".join(f"{name} in {list(values)}" for name, values in sku.where.items()) or "all usage"
    steps.append(("SKU", f"{sku.id} ({sku.place}): {where}"))
    if alone is not None:
        steps.append(("pool", f"{column} {value or '(none)'} counts its month by itself"))
    if line.tier == "package":
        mine = _package(line, sku, price, key, stretch, before, steps)
    else:
        month = _month(statement, sku, picked, len(statement.period.days))
        mine = _tier(line, _ends(sku, price, month, before + sum(stretch.values())), key, stretch, before, steps)
    steps.append(("quantity", f"{mine:,} base units = {_in_unit(mine, line)}"))
    return mine


def _external(
    statement: Statement, line: Line, sku: Sku, price: Price, key: int, steps: list[tuple[str, str]]
) -> int:  # fmt: skip
    """Steps from a model's tokens to the price that a list has for them; returns the tokens, -1 for another price."""
    name = statement.keys.column("llm_model")[key].as_py()
    model = statement.book.models.find(name, price.provider)
    dated = None if model is None else model.on(statement.period.days[line.first_day])
    (column,) = line.columns
    measured = _sums(statement, line.columns, np.arange(len(statement.usage.keys)) == key, line.first_day, line.end_day)
    steps.append(("measured", f"{measured[key]:,} = {column} of this bearer on these days"))
    steps.append(("SKU", f"{sku.id} ({sku.place}): priced by {price.source} ({price.place})"))
    if model is None or dated is None:
        return -1
    kind = "prompt" if column.startswith("llm_prompt") else "completion"
    said = [band for band in dated.bands.get(kind, ()) if prompts.part(f"llm_{kind}_tokens", band.over, band.upto)
            == column]  # fmt: skip
    for band in said:
        bounds = [f"{word} {n:,}" for word, n in (("over", band.over), ("up to", band.upto)) if n is not None]
        where = f" of requests whose prompt has {' and '.join(bounds)} tokens" if bounds else ""
        since = "" if dated.since is None else f", since {dated.since}"
        steps.append(("model price", f"{model.source}, {model.known_as}{since}: {money.plain(band.price)} "
                      f"{line.currency} per 1,000,000 {kind} tokens{where}"))  # fmt: skip
    steps.append(("quantity", f"{measured[key]:,} base units = {_in_unit(measured[key], line)}"))
    right = [Fraction(band.price) * line.unit_base / 10**6 == Fraction(line.price or 0) for band in said]
    return measured[key] if right == [True] else -1


def _ends(sku: Sku, price: Price, month: int, end: int) -> list[tuple[str, int]]:
    """Where each tier ends on the pool's month, in order; `end` is where the line's days do."""
    ends = [("free", sku.free)] if sku.free else []
    if price.mode == "flat":
        return [*ends, ("flat", end)]
    tiers = [(f"tier {n}", tier.up_to) for n, tier in enumerate(price.tiers, 1)]
    if price.mode == "volume":  # one tier prices all that is not free: the one that the month reaches
        name = next(name for name, up_to in tiers if up_to is None or max(month - sku.free, 0) <= up_to)
        return [*ends, (name, end)]
    return [*ends, *((name, end if up_to is None else sku.free + up_to) for name, up_to in tiers)]


def _tier(
    line: Line, ends: list[tuple[str, int]], key: int, stretch: dict[int, int], before: int,
    steps: list[tuple[str, str]],
) -> int:  # fmt: skip
    """The bearer's share of the line's tier, given out tier by tier."""
    left, reached, mine = dict(stretch), before, 0
    for name, end in ends:
        amount = min(max(end - reached, 0), sum(left.values()))
        pool = sum(left.values())
        shares = _hamilton(amount, left) if amount else dict.fromkeys(left, 0)
        if name == line.tier:
            mine = shares[key]
            unit_price = f"{money.plain(line.price or 0)} {line.currency} per {line.unit}"
            units = f"units {reached:,} to {reached + amount:,} of the SKU's month"
            steps.append(("tier", f"{name} ({line.place}): {units}; {unit_price}"))
            if amount != pool:
                down = amount * left[key] // pool
                steps.append(("share", f"{amount:,} of the {pool:,} units left are in this tier: the bearer's "
                              f"{left[key]:,} x {amount:,} / {pool:,} = {down:,} and a remainder; the largest "
                              f"remainders get one more: {mine:,}"))  # fmt: skip
        left = {k: left[k] - shares[k] for k in left}
        reached += amount
    return mine


def _package(
    line: Line, sku: Sku, price: Price, key: int, stretch: dict[int, int], before: int, steps: list[tuple[str, str]]
) -> int:
    """The bearer's share of the packages that the line's days begin."""
    end = before + sum(stretch.values())
    free = min(max(sku.free - before, 0), sum(stretch.values()))
    shares = _hamilton(free, stretch) if free else dict.fromkeys(stretch, 0)
    left = {k: stretch[k] - shares[k] for k in stretch}
    first, last = (-(-max(units - sku.free, 0) // price.size) for units in (before, end))
    count = last - first
    mine = _hamilton(count * line.unit_base, left)[key] if count else 0
    steps.append(("packages", f"{count:,} begun ({line.place}), each of {price.size:,} base units: "
                  f"{money.plain(line.price or 0)} {line.currency} per {line.unit}"))  # fmt: skip
    steps.append(("share", f"the bearer's {left[key]:,} of {sum(left.values()):,} units, in 1/{line.unit_base:,} of a "
                  f"package: {mine:,}"))  # fmt: skip
    return mine


def _commitment(statement: Statement, line: Line, key: int, steps: list[tuple[str, str]]) -> int:
    """Steps from the minimum to the shortfall; returns 1 where it comes out the same, else 0."""
    consumer = statement.keys.column("consumer")[key].as_py()
    due = next(c for c in statement.book.commitments if c.consumer == consumer and c.place == line.place)
    consumers = statement.keys.column("consumer").to_pylist()
    paid = Fraction()
    for bearer, number, quantity in zip(
        statement.key.tolist(), statement.line.tolist(), statement.quantity.tolist(), strict=True
    ):
        if consumers[bearer] == consumer and statement.lines[number].category == USAGE:
            paid += quantity * _per_unit(statement.lines[number], statement.lines[number].contracted_price)
    currency = statement.book.currency
    short = Fraction(due.minimum) - paid
    steps.append(("commitment", f"{consumer} ({line.place}): at least {due.minimum:f} {currency} a month"))
    steps.append(("usage", f"its priced usage of the month comes to {_exact_text(paid)} {currency}"))
    steps.append(("shortfall", f"{due.minimum:f} - {_exact_text(paid)} = {_exact_text(short)} {currency}"))
    return int(line.price is not None and Fraction(line.price) == short)


def _shared(statement: Statement, line: Line, shared: SharedCost, key: int, steps: list[tuple[str, str]]) -> int:
    """Steps from the fixed amount to this bearer's share; returns that share worked out again."""
    currency = statement.book.currency
    steps.append(("shared cost", f"{shared.id} ({shared.place}): {shared.amount:f} {currency} a month, "
                  f"method {shared.method}"))  # fmt: skip
    idle = Fraction(shared.keep_unallocated)
    parts = {"idle": idle, **{name: (1 - idle) * Fraction(w) for name, w in shared.weights.items()}}
    units = _hamilton_fractions(int(Fraction(shared.amount) * line.unit_base), list(parts.values()))
    of_part = dict(zip(parts, units, strict=True))
    name = "idle" if line.tier == "idle" else line.meter
    part = of_part[name]
    steps.append(("part", f"{name}: {shared.amount:f} x {_as_text(parts[name])} = {_in_unit(part, line)}"))
    if line.state == UNALLOCATED:
        steps.append(("unallocated", line.reason or ""))
        return part
    everyone = np.ones(len(statement.usage.keys), np.bool_)
    columns = WIRE_BYTES if name == "bytes" else ("calls",)
    weights = _sums(statement, columns, everyone, 0, len(statement.period.days))
    mine = _hamilton(part, weights)[key]
    steps.append(("share", f"by {name}: {weights[key]:,} of {sum(weights.values()):,} = {_in_unit(mine, line)}"))
    return mine


def _money(
    statement: Statement, line: Line, position: int, key: int, quantity: int, steps: list[tuple[str, str]]
) -> bool:
    """Steps from quantity to billed cost; whether price, contract and rounding are what book and charge say."""
    assert line.price is not None
    billed = int(statement.billed_minor[position])
    scale, currency = statement.book.statement_scale, statement.book.currency
    costs = statement.own_columns(position, position + 1)
    converted = ""
    if line.fx is not None:
        state = "locked" if line.fx.locked else "not locked: it may still change"
        steps.append(("exchange rate", f"1 {line.currency} = {line.fx.rate:f} {currency} in {line.fx.period} "
                      f"({line.fx.place}; {state})"))  # fmt: skip
        converted = f" x {line.fx.rate:f}"
    list_cost = costs["list_cost"][0].as_py()
    product = f"{_in_unit(quantity, line)} x {money.plain(line.price)}{converted}"
    steps.append(("list cost", f"{product} = {list_cost} {currency}, exactly"))
    contract = _contract(statement, line, key)
    paid: Decimal | None = line.price
    exact = quantity * _per_unit(line, line.price)
    right = Fraction(list_cost) == exact and contract is line.contract
    if contract is not None:
        paid = line.contracted_price
        exact = quantity * _per_unit(line, _agreed(contract, line.price))
        what = f"{contract.discount_pct:f} % off" if contract.discount_pct is not None else "a price"
        product = f"{_in_unit(quantity, line)} x {money.plain(paid or 0)}{converted}"
        contracted_cost = costs["contracted_cost"][0].as_py()
        steps.append(("contract", f"{what} ({contract.place}): {product} = {contracted_cost} {currency}, exactly"))
        right &= Fraction(contracted_cost) == exact
    low = floor(exact * 10**scale)
    how = "rounded down" if billed == low else "one more by its remainder"
    if exact * 10**scale == billed:
        how = "nothing to round"
    steps.append(("billed cost", f"{money.fixed(billed, scale)} {currency}: {how}, so that all charges sum to the "
                  f"statement's {statement.total} {currency}"))  # fmt: skip
    whole = sum(statement.billed_minor.tolist()) == statement.total_minor
    return whole and billed - low in (0, 1) and right


def _per_unit(line: Line, price: Decimal | Fraction | None) -> Fraction:
    """What one base unit costs at a price, in the book's currency."""
    return Fraction(price or 0) * (Fraction(line.fx.rate) if line.fx else 1) / line.unit_base


def _agreed(contract: Contract, listed: Decimal) -> Fraction:
    """The price that a contract makes of a list price."""
    if contract.discount_pct is not None:
        return Fraction(listed) * (1 - Fraction(contract.discount_pct) / 100)
    return Fraction(contract.price or 0) if listed else Fraction(0)


def _contract(statement: Statement, line: Line, key: int) -> Contract | None:
    """The contract that a charge is under, looked up again: the first that is about its SKU, day and bearer."""
    row = {name: value for name, (value,) in statement.keys.slice(key, 1).to_pydict().items()}
    day = statement.period.days[line.first_day]
    if line.category != USAGE or line.sku is None:
        return None
    for contract in statement.book.contracts:
        if contract.applies(line.sku, day) and all(row[c] in values for c, values in contract.match.items()):
            return contract
    return None


def _exact_text(amount: Fraction) -> str:
    """An amount with all its digits."""
    return money.plain(money.exact_decimal(amount))


def _as_text(part: Fraction) -> str:
    """A part of a whole as decimal text."""
    top, bottom = part.numerator, part.denominator
    return money.product_texts(np.array([top]), 1, bottom)[0].as_py() if 10**18 % bottom == 0 else str(part)


def _in_unit(quantity: int, line: Line) -> str:
    return f"{money.product_texts(np.array([quantity]), 1, line.unit_base)[0].as_py()} {line.unit}"


def _picked(statement: Statement, where: Match) -> np.ndarray:
    """Which keys fulfil conditions, by comparing texts."""
    rows = statement.usage.keys.select(list(where)).to_pylist() if where else None
    if rows is None:
        return np.ones(len(statement.usage.keys), np.bool_)
    return np.array([all(row[c] in values for c, values in where.items()) for row in rows], np.bool_)


def _pool(statement: Statement, price: Price, key: int) -> tuple[str, str | None, np.ndarray] | None:
    """The column and value of the pool that a key counts its month in, and the keys in it; None for all together."""
    column = POOLS[price.pool]
    if column is None:
        return None
    values = statement.usage.keys.column(column).to_pylist()
    return column, values[key], np.array([value == values[key] for value in values], np.bool_)


def _month(statement: Statement, sku: Sku, picked: np.ndarray, end_day: int) -> int:
    """Units of the month's priced days before a day."""
    return sum(
        sum(_sums(statement, sku.columns, picked, first, end).values())
        for first, end in _priced_stretches(statement, sku, end_day)
    )


def _sums(
    statement: Statement, columns: Sequence[str], picked: np.ndarray, first_day: int, end_day: int
) -> dict[int, int]:
    """Sum of usage columns by key over some days, as Python integers; every picked key is there."""
    usage = statement.usage
    sums = dict.fromkeys(np.flatnonzero(picked).tolist(), 0)
    rows = np.flatnonzero(picked[usage.key] & (usage.day >= first_day) & (usage.day < end_day))
    for name in columns:
        for key, value in zip(usage.key[rows].tolist(), usage.sums[name][rows].tolist(), strict=True):
            sums[key] += value
    return sums


def _priced_stretches(statement: Statement, sku: Sku, end_day: int) -> list[tuple[int, int]]:
    """The days before `end_day` that have a price."""
    priced = [sku.price_on(day) is not None for day in statement.period.days[:end_day]]
    spans, start = [], 0
    for has_price, group in itertools.groupby(priced):
        length = len(list(group))
        if has_price:
            spans.append((start, start + length))
        start += length
    return spans


def _hamilton(total: int, weights: dict[int, int]) -> dict[int, int]:
    """Largest remainder over keys in order."""
    whole = sum(weights.values())
    shares = {key: total * weight // whole for key, weight in weights.items()}
    order = sorted(weights, key=lambda key: (-(total * weights[key] % whole), key))
    for key in order[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def _hamilton_fractions(total: int, weights: list[Fraction]) -> list[int]:
    exact = [total * weight for weight in weights]
    shares = [floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares
