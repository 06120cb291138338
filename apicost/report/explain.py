"""How one charge came to be: from the measured quantity to the rounded cent, worked out a second time.

Rules of this file:
- The second working-out is its own: whole Python integers, row by row, from the usage and the price book.
  It uses none of the column arithmetic of `core/rating/rate`, so that the two check each other.
- Each statement names its source: usage columns, or FILE:LINE of the price book.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np

from apicost.core.rating import money
from apicost.core.rating.pricebook import SharedCost, Sku
from apicost.core.rating.rate import WIRE_BYTES
from apicost.core.rating.statement import UNALLOCATED, Line, Statement
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
        ("bearer", ", ".join(f"{_NAMES.get(n, n)} {row[n]}" for n in KEYS if n in row) or "nobody: no usage bears it"),
        ("days", f"{period.days[line.first_day]} to {period.days[line.end_day - 1]}, clocks of {period.time_zone}"),
        ("price book", f"{book.id} {book.version}, {book.currency}"),
    ]
    sku = next((s for s in book.skus if s.id == line.sku), None)
    shared = next((s for s in book.shared_costs if s.id == line.sku), None)
    if shared is not None:
        again = _shared(statement, line, shared, key, steps)
    elif sku is not None and line.price is not None:
        again = _priced(statement, line, sku, key, steps)
    else:
        again = quantity  # the measured sum is all there is
        steps.append(("quantity", f"{_in_unit(quantity, line)}: the sum of {line.meter}"))
        steps.append(("no price", line.reason or ""))
    agrees = again == quantity
    if line.price is not None:
        agrees &= _money(statement, line, position, quantity, steps)
    steps.append(("checked", "worked out again from usage and price book: " + ("the same" if agrees else
                  f"DIFFERENT: {again} base units, not {quantity}")))  # fmt: skip
    return Explanation(charge_id=charge_id, steps=tuple(steps), agrees=agrees)


def _priced(statement: Statement, line: Line, sku: Sku, key: int, steps: list[tuple[str, str]]) -> int:
    """Steps from the measured quantity to this tier's share of it; returns that share worked out again."""
    picked = _picked(statement, sku)
    stretch = _sums(statement, sku.columns, picked, line.first_day, line.end_day)
    before = sum(
        sum(_sums(statement, sku.columns, picked, first, end).values())
        for first, end in _priced_stretches(statement, sku, line.first_day)
    )
    steps.append(("measured", f"{stretch[key]:,} = {line.meter} of this bearer on these days"))
    where = ", ".join(f"{column} in {list(values)}" for column, values in sku.where.items()) or "all usage"
    steps.append(("SKU", f"{sku.id} ({sku.place}): {where}"))
    price = sku.price_on(statement.period.days[line.first_day])
    assert price is not None, f"{line.price_id} has no price on its own first day"
    ends = [sku.free] if sku.free else []
    ends += [before + sum(stretch.values()) if t.up_to is None else sku.free + t.up_to for t in price.tiers]
    names = (["free"] if sku.free else []) + [
        "flat" if price.mode == "flat" else f"tier {n + 1}" for n in range(len(price.tiers))
    ]
    left = dict(stretch)
    reached, mine = before, 0
    for name, end in zip(names, ends, strict=True):
        amount = min(max(end - reached, 0), sum(left.values()))
        pool = sum(left.values())
        shares = _hamilton(amount, left) if amount else dict.fromkeys(left, 0)
        if name == line.tier:
            mine = shares[key]
            unit_price = f"{money.plain(line.price or 0)} {statement.book.currency} per {line.unit}"
            units = f"units {reached:,} to {reached + amount:,} of the SKU's month"
            steps.append(("tier", f"{name} ({line.place}): {units}; {unit_price}"))
            if amount != pool:
                down = amount * left[key] // pool
                steps.append(
                    (
                        "share",
                        f"{amount:,} of the {pool:,} units left are in this tier: "
                        f"the bearer's {left[key]:,} x {amount:,} / {pool:,} = {down:,} and a remainder; "
                        "the largest remainders "
                        f"get one more: {mine:,}",
                    )
                )
        left = {k: left[k] - shares[k] for k in left}
        reached += amount
    steps.append(("quantity", f"{mine:,} base units = {_in_unit(mine, line)}"))
    return mine


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


def _money(statement: Statement, line: Line, position: int, quantity: int, steps: list[tuple[str, str]]) -> bool:
    """Steps from quantity to billed cost; whether the rounding is one of its two neighbours."""
    assert line.price is not None
    exact = Fraction(quantity, line.unit_base) * Fraction(line.price)
    billed = int(statement.billed_minor[position])
    scale, currency = statement.book.statement_scale, statement.book.currency
    list_cost = money.product_texts(np.array([quantity]), *line.cost_ratio())[0].as_py()
    steps.append(
        ("list cost", f"{_in_unit(quantity, line)} x {money.plain(line.price)} = {list_cost} {currency}, exactly")
    )
    low = floor(exact * 10**scale)
    how = "rounded down" if billed == low else "one more by its remainder"
    if exact * 10**scale == billed:
        how = "nothing to round"
    steps.append(("billed cost", f"{money.fixed(billed, scale)} {currency}: {how}, so that all charges sum to the "
                  f"statement's {statement.total} {currency}"))  # fmt: skip
    whole = sum(statement.billed_minor.tolist()) == statement.total_minor
    return whole and billed - low in (0, 1) and Fraction(list_cost) == exact


def _as_text(part: Fraction) -> str:
    """A part of a whole as decimal text."""
    top, bottom = part.numerator, part.denominator
    return money.product_texts(np.array([top]), 1, bottom)[0].as_py() if 10**18 % bottom == 0 else str(part)


def _in_unit(quantity: int, line: Line) -> str:
    return f"{money.product_texts(np.array([quantity]), 1, line.unit_base)[0].as_py()} {line.unit}"


def _picked(statement: Statement, sku: Sku) -> np.ndarray:
    """Which keys a SKU picks, by comparing texts."""
    rows = statement.usage.keys.select(list(sku.where)).to_pylist() if sku.where else None
    if rows is None:
        return np.ones(len(statement.usage.keys), np.bool_)
    return np.array([all(row[c] in values for c, values in sku.where.items()) for row in rows], np.bool_)


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
