"""The bridge from metered to billed as text, JSON and CSV, all from the same figures.

Rules of this file:
- Amounts are rounded to the statement's places so that the rows sum to the difference shown; the exact ones stand
  beside them in JSON and CSV, as a decimal or, where there is none, as a fraction.
- Names come from bills and traffic: no terminal and no spreadsheet takes them for anything but text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from apicost.core.rating import money
from apicost.core.reconcile.bridge import CAUSES, NO_RULE, Bridge, Quantity, Row
from apicost.report import csvfile, terminal

CSV_COLUMNS = (
    "month", "cause", "sku", "amount", "exact_amount", "currency", "quantity", "unit", "bill_lines", "note",
)  # fmt: skip
MOST_UNMAPPED = 20  # rows by name in the text
METERED, BILLED, DIFFERENCE = "metered", "billed", "difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A bridge with what is asked of it. what: "difference" or "unexplained", held against the tolerance."""

    bridge: Bridge
    what: str
    tolerance: Fraction
    price_book: str
    bill_files: tuple[str, ...]
    bill_currency: str
    bill_lines: int

    @property
    def amount(self) -> Fraction:
        return self.bridge.difference if self.what == DIFFERENCE else self.bridge.unexplained

    @property
    def within(self) -> bool:
        return abs(self.amount) <= self.tolerance


@dataclass(frozen=True, slots=True)
class Figures:
    """Amounts in minor units; `rows` in the order of the bridge's, so that metered + rows = billed."""

    metered: int
    billed: int
    rows: tuple[int, ...]


def figures(bridge: Bridge) -> Figures:
    """A bridge's amounts, rounded."""
    minor = 10**bridge.scale
    metered = money.half_even(bridge.metered * minor)
    billed = money.half_even(bridge.billed * minor)
    exact = [row.amount * minor for row in bridge.rows]
    rows = money.round_by_remainder(exact, billed - metered) if exact else []
    return Figures(metered, billed, tuple(rows))


def text(judged: Judged) -> str:
    """The bridge for people."""
    bridge, shown = judged.bridge, figures(judged.bridge)
    units = {quantity.sku: quantity for quantity in bridge.quantities}
    head = (
        f"{bridge.month} with price book {judged.price_book}, in {bridge.currency}",
        f"bill: {', '.join(judged.bill_files)}: {judged.bill_lines:,} lines in {judged.bill_currency}",
    )
    lines = [*map(terminal.plain, head), ""]
    rows = [(METERED, "", _places(shown.metered, bridge.scale), "", "")]
    rows += [
        (row.cause, row.sku or "", _places(minor, bridge.scale, sign=True), _quantity_text(row, units), _note(row))
        for row, minor in _largest_unmapped(bridge, shown)
        if minor or row.quantity or row.count  # less than half a cent of rounding says nothing to people
    ]
    rows.append((BILLED, "", _places(shown.billed, bridge.scale), "", ""))
    change = _places(shown.billed - shown.metered, bridge.scale, sign=True)
    rows.append((DIFFERENCE, "", change, "", ""))
    lines += [terminal.table(("", "SKU", bridge.currency, "quantity", ""), rows, right=(2, 3), width=48), ""]
    if bridge.quantities:
        quantities = [
            (q.sku, _units(Fraction(q.metered), q), _units(q.billed - q.metered, q, sign=True), _units(q.billed, q),
             q.unit) for q in bridge.quantities
        ]  # fmt: skip
        lines += [terminal.table(("SKU", METERED, DIFFERENCE, BILLED, "unit"), quantities, right=(1, 2, 3)), ""]
    if bridge.apart:
        minor = 10**bridge.scale
        apart = [
            (entry.side, entry.what, _places(money.half_even(entry.amount * minor), bridge.scale),
             f"{entry.count:,}" if entry.count else "") for entry in bridge.apart
        ]  # fmt: skip
        lines += [terminal.table(("not compared", "", bridge.currency, "lines"), apart, right=(2, 3), width=48), ""]
    lines += map(terminal.plain, (_info(judged), *bridge.remarks, _verdict(judged)))
    return "\n".join(lines) + "\n"


def _largest_unmapped(bridge: Bridge, shown: Figures) -> list[tuple[Row, int]]:
    """The rows and their amounts; of unmapped lines the largest by name, the others as one row."""
    rows = list(zip(bridge.rows, shown.rows, strict=True))
    unmapped = [pair for pair in rows if pair[0].cause == NO_RULE]
    rest = sorted(unmapped, key=lambda pair: (-abs(pair[0].amount), pair[0].note))[MOST_UNMAPPED:]
    if not rest:
        return rows
    names = {row.note for row, _ in rest}
    found = [pair for pair in rows if pair[0].cause != NO_RULE or pair[0].note not in names]
    amount, count = sum((row.amount for row, _ in rest), Fraction()), sum(row.count for row, _ in rest)
    more = Row(cause=NO_RULE, sku=None, amount=amount, note=f"{len(rest):,} more; --json names them", count=count)
    last = max(place for place, (row, _) in enumerate(rows) if row.cause == NO_RULE) - len(rest)
    found.insert(last + 1, (more, sum(minor for _, minor in rest)))
    return found


