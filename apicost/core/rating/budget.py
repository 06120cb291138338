"""What a month cost beside what it was to cost."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa

from apicost.core.rating import money, tags
from apicost.core.rating.bill import minor_of
from apicost.core.rating.match import matches
from apicost.core.rating.pricebook import Budget, Match, PriceBook
from apicost.core.rating.statement import USAGE, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Variance:
    """One budget of the month.

    label: what it is for, such as "team shop". amount: the budget, billed_minor: what was billed, in minor units of
    the book's currency; exact: the same before rounding. usage_minor: of it for the month's usage, without shared
    costs, commitments and corrections.
    """

    label: str
    match: Match
    amount: Decimal
    billed_minor: int
    exact: Fraction
    scale: int
    place: str
    usage_minor: int = 0

    @property
    def left(self) -> Decimal:
        """Budget less billed cost, exactly; negative where it is exceeded."""
        return money.exact_decimal(Fraction(self.amount) - Fraction(self.billed_minor, 10**self.scale))

    @property
    def used(self) -> Fraction | None:
        """Billed cost as part of the budget; None of a budget of nothing."""
        if not self.amount:
            return None
        return Fraction(self.billed_minor, 10**self.scale) * Fraction(*reversed(money.ratio(self.amount)))


def variance(
    statement: Statement, book: PriceBook, tagged: pa.Table | None = None, corrections: pa.Table | None = None
) -> tuple[Variance, ...]:
    """The budgets of the statement's month, in the book's order.

    tagged: owner, team and cost centre of each of the statement's keys, as `tags.of_keys` gives them; None is by the
        book's rules alone. Budgets may overlap: each is held against all the charges that it matches.
    corrections: what the month bills beside the statement: columns as in CHARGE, tags of today.
    """
    tagged = tags.of_keys(statement.keys, book.tags) if tagged is None else tagged
    keys = statement.keys
    for name in tagged.column_names:
        keys = keys.append_column(name, tagged.column(name))
    due = [budget for budget in book.budgets if budget.month == statement.period.name]
    return tuple(_of(statement, budget, keys, corrections) for budget in due)


def _of(statement: Statement, budget: Budget, keys: pa.Table, corrections: pa.Table | None) -> Variance:
    picked = matches(budget.match, keys)[statement.key]
    sums = money.add_by(statement.line[picked], statement.quantity[picked], len(statement.lines)).tolist()
    exact = [line.cost_of(n) for line, n in zip(statement.lines, sums, strict=True) if line.price is not None]
    billed_minor = int(statement.billed_minor[picked].sum())
    of_usage = np.array([line.category == USAGE for line in statement.lines], np.bool_)[statement.line]
    usage_minor = int(statement.billed_minor[picked & of_usage].sum())
    if corrections is not None:
        mine = corrections.filter(pa.array(matches(budget.match, corrections)))
        billed_minor += sum(minor_of(mine, statement.book.statement_scale))
        exact += [Fraction(text) for text in mine.column("contracted_cost").to_pylist() if text is not None]
    return Variance(
        label=", ".join(f"{column.replace('_', ' ')} {' or '.join(v)}" for column, v in budget.match.items()),
        match=budget.match, amount=budget.amount, billed_minor=billed_minor,
        exact=sum(exact, Fraction()), scale=statement.book.statement_scale, place=budget.place,
        usage_minor=usage_minor,
    )  # fmt: skip
