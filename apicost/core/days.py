"""A statement, or a part of it, by calendar day.

Rules of this file:
- A line's cost falls on the days of its stretch as the quantity that it priced did, or for a shared cost
  its weight: within a month the first calls of a day are not dearer than the last ones.
- Days, and what belongs to no day, sum to the part's billed total by largest remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from apicost.core import money
from apicost.core.rate import WIRE_BYTES
from apicost.core.statement import Line, Statement

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


def by_day(statement: Statement, keys: Mask | None = None) -> tuple[tuple[DayFigure, ...], int]:
    """The days of the period, and what belongs to none, in minor units.

    keys: which keys of the statement to look at, the last one (what no usage bears) included; None is all.
        A part must be whole APIs: their billed costs are their exact costs rounded, as the total is.
    """
    usage, period = statement.usage, statement.period
    chosen = np.ones(len(statement.keys), np.bool_) if keys is None else keys
    picked = chosen[statement.key]
    count = len(period.days)
    quantity = money.add_by(statement.line[picked], statement.quantity[picked], len(statement.lines))
    exact = [Fraction()] * (count + 1)  # the last is for what belongs to no day
    minor = 10**statement.book.statement_scale
    for line, of_line, bearers in zip(statement.lines, quantity.tolist(), statement.bearers, strict=True):
        if line.price is None or not of_line:
            continue
        cost = line.cost_of(of_line) * minor
        weights = _weights(statement, line, bearers, chosen)
        whole = money.exact_sum(weights)
        if not whole:
            exact[count] += cost
            continue
        for day in np.flatnonzero(weights).tolist():
            exact[day] += cost * Fraction(int(weights[day]), whole)
    billed = money.round_by_remainder(exact, int(statement.billed_minor[picked].sum()))
    mine = chosen[usage.key]
    calls = money.add_by(usage.day[mine], usage.of(("calls",))[mine], count)
    wire = money.add_by(usage.day[mine], usage.of(WIRE_BYTES)[mine], count)
    figures = tuple(
        DayFigure(
            day=day, start_unix_s=period.starts[i], end_unix_s=period.starts[i + 1], calls=int(calls[i]),
            wire_bytes=int(wire[i]), billed_minor=billed[i],
        )
        for i, day in enumerate(period.days)
    )  # fmt: skip
    return figures, billed[count]


def _weights(statement: Statement, line: Line, bearers: Mask | None, chosen: Mask) -> Ints:
    """What each day weighs for a line: zeros where nothing bears it."""
    usage, count = statement.usage, len(statement.period.days)
    if bearers is None:
        return np.zeros(count, np.int64)
    rows = (bearers & chosen[:-1])[usage.key] & (usage.day >= line.first_day) & (usage.day < line.end_day)
    return money.add_by(usage.day[rows], usage.of(line.columns)[rows], count)