def as_json(judged: Judged) -> str:
    """The bridge for programs: amounts and quantities as text."""
    bridge, shown = judged.bridge, figures(judged.bridge)
    units = {quantity.sku: quantity for quantity in bridge.quantities}

    def fixed(minor: int) -> str:
        return money.fixed(minor, bridge.scale)

    rows = [
        {
            "cause": row.cause, "sku": row.sku, "amount": fixed(minor), "exact_amount": exact(row.amount),
            "quantity": _exact_quantity(row, units), "unit": _unit(row, units), "bill_lines": row.count,
            "note": row.note, "meaning": CAUSES[row.cause],
        }
        for row, minor in zip(bridge.rows, shown.rows, strict=True)
    ]  # fmt: skip
    data = {
        "month": bridge.month, "currency": bridge.currency, "price_book": judged.price_book,
        "bill": {"files": list(judged.bill_files), "currency": judged.bill_currency, "lines": judged.bill_lines},
        "metered": fixed(shown.metered), "billed": fixed(shown.billed),
        "difference": fixed(shown.billed - shown.metered), "exact_difference": exact(bridge.difference),
        "exact_unexplained": exact(bridge.unexplained), "judged": judged.what,
        "tolerance": exact(judged.tolerance), "within_tolerance": judged.within, "rows": rows,
        "quantities": [
            {"sku": q.sku, "unit": q.unit, "metered": exact(Fraction(q.metered, q.unit_base)),
             "billed": exact(q.billed / q.unit_base), "difference": exact((q.billed - q.metered) / q.unit_base)}
            for q in bridge.quantities
        ],
        "not_compared": [
            {"side": x.side, "what": x.what, "exact_amount": exact(x.amount), "lines": x.count} for x in bridge.apart
        ],
        "statement_total": exact(bridge.statement_total), "bill_total": exact(bridge.bill_total),
        "metered_without_request": exact(bridge.without_request), "remarks": list(bridge.remarks),
    }  # fmt: skip
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def as_csv(judged: Judged) -> str:
    """The bridge for spreadsheets: metered, the causes, billed; amounts of the causes sum to the difference."""
    bridge, shown = judged.bridge, figures(judged.bridge)
    units = {quantity.sku: quantity for quantity in bridge.quantities}
    lines = [",".join(CSV_COLUMNS)]

    def add(cause: str, sku: str, minor: int, amount: Fraction, more: Sequence[str]) -> None:
        quantity, unit, count, note = more
        lines.append(
            ",".join((bridge.month, csvfile.safe(cause), csvfile.safe(sku), money.fixed(minor, bridge.scale),
                      exact(amount), bridge.currency, quantity, csvfile.safe(unit), count, csvfile.safe(note)))
        )  # fmt: skip

    add(METERED, "", shown.metered, bridge.metered, ("", "", "", ""))
    for row, minor in zip(bridge.rows, shown.rows, strict=True):
        count = str(row.count) if row.count else ""
        more = (_exact_quantity(row, units) or "", _unit(row, units) or "", count, row.note)
        add(row.cause, row.sku or "", minor, row.amount, more)
    add(BILLED, "", shown.billed, bridge.billed, ("", "", str(judged.bill_lines), ""))
    return "\n".join(lines) + "\n"


def exact(amount: Fraction) -> str:
    """All digits of an amount, or the fraction where they have no end."""
    try:
        return money.plain(money.exact_decimal(amount))
    except ValueError:
        return f"{amount.numerator}/{amount.denominator}"


def _info(judged: Judged) -> str:
    bridge = judged.bridge
    if not bridge.without_request:
        return "Nothing of what is metered is of bytes that no request claims."
    minor = money.half_even(bridge.without_request * 10**bridge.scale)
    return f"Of what is metered, {_places(minor, bridge.scale)} {bridge.currency} is of bytes that no request claims."


def _verdict(judged: Judged) -> str:
    scale, currency = judged.bridge.scale, judged.bridge.currency
    # Shown with more places than the statement has: an excess of less than a cent is one, too.
    amount = _places(money.half_even(judged.amount * 10 ** (scale + 4)), scale + 4, sign=True)
    tolerance = _places(money.half_even(judged.tolerance * 10 ** (scale + 4)), scale + 4)
    how = "within" if judged.within else "above"
    return f"{judged.what.capitalize()} {amount} {currency}: {how} the tolerance of {tolerance} {currency}."


def _note(row: Row) -> str:
    lines = f"{row.count:,} line{'' if row.count == 1 else 's'}" if row.count else ""
    note = row.note if row.note not in ("quantity", "price") else f"{row.note} alone"
    return "; ".join(part for part in (note, lines) if part) or CAUSES[row.cause]


def _unit(row: Row, units: dict[str, Quantity]) -> str | None:
    return units[row.sku].unit if row.quantity is not None and row.sku in units else None


def _exact_quantity(row: Row, units: dict[str, Quantity]) -> str | None:
    if row.quantity is None or row.sku not in units:
        return None
    return exact(row.quantity / units[row.sku].unit_base)


def _quantity_text(row: Row, units: dict[str, Quantity]) -> str:
    if not row.quantity or row.sku not in units:
        return ""
    return f"{_units(row.quantity, units[row.sku], sign=True)} {units[row.sku].unit}"


def _units(quantity: Fraction, of: Quantity, *, sign: bool = False) -> str:
    """A quantity in its unit, to six places and without the zeros at its end."""
    found = _places(money.half_even(quantity / of.unit_base * 10**6), 6, sign=sign)
    return found.rstrip("0").rstrip(".")


def _places(minor: int, scale: int, *, sign: bool = False) -> str:
    whole, _, rest = money.fixed(abs(minor), scale).partition(".")
    before = "-" if minor < 0 else "+" if sign and minor else ""
    return f"{before}{int(whole):,}" + (f".{rest}" if rest else "")
