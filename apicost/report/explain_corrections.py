"""How a correction came to be: what was booked of a charge, what it is now, and why they differ.

Rules of this file:
- What was booked, what is now and their difference are added up a second time here, row by row, as exact fractions.
- The reason is told from rows alone: another price, another quantity, tiers that lie elsewhere, or rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.corrections import TERMS
from apicost.core.rating.pricebook import COMMITMENT
from apicost.core.rating.statement import PURCHASE, Statement
from apicost.core.rating.usage_rows import KEYS
from apicost.report.explain import Explanation, bearer_of, explain

Row = Mapping[str, Any]
Steps = list[tuple[str, str]]
_AMOUNTS = ("quantity", "billed_cost")
_WHAT = ("sku", "meter")  # with KEYS and the days: what is sold to whom, at whichever price


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """Charges of a closed month, or corrections of it, as a month billed them. charges: columns as in CHARGE."""

    billing_month: str
    charges: pa.Table


def explain_correction(
    correction: Row, booked: Sequence[Booked], then: Statement, now: Statement
) -> Explanation:  # fmt: skip
    """The explanation of a correction.

    correction: a row of CHARGE. booked: all that was booked of the corrected month before it, in order.
    then: the corrected month's statement as it was known before, now: as it was known when the correction was made.
    """
    book, currency = now.book, correction["currency"]
    steps: Steps = [
        ("charge", correction["charge_id"]),
        ("correction", f"of {now.period.name}, which is closed; billed in {correction['billing_month']}"),
        ("bearer", bearer_of({name: correction[name] for name in KEYS if correction[name] is not None})),
        ("period", f"{correction['period_start']} to {correction['period_end']}, exclusive"),
        ("price", _price(correction)),
    ]
    total = dict.fromkeys(_AMOUNTS, Fraction())
    for lot in booked:
        for row in _alike(lot.charges, correction, TERMS):
            steps.append(("booked", f"{_amounts(row)} as {row['charge_id']} in {lot.billing_month}"))
            total = {name: total[name] + Fraction(row[name] or 0) for name in _AMOUNTS}
    if not any(what == "booked" for what, _ in steps):
        steps.append(("booked", "nothing at this price"))
    present = [now.table(at, at + 1).to_pylist()[0] for at in positions(now, correction)]
    for row in present:
        steps.append(("now", f"{_amounts(row)} with {book.id} {book.version}"))
    if not present:
        steps.append(("now", f"nothing at this price, with {book.id} {book.version}"))
    difference = {name: sum((Fraction(row[name] or 0) for row in present), -total[name]) for name in _AMOUNTS}
    steps.append(("why", why(correction, booked, then, now)))
    steps.append(("quantity", f"{_text(difference['quantity'])} {correction['unit']}"))
    agrees = difference["quantity"] == Fraction(correction["quantity"])
    if correction["unit_price"] is not None:
        agrees &= difference["billed_cost"] == Fraction(correction["billed_cost"])
        agrees &= _products(correction, steps)
        steps.append(("billed cost", f"{correction['billed_cost']} {currency}: what it is now less what was booked"))
    else:
        steps.append(("no price", correction["reason"] or ""))
    steps.append(("checked", "now less booked, added up again: " + ("the same" if agrees else
                  f"DIFFERENT: {_text(difference['quantity'])} and {_text(difference['billed_cost'])}")))  # fmt: skip
    for title, statement in (("before", then), ("now", now)):
        for at in positions(statement, correction)[:1]:
            found = explain(statement, statement.charge_ids(np.array([at]))[0])
            assert found is not None, "a charge of a statement can be explained"
            steps += [(f"{title}: {what}", text) for what, text in found.steps if what not in ("charge", "bearer")]
            agrees &= found.agrees
    return Explanation(charge_id=correction["charge_id"], steps=tuple(steps), agrees=agrees)


def why(correction: Row, booked: Sequence[Booked], then: Statement, now: Statement) -> str:
    """The reason of a correction as a sentence."""
    before = [row for lot in booked for row in _alike(lot.charges, correction, _WHAT)]
    after = [row for at in _positions(now, correction, _WHAT) for row in now.table(at, at + 1).to_pylist()]
    old, new = (sum((_measured(row) for row in rows), Fraction()) for rows in (before, after))
    if correction["sku"] == COMMITMENT:
        return "the usage or the minimum of the commitment is another, and so is what falls short of it"
    if correction["charge_category"] == PURCHASE:
        return "the shared cost or the usage that it is shared by is another, and so are the shares"
    if not Fraction(correction["quantity"]):
        return "rounding: other charges of the month have changed, and its cents are given out anew"
    reasons = []
    if old != new:
        reasons.append(f"usage: {_text(abs(new - old))} {correction['unit']} "
                       f"{'more' if new > old else 'less'} than was booked")  # fmt: skip
    if correction["unit_price"] is None:
        if not positions(now, correction):
            reasons.append("it has a price now: the quantity without one is given back")
    elif _is_repriced(correction, now):
        reasons.append("the price is no longer this one: what was booked at it is given back")
    elif _is_repriced(correction, then):
        reasons.append("the price is this one now: what was measured is booked at it")
    return "; ".join(reasons) or "tiers: other usage came or their bounds changed, and each has other units"


def _is_repriced(correction: Row, statement: Statement) -> bool:
    """Whether a statement has another price in the place of a correction's, not merely a tier that nobody reaches."""
    lines = statement.line_table()
    if _equal(lines, correction, TERMS).any():
        return False
    price = str(correction["sku_price_id"]).rpartition("/")[0]
    days = _equal(lines, correction, ("sku", "period_start", "period_end"))
    ids = [name or "" for name in lines.column("sku_price_id").cast(pa.string()).to_pylist()]
    same_date = np.array([name.rpartition("/")[0] == price for name in ids], np.bool_) & days
    same_tier = np.array([name == correction["sku_price_id"] for name in ids], np.bool_) & days
    return bool(same_tier.any()) or not same_date.any()


