"""A month's charges in the cells that two months are compared by.

Rules of this file:
- A cell is one SKU's charges to one operation, by those whose price may differ: the ones that a contract of either
  month's book is about, and each model of a SKU of tokens. Within a cell all pay one average price a month.
- What is fixed (shares of shared costs, shortfalls of commitments) has a cost and no quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.match import matches
from apicost.core.rating.pricebook import Match, Price, PriceBook
from apicost.core.rating.statement import USAGE, Line, Statement
from apicost.report.month.labels import BY_API, BY_OPERATION, Label
from apicost.report.month.part import Ints, Part, distinct

FIXED = "fixed"


class CellKey(NamedTuple):
    """Whose charges these are.

    who: the first of the contracts' conditions that fits, "" none. measure: which tokens, of a SKU that is priced by a
    list of models: those of prompts and of completions differ in price.
    """

    api: Label
    operation: Label
    sku: str
    who: str
    model: str
    measure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one cell came to, exactly.

    meter: what its quantity counts: calls, bytes or tokens; FIXED has none. quantity: in base units.
    cost: contracted, list_cost: without contracts, both in the book's currency; pricing_cost: the list cost before the
    exchange rate.
    """

    meter: str
    quantity: Fraction = Fraction()
    cost: Fraction = Fraction()
    list_cost: Fraction = Fraction()
    pricing_cost: Fraction = Fraction()

    def __add__(self, other: Cell) -> Cell:
        return replace(
            self, quantity=self.quantity + other.quantity, cost=self.cost + other.cost,
            list_cost=self.list_cost + other.list_cost, pricing_cost=self.pricing_cost + other.pricing_cost,
        )  # fmt: skip


Cells = Mapping[CellKey, Cell]
Conditions = tuple[tuple[str, Match], ...]  # what contracts ask of a row, in words and as a match


def conditions(books: Iterable[PriceBook]) -> Conditions:
    """What the contracts of some books ask of a row; each once, in order of the words."""
    found = {_words(contract.match): contract.match for book in books for contract in book.contracts}
    return tuple(sorted(found.items()))


def cells_of(part: Part, asked: Conditions) -> dict[CellKey, Cell]:
    """The cells of a part's priced charges. asked: as `conditions` gives it for the books of both months."""
    statement = part.statement
    keys, group = _groups(part, asked)
    found: dict[CellKey, Cell] = {}
    for line, charges in zip(statement.lines, part.of_line, strict=True):
        if line.price is None or line.sku is None or not len(charges):
            continue
        of_line = money.add_by(group[statement.key[charges]], statement.quantity[charges], len(keys))
        blank, base, measure = _blank(line, statement)
        listed, pricing = Fraction(*line.list_ratio()), Fraction(line.price) / line.unit_base
        cost = Fraction(*line.cost_ratio())
        for number in np.flatnonzero(of_line).tolist():
            quantity = int(of_line[number])
            cell = replace(
                blank, quantity=quantity * base, cost=quantity * cost, list_cost=quantity * listed,
                pricing_cost=quantity * pricing,
            )  # fmt: skip
            key = keys[number]._replace(sku=line.sku, measure=measure)
            found[key] = found[key] + cell if key in found else cell
    return found


def _groups(part: Part, asked: Conditions) -> tuple[list[CellKey], Ints]:
    """The kinds of keys, their SKU still open, and each key's kind."""
    keys = part.statement.keys
    apis, of_api = part.groups(BY_API)
    operations, of_operation = part.groups(BY_OPERATION)
    models = records.codes(keys, "llm_model")
    who = np.full(len(keys), -1, np.int32)
    for number in reversed(range(len(asked))):
        who[matches(asked[number][1], keys)] = number
    first, kind = distinct(
        [(of_api - 1, [""] * len(apis)), (of_operation - 1, [""] * len(operations)), (who, [""] * len(asked)), models],
        len(keys),
    )
    return [
        CellKey(
            api=apis[of_api[row]], operation=operations[of_operation[row]], sku="",
            who=asked[who[row]][0] if who[row] >= 0 else "",
            model=models[1][models[0][row]] if models[0][row] >= 0 else "",
        )
        for row in first.tolist()
    ], kind  # fmt: skip


def _blank(line: Line, statement: Statement) -> tuple[Cell, Fraction, str]:
    """An empty cell of a line, the base units in one of its quantity's units, and its measure as in CellKey."""
    sku = next((sku for sku in statement.book.skus if sku.id == line.sku), None)
    if line.category != USAGE or sku is None:
        return Cell(meter=FIXED), Fraction(), ""
    price: Price | None = sku.price_on(statement.period.days[line.first_day])
    if price is not None and price.mode == "package" and line.tier == "package":
        return Cell(meter=sku.meter), Fraction(price.size, line.unit_base), ""  # packages, in what they hold
    return Cell(meter=sku.meter), Fraction(1), line.meter if sku.is_external else ""


def _words(match: Match) -> str:
    return ", ".join(f"{column} {' or '.join(values)}" for column, values in sorted(match.items()))
