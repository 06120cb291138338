"""A statement, or a part of it, by calendar day.

Rules of this file:
- A line's cost falls on the days of its stretch as the quantity of those who bear it did, or for a shared cost
  its weight: within a month the first calls of a day are not dearer than the last ones.
- Who bears a line: the keys that its SKU picks, under its contract, in the pools that reach it.
- Days, and what belongs to no day, sum to the part's billed total by largest remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from apicost.core import prompts, records
from apicost.core.rating import external, money
from apicost.core.rating.pricebook import EXTERNAL, POOLS, PriceBook, Sku
from apicost.core.rating.rate import WIRE_BYTES, contract_of, picks
from apicost.core.rating.statement import Line, Statement
from apicost.core.rating.usage_rows import UsageRows

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class DayFigure:
    """One day: its requests, wire bytes of both legs and directions, and cost in minor units."""

    day: date
    start_unix_s: int
    end_unix_s: int
    calls: int
    wire_bytes: int
    billed_minor: int


def keys_needed(book: PriceBook) -> tuple[str, ...]:
    """The keys that usage by day must have, so that its cost can be told: far fewer than a charge has."""
    asked = {column for sku in book.skus for column in sku.where}
    pools = {POOLS[price.pool] for sku in book.skus for price in sku.prices}
    agreed = {column for contract in book.contracts for column in contract.match}
    due = {"consumer"} if book.commitments else set()
    models = {"llm_model"} if any(sku.is_external for sku in book.skus) else set()
    return tuple(sorted({"api", *asked, *agreed, *due, *models, *(column for column in pools if column)}))


def sums_needed(book: PriceBook) -> tuple[str, ...]:
    """The sums that usage by day must have for the same."""
    sold = {column for sku in book.skus for column in sku.columns} | set(external.columns_needed(book))
    return tuple(sorted({"calls", *WIRE_BYTES, *sold}))


def by_day(statement: Statement, daily: UsageRows, api: str | None = None) -> tuple[tuple[DayFigure, ...], int]:
    """The days of the period, and what belongs to none, in minor units.

    daily: the same usage, gathered by every day with at least the keys and sums of `keys_needed`, `sums_needed`.
    api: only this API's part of the statement; None is all.
    """
    period = statement.period
    count = len(period.days)
    picked = _of_api(statement.keys, api)[statement.key]
    mine = _of_api(daily.keys, api)
    quantity = money.add_by(statement.line[picked], statement.quantity[picked], len(statement.lines))
    exact = [Fraction()] * (count + 1)  # the last is for what belongs to no day
    minor = 10**statement.book.statement_scale
    skus = {sku.id: sku for sku in statement.book.skus}
    for number, (line, of_line) in enumerate(zip(statement.lines, quantity.tolist(), strict=True)):
        if line.price is None or not of_line:
            continue
        cost = line.cost_of(of_line) * minor
        bearers = mine & _bearers(statement, number, skus[line.sku], daily.keys) if line.sku in skus else mine
        weights = _weights(daily, line, bearers, count)
        whole = money.exact_sum(weights)
        if not whole:
            exact[count] += cost
            continue
        for day in np.flatnonzero(weights).tolist():
            exact[day] += cost * Fraction(int(weights[day]), whole)
    billed = money.round_by_remainder(exact, int(statement.billed_minor[picked].sum()))
    rows = mine[daily.key]
    calls = money.add_by(daily.day[rows], daily.of(("calls",))[rows], count)
    wire = money.add_by(daily.day[rows], daily.of(WIRE_BYTES)[rows], count)
    figures = tuple(
        DayFigure(
            day=day, start_unix_s=period.starts[i], end_unix_s=period.starts[i + 1], calls=int(calls[i]),
            wire_bytes=int(wire[i]), billed_minor=billed[i],
        )
        for i, day in enumerate(period.days)
    )  # fmt: skip
    return figures, billed[count]


def _of_api(keys: pa.Table, api: str | None) -> Mask:
    if api is None:
        return np.ones(len(keys), np.bool_)
    codes, values = records.codes(keys, "api")
    return codes == values.index(api) if api in values else np.zeros(len(codes), np.bool_)


def _bearers(statement: Statement, number: int, sku: Sku, keys: pa.Table) -> Mask:
    """Which of some other keys of the same usage bear a line: by SKU, contract, and the pools that reach it."""
    book, line = statement.book, statement.lines[number]
    price, contracts = book.terms_on(sku, statement.period.days[line.first_day])
    bearers = picks(sku, keys)
    if contracts:
        own = [n for n in contracts if book.contracts[n] is line.contract]
        bearers &= contract_of(book, contracts, keys) == (own[0] if own else -1)
    column = POOLS[price.pool] if price else None
    if sku.is_external:
        counted = [external.covers(book, sku, keys, prompts.column_of(name)) for name in line.columns]
        bearers &= np.logical_or.reduce(counted)
        column = "llm_model" if price is not None and price.mode == EXTERNAL else column
    if column is not None:
        codes, values = records.codes(statement.keys, column)
        reached = set(np.unique(codes[statement.key[statement.line == number]]).tolist())
        names = {values[code] for code in reached if code >= 0}
        codes, values = records.codes(keys, column)
        bearers &= np.array([value in names for value in values] + [-1 in reached])[codes]
    return bearers


def _weights(daily: UsageRows, line: Line, bearers: Mask, count: int) -> Ints:
    """What each day weighs for a line: zeros where nothing bears it."""
    if not line.columns:
        return np.zeros(count, np.int64)
    rows = bearers[daily.key] & (daily.day >= line.first_day) & (daily.day < line.end_day)
    return money.add_by(daily.day[rows], daily.of(line.columns)[rows], count)
