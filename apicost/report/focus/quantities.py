"""What FOCUS wants to know beside a charge's own columns: consumption, costs in the pricing currency, ratios of shares.

Rules of this file:
- What was consumed comes from usage: packages are what is paid for, not what was used.
- The ratios of one shared cost sum to 1, in parts of 10**-15: JSON's readers keep that many digits of a number.
- A correction is a difference: of a package's count nothing is known of its consumption, which stays null.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.bill import Bill
from apicost.core.rating.pricebook import COMMITMENT, UNITS
from apicost.core.rating.statement import PURCHASE, USAGE, Line

Ints = npt.NDArray[np.int64]

_PARTS_SCALE = 15
PACKAGE = "package"
_BASE_UNITS = {"calls": "Requests", "tokens": "Tokens"}  # bytes are consumed in the unit they are sold in


class Quantities:
    """Of one bill."""

    def __init__(self, bill: Bill, *, with_splits: bool) -> None:
        self.statement = bill.statement
        self.lines = bill.statement.lines
        self.sku_units = {sku.id: sku.unit for sku in bill.statement.book.skus}
        self.of_line = [self._unit(line) for line in self.lines]
        self.used = self._used_by_packages()
        self.ratios = self._ratios() if with_splits else {}
        self.weights: dict[int, Ints] = {}

    def consumed(self, charges: pa.Table, position: Ints) -> tuple[Any, Any]:
        """How much was used, and in which unit: null for what is no usage.

        charges: columns as in CHARGE, position: their places in the bill.
        """
        mine = position[position < len(self.statement)]
        line, quantity = self.statement.line[mine], self.statement.quantity[mine]
        texts: list[Any] = []
        for number, rows in _by_line(line):
            unit = self.of_line[number]
            if unit is None:
                texts.append(pa.nulls(len(rows), pa.string()))
            elif number in self.used:
                places, used = self.used[number]
                texts.append(money.product_texts(used[np.searchsorted(places, mine[rows])], 1, unit[1]))
            else:
                texts.append(money.product_texts(quantity[rows], 1, unit[1]))
        own = _in_order(texts, line)
        late = [_consumed(row) for row in charges.slice(len(mine)).select(_LATE).to_pylist()]
        units = sorted({unit[0] for unit in self.of_line if unit} | {unit for _, unit in late if unit})
        of_line = np.array([units.index(unit[0]) if unit else -1 for unit in self.of_line], np.int32)
        code = np.concatenate([of_line[line], np.array([units.index(u) if u else -1 for _, u in late], np.int32)])
        return pa.concat_arrays([own, pa.array([text for text, _ in late], pa.string())]), records.text(code, units)

    def in_pricing_currency(self, charges: pa.Table, position: Ints) -> Any:
        """What is paid in the pricing currency, exactly: quantity x contracted unit price."""
        mine = position[position < len(self.statement)]
        line, quantity = self.statement.line[mine], self.statement.quantity[mine]
        texts: list[Any] = []
        for number, rows in _by_line(line):
            price = Fraction(self.lines[number].contracted_price or 0) / self.lines[number].unit_base
            texts.append(money.product_texts(quantity[rows], price.numerator, price.denominator))
        own = _in_order(texts, line)
        late = [
            money.plain(money.exact_decimal(Fraction(row["quantity"]) * Fraction(row["contracted_unit_price"])))
            for row in charges.slice(len(mine)).select(["quantity", "contracted_unit_price"]).to_pylist()
        ]
        return pa.concat_arrays([own, pa.array(late, pa.string())])

    def split_details(self, position: Ints) -> Any:
        """Of shares of shared costs, how they came to be, as FOCUS's AllocatedMethodDetails; null for all else."""
        details: Any = pa.nulls(len(position), pa.string())
        line = np.full(len(position), -1, np.int64)
        mine = position < len(self.statement)
        line[mine] = self.statement.line[position[mine]]
        for number, (places, ratio) in self.ratios.items():
            rows = np.flatnonzero(line == number)
            if not len(rows):
                continue
            at = np.searchsorted(places, position[rows])
            texts: Any = money.decimal_texts(*_divmod(ratio[at], 10**_PARTS_SCALE), _PARTS_SCALE)
            parts = ['{"Elements":[{"AllocatedRatio":', texts]
            weight = self._weight(number)
            if weight is not None:
                unit, base = ("Requests", 1) if self.lines[number].meter == "calls" else ("GB", 10**9)
                used = money.product_texts(weight[self.statement.key[position[rows]]], 1, base)
                parts += [f',"UsageUnit":"{unit}","UsageQuantity":', used]
            made = pc.binary_join_element_wise(*parts, "}]}", "")
            keep = np.zeros(len(position), np.bool_)
            keep[rows] = True
            details = pc.replace_with_mask(details, pa.array(keep), made)
        return details

    def _unit(self, line: Line) -> tuple[str, int] | None:
        """In which unit a line's usage is told, and how many base units are in one; None for what is no usage."""
        if line.category != USAGE or line.price is None:
            return None
        sold = self.sku_units.get(line.sku or "", line.unit)
        if sold not in UNITS:
            return sold, line.unit_base
        meter, base = UNITS[sold]
        return (_BASE_UNITS[meter], 1) if meter in _BASE_UNITS else (sold, base)

    def _used_by_packages(self) -> dict[int, tuple[Ints, Ints]]:
        """Line of a package price -> its charges' places, and what each has used beyond the free allowance."""
        statement, found = self.statement, {}
        for number, line in enumerate(self.lines):
            if line.tier != PACKAGE or line.category != USAGE:
                continue
            usage, places = statement.usage, np.flatnonzero(statement.line == number)
            rows = (usage.day >= line.first_day) & (usage.day < line.end_day)
            by_key = money.add_by(usage.key[rows], usage.of(line.columns)[rows], len(usage.keys))
            for other, free in enumerate(self.lines):
                if (free.sku, free.first_day, free.tier) == (line.sku, line.first_day, "free"):
                    taken = np.flatnonzero(statement.line == other)
                    by_key[statement.key[taken]] -= statement.quantity[taken]
            found[number] = places, by_key[statement.key[places]]
        return found

    def _ratios(self) -> dict[int, tuple[Ints, Ints]]:
        """Line of a shared cost -> its charges' places, and their parts of the cost in 10**-15."""
        statement, found = self.statement, {}
        shared = [n for n, line in enumerate(self.lines) if line.category == PURCHASE and line.sku != COMMITMENT]
        for sku in sorted({self.lines[number].sku or "" for number in shared}):
            lines = [number for number in shared if self.lines[number].sku == sku]
            places = np.flatnonzero(np.isin(statement.line, lines))
            ratio = money.share(10**_PARTS_SCALE, statement.quantity[places])
            for number in lines:
                own = statement.line[places] == number
                found[number] = places[own], ratio[own]
        return found

    def _weight(self, number: int) -> Ints | None:
        """What each key weighs in a share; None where nobody bears it."""
        line = self.lines[number]
        if not line.columns or not line.pool:
            return None
        if number not in self.weights:
            usage = self.statement.usage
            self.weights[number] = money.add_by(usage.key, usage.of(line.columns), len(usage.keys))
        return self.weights[number]


def _by_line(line: npt.NDArray[np.integer]) -> list[tuple[int, Ints]]:
    """The rows of each line, lines in order."""
    order = np.argsort(line, kind="stable")
    numbers, starts = np.unique(line[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)) if len(line) else []


def _in_order(texts: list[Any], line: npt.NDArray[np.integer]) -> Any:
    """Texts of rows that `_by_line` gave, back in the rows' own order."""
    order = np.argsort(line, kind="stable")
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    whole: Any = pa.concat_arrays([pa.array([], pa.string()), *texts])
    return whole.take(pa.array(back))


_LATE = ["charge_category", "tier", "unit", "quantity"]


def _consumed(row: dict[str, str]) -> tuple[str | None, str | None]:
    """What a correction says was consumed, and its unit."""
    if row["charge_category"] != USAGE or row["tier"] == PACKAGE:
        return None, None
    meter, base = UNITS.get(row["unit"], ("", 1))
    if meter not in _BASE_UNITS:
        return row["quantity"], row["unit"]
    return money.plain(Decimal(row["quantity"]) * base), _BASE_UNITS[meter]


def _divmod(values: Ints, divisor: int) -> tuple[Ints, Ints]:
    return values // np.int64(divisor), values % np.int64(divisor)
