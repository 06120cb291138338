"""Two statements of the same usage beside each other: what a change of the price book costs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from apicost.core.rating.statement import Line, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class CostChange:
    """What a SKU, a shared cost or all commitments come to, exactly; None where a statement has no price of it."""

    sku: str
    old: Fraction | None
    new: Fraction | None

    @property
    def change(self) -> Fraction:
        return (self.new or Fraction()) - (self.old or Fraction())


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpricedChange:
    """Quantity of a measure that has no price, in base units (`unit`): what a total is silent about."""

    meter: str
    unit: str
    old: Fraction
    new: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """costs: by SKU, in name order; they sum to the statements' exact totals. unpriced: where the two differ."""

    costs: tuple[CostChange, ...]
    unpriced: tuple[UnpricedChange, ...]


def compare(old: Statement, new: Statement) -> Comparison:
    """The costs of two statements by SKU. Raises ValueError where they are in two currencies or of two months."""
    for statement in (old, new):
        if (statement.book.currency, statement.period.name) != (old.book.currency, old.period.name):
            raise ValueError(f"{old.book.currency} {old.period.name} beside {new.book.currency} {new.period.name}")
    before, after = _costs(old), _costs(new)
    unpriced_before, unpriced_after = _unpriced(old), _unpriced(new)
    names = sorted({*unpriced_before, *unpriced_after})
    return Comparison(
        costs=tuple(CostChange(sku=s, old=before.get(s), new=after.get(s)) for s in sorted({*before, *after})),
        unpriced=tuple(
            UnpricedChange(meter=name[0], unit=name[1], old=first, new=second)
            for name in names
            if (first := unpriced_before.get(name, Fraction())) != (second := unpriced_after.get(name, Fraction()))
        ),
    )


def _costs(statement: Statement) -> dict[str, Fraction]:
    costs: dict[str, Fraction] = {}
    for line in statement.lines:
        if line.price is not None and line.sku is not None:
            costs[line.sku] = costs.get(line.sku, Fraction()) + line.cost_of(line.quantity)
    return costs


def _unpriced(statement: Statement) -> dict[tuple[str, str], Fraction]:
    """By measure and unit, whatever the SKU: the same usage has the same measures under both books."""
    sums: dict[tuple[str, str], Fraction] = {}
    for line in statement.lines:
        if line.price is None:
            name = (line.meter, _base_unit(line))
            sums[name] = sums.get(name, Fraction()) + line.quantity
    return sums


def _base_unit(line: Line) -> str:
    """The unit of a quantity: SKUs of two books may sell one measure in two pricing units."""
    return "Requests" if line.unit.endswith("Requests") else "Tokens" if line.unit.endswith("Tokens") else "B"