def positions(statement: Statement, row: Row) -> list[int]:
    """The charges of a statement that have the identity of a row."""
    return _positions(statement, row, TERMS)


def _positions(statement: Statement, row: Row, terms: Sequence[str]) -> list[int]:
    lines = _equal(statement.line_table(), row, terms)
    keys = _equal(statement.keys, row, KEYS)
    found: list[int] = np.flatnonzero(lines[statement.line] & keys[statement.key]).tolist()
    return found


def _alike(charges: pa.Table, row: Row, terms: Sequence[str]) -> list[dict[str, Any]]:
    """The charges of a row's bearer that have the same terms."""
    found: list[dict[str, Any]] = charges.filter(pa.array(_equal(charges, row, (*KEYS, *terms)))).to_pylist()
    return found


def _equal(table: pa.Table, row: Row, names: Sequence[str]) -> np.ndarray:
    """Which rows of a table have a row's texts."""
    same = np.ones(len(table), np.bool_)
    for name in names:
        column = table.column(name).cast(pa.string())
        codes, values = records.codes(pa.table({name: column.dictionary_encode()}), name)
        text = row[name]
        same &= codes == (-1 if text is None else values.index(text) if text in values else -2)
    return same


def _measured(row: Row) -> Fraction:
    """A quantity that can be added up over prices: packages are no units of what was measured."""
    return Fraction() if row["tier"] == "package" else Fraction(row["quantity"])


def _price(row: Row) -> str:
    if row["unit_price"] is None:
        return f"none: {row['reason']}"
    paid = "" if row["contracted_unit_price"] == row["unit_price"] else f", contracted {row['contracted_unit_price']}"
    rate = "" if row["fx_rate"] == "1" else f", 1 {row['pricing_currency']} = {row['fx_rate']} {row['currency']}"
    return (f"{row['sku_price_id']}, {row['tier']}: {row['unit_price']} {row['pricing_currency']} per "
            f"{row['unit']}{paid}{rate}")  # fmt: skip


def _amounts(row: Row) -> str:
    cost = "without a price" if row["billed_cost"] is None else f"{row['billed_cost']} {row['currency']}"
    return f"{row['quantity']} {row['unit']}, {cost}"


def _products(row: Row, steps: Steps) -> bool:
    """Steps from quantity to list and contracted cost; whether they are the row's."""
    right = True
    for name, price in (("list_cost", "unit_price"), ("contracted_cost", "contracted_unit_price")):
        if name == "contracted_cost" and row[price] == row["unit_price"] and row[name] == row["list_cost"]:
            continue
        rate = "" if row["fx_rate"] == "1" else f" x {row['fx_rate']}"
        exact = Fraction(row["quantity"]) * Fraction(row[price]) * Fraction(row["fx_rate"])
        right &= exact == Fraction(row[name])
        steps.append((name.replace("_", " "), f"{row['quantity']} x {row[price]}{rate} = {_text(exact)} "
                      f"{row['currency']}, exactly"))  # fmt: skip
    return right


def _text(amount: Fraction) -> str:
    """An amount with all its digits."""
    return money.plain(money.exact_decimal(amount)) if amount else "0"
