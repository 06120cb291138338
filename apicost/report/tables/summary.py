"""What a workbook's first sheet says: the total, where it lies, and how to read the rest.

Rules of this file:
- Sums by SKU and the total come from the bill's integers, sums by API from the rows that were written; that both are
  the same is held here, before the file appears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np

from apicost.core.rating import money
from apicost.core.rating.bill import Bill, minor_of
from apicost.core.rating.period import Period
from apicost.report import export
from apicost.report.tables.xlsx import About, Part
from apicost.report.tables.xlsx_summary import Block, Cell, Number

NO_API = "(no API)"
_NO_SKU = "(no SKU)"
_Sum = Callable[[Part, str], Number]
_SHEETS = "One sheet per API; (no API) holds what belongs to none. More than 1,048,576 rows go on a second sheet."
_CORRECTIONS = "Corrections of closed months are among the rows of their API, after the month's own."
_TIMES = "Times are UTC, ends exclusive."
_DIGITS = (
    "A spreadsheet keeps 15 digits of a number. Where an exact quantity or cost has more, the cell is the nearest "
    "number, and all digits are in the last column."
)
_COSTS = (
    "list_cost and contracted_cost are exact: quantity x price x exchange rate. billed_cost is rounded, so that all "
    "rows sum to the total to the last cent.",
    "An empty cell is absent, not 0: what has no price has no cost; state and reason say why.",
    _CORRECTIONS, _SHEETS, _TIMES, _DIGITS,
)  # fmt: skip
_FOCUS = (
    "ListCost and ContractedCost are exact. EffectiveCost and BilledCost are rounded, so that all rows sum to the "
    "total to the last cent.",
    "Charges without a price have no row: FOCUS knows no cost that can't be told.",
    _CORRECTIONS, _SHEETS, _TIMES, _DIGITS,
)  # fmt: skip
_USAGE = ("An empty cell is absent. Columns are those of the CSV export.", _SHEETS, _TIMES)


@dataclass(slots=True)
class _Sku:
    """Sums of one SKU and unit."""

    quantity: Fraction = Fraction(0)
    listed: Fraction = Fraction(0)
    billed: int = 0
    corrected: int = 0
    priced: bool = False
    rows: int = 0
    reasons: set[str] = field(default_factory=set)


def of_bill(bill: Bill, api: str | None = None) -> About:
    """The summary of charges."""
    return _of_costs(bill, api, f"API costs {bill.statement.period.name}",
                     {"list_cost": "List cost", "contracted_cost": "Contracted cost", "billed_cost": "Billed cost"},
                     "billed_cost", _COSTS, ())  # fmt: skip


def of_focus(bill: Bill, version: str, api: str | None = None) -> About:
    """The summary of FOCUS rows."""
    return _of_costs(
        bill, api, f"Cost and usage {bill.statement.period.name}, FOCUS {version}",
        {"ListCost": "ListCost", "ContractedCost": "ContractedCost", "EffectiveCost": "EffectiveCost",
         "BilledCost": "BilledCost"},
        "BilledCost", _FOCUS, (("FOCUS version", version),), exact="x_ExactDigits",
    )  # fmt: skip


def of_usage(period: Period, api: str | None = None) -> About:
    """The summary of usage."""
    titles = {
        "calls": "Calls", "downstream_in_wire_bytes": "Wire bytes from clients",
        "downstream_out_wire_bytes": "Wire bytes to clients", "upstream_in_wire_bytes": "Wire bytes from backends",
        "upstream_out_wire_bytes": "Wire bytes to backends",
    }  # fmt: skip

    def blocks(parts: list[Part], sum_of: _Sum) -> Sequence[Block]:
        facts: list[tuple[Cell, ...]] = [("API", api)] if api is not None else []
        rows = sum(part.rows for part in parts)
        facts += [*_month(period), ("Rows", Number(value=Decimal(rows)))]
        return (Block(title="Usage", rows=facts), _by_api(parts, sum_of, titles), _notes(_USAGE))

    return About(title=f"API usage {period.name}", dated=_end(period), blocks=blocks, none=NO_API)


def _of_costs(
    bill: Bill, api: str | None, title: str, titles: Mapping[str, str], billed: str, notes: Sequence[str],
    more: Sequence[tuple[Cell, ...]], exact: str = "exact_digits",
) -> About:  # fmt: skip
    statement = bill.statement
    book, scale = statement.book, statement.book.statement_scale
    skus = _by_sku(bill, api)
    corrected = sum(sku.corrected for sku in skus.values())
    total = Decimal(money.fixed(sum(sku.billed for sku in skus.values()) + corrected, scale))
    unpriced = sum(sku.rows for sku in skus.values() if not sku.priced)

    def blocks(parts: list[Part], sum_of: _Sum) -> Sequence[Block]:
        written = sum((part.sums.get(billed, Decimal(0)) for part in parts), Decimal(0))
        if written != total:
            raise AssertionError(f"{title}: rows that sum to {written}, but a bill of {total}")
        facts: list[tuple[Cell, ...]] = [
            ("Total", Number(value=total, places=scale), book.currency),
            ("of it corrections", _amount(corrected, scale), f"{_corrections(bill, api):,} rows"),
            *([("API", api)] if api is not None else []),
            *_month(statement.period),
            ("Price book", f"{book.id} {book.version}"),
            ("Month is", "closed: these figures never change" if bill.closed else "open: these figures may change"),
            ("Rows", Number(value=Decimal(sum(part.rows for part in parts)))),
            ("Charges without a price", Number(value=Decimal(unpriced))),
            *more,
        ]
        made = [Block(title="Bill", rows=facts), _by_api(parts, sum_of, titles), _sku_block(skus, scale)]
        if unpriced:
            made.append(_unpriced_block(skus))
        return (*made, _notes(notes))

    return About(title=title, dated=_end(statement.period), blocks=blocks, none=NO_API, exact=exact)


def _month(period: Period) -> list[tuple[Cell, ...]]:
    return [
        ("Month", f"{period.name} ({period.time_zone})"),
        ("From (UTC)", _time(period.start_unix_s)),
        ("Until (UTC), exclusive", _time(period.end_unix_s)),
    ]


def _by_api(parts: list[Part], sum_of: _Sum, titles: Mapping[str, str]) -> Block:
    rows: list[tuple[Cell, ...]] = []
    for part in parts:
        sheet = ", ".join(name for name, _ in part.ranges)
        rows.append((part.label, sheet, Number(value=Decimal(part.rows)), *(sum_of(part, name) for name in titles)))
    cells = [[row[position] for row in rows] for position in range(2, 3 + len(titles))]
    rows.append(("Total", None, *(_total(column) for column in cells)))
    return Block(title="By API", head=("API", "Sheet", "Rows", *titles.values()), rows=rows, total=True)


def _total(cells: Sequence[Cell]) -> Number:
    numbers = [cell for cell in cells if isinstance(cell, Number)]
    return Number(
        value=sum((number.value for number in numbers), Decimal(0)),
        places=max((number.places for number in numbers), default=0),
    )


def _by_sku(bill: Bill, api: str | None) -> dict[tuple[str | None, str], _Sku]:
    """Sums by SKU and unit, of the whole bill or of an API."""
    statement = bill.statement
    mine = np.ones(len(statement), np.bool_)
    corrections = bill.corrections
    if api is not None:
        mine = export.keys_of(statement.keys, api)[statement.key]
        corrections = corrections.filter(export.keys_of(corrections, api))
    line = statement.line[mine]
    count = len(statement.lines)
    quantity = money.add_by(line, statement.quantity[mine], count).tolist()
    billed = money.add_by(line, statement.billed_minor[mine], count).tolist()
    rows = money.add_by(line, np.ones(len(line), np.int64), count).tolist()
    skus: dict[tuple[str | None, str], _Sku] = {}
    for number, of_line in enumerate(statement.lines):
        if rows[number]:
            sku = skus.setdefault((of_line.sku, of_line.unit), _Sku())
            sku.rows += rows[number]
            sku.quantity += Fraction(quantity[number], of_line.unit_base)
            sku.billed += billed[number]
            if of_line.price is not None:
                sku.priced = True
                sku.listed += of_line.list_cost_of(quantity[number])
            elif of_line.reason:
                sku.reasons.add(of_line.reason)
    names = ("sku", "unit", "quantity", "list_cost", "billed_cost")
    minors = minor_of(corrections, statement.book.statement_scale)
    for row, minor in zip(corrections.select(names).to_pylist(), minors, strict=True):
        sku = skus.setdefault((row["sku"], row["unit"]), _Sku())
        sku.rows += 1
        sku.quantity += Fraction(row["quantity"])
        if row["billed_cost"] is not None:
            sku.priced = True
            sku.listed += Fraction(row["list_cost"])
            sku.corrected += minor
    return dict(sorted(skus.items(), key=lambda item: (item[0][0] is None, item[0][0] or "", item[0][1])))


def _sku_block(skus: Mapping[tuple[str | None, str], _Sku], scale: int) -> Block:
    priced = [(name, unit, sku) for (name, unit), sku in skus.items() if sku.priced]
    rows: list[tuple[Cell, ...]] = [
        (name or _NO_SKU, unit, Number(value=Decimal(sku.rows)), _exact(sku.quantity), _exact(sku.listed),
         _amount(sku.billed, scale), _amount(sku.corrected, scale), _amount(sku.billed + sku.corrected, scale))
        for name, unit, sku in priced
    ]  # fmt: skip
    columns = [[row[position] for row in rows] for position in (2, 4, 5, 6, 7)]
    count, listed, billed, corrected, total = map(_total, columns)
    rows.append(("Total", None, count, None, listed, billed, corrected, total))
    head = ("SKU", "Unit", "Rows", "Quantity", "List cost", "Billed by usage", "Corrections", "Billed cost")
    return Block(title="By SKU", head=head, rows=rows, total=True)


def _unpriced_block(skus: Mapping[tuple[str | None, str], _Sku]) -> Block:
    rows: list[tuple[Cell, ...]] = [
        (name or _NO_SKU, unit, Number(value=Decimal(sku.rows)), _exact(sku.quantity), "; ".join(sorted(sku.reasons)))
        for (name, unit), sku in skus.items()
        if not sku.priced
    ]
    return Block(
        title="Without a price: not in the total", head=("SKU", "Unit", "Rows", "Quantity", "Reason"), rows=rows
    )


def _notes(notes: Sequence[str]) -> Block:
    return Block(title="How to read this", rows=[(note,) for note in notes])


def _exact(value: Fraction) -> Number:
    exact = money.exact_decimal(value)
    exponent = exact.normalize().as_tuple().exponent
    assert isinstance(exponent, int), value
    return Number(value=exact, places=min(max(-exponent, 0), 6))


def _amount(minor: int, scale: int) -> Number:
    return Number(value=Decimal(money.fixed(minor, scale)), places=scale)


def _corrections(bill: Bill, api: str | None) -> int:
    return len(bill.corrections) if api is None else int(export.keys_of(bill.corrections, api).sum())


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC).replace(tzinfo=None)


def _end(period: Period) -> datetime:
    """The date that a document about a month bears: the month's end."""
    return _time(period.end_unix_s)
