"""Why a month cost more or less than the one before: volume, price, mix and fixed cost, by API and operation.

Rules of this file, for the cells of an API, or of an operation, in both months (report/month/cells.py):
- Volume: what the change of the quantity of each meter (calls, bytes, tokens) comes to at last month's average
  price of that meter. What costs nothing in either month is no part of it.
- Price: this month's quantity of each cell, at this month's average price less last month's. It is told apart by
  what moved: the exchange rate, contracts, the price book, and the tiers and free units that the quantity reached.
  A SKU that only one of the two books has is a change of the book.
- Fixed: shares of shared costs, and what commitments fall short.
- Mix: all the rest: other operations, SKUs, models, contracts' parties, of another price than the average.
- What had no cost before is new, what has none now is gone: its whole change is that.
- Parts are exact fractions until they are rounded to minor units; what rounding leaves goes to the largest part, so
  that the parts of a row sum to the change of its billed cost, and rows to the change of the total.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from apicost.core.rating import money
from apicost.core.rating.pricebook import Price
from apicost.core.rating.statement import Statement
from apicost.report.month.cells import FIXED, Cell, CellKey, Cells
from apicost.report.month.labels import CORRECTIONS, NOBODY, Label

# The parts of a change, in the order of their columns.
CAUSES = ("volume", "price", "mix", "fixed", "new", "gone", "corrections")
TIERS, BOOK, CONTRACT, RATE = "tiers", "price book", "contracts", "exchange rate"
TOP_MOVERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class BookChange:
    """How the price books of two months differ. one_sided: SKUs that only one of them has; repriced: SKUs of both
    whose prices in force, or free units, are not the same."""

    one_sided: frozenset[str] = frozenset()
    repriced: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A change by cause, in exact units of the currency. of_price: the price part by what moved it."""

    volume: Fraction = Fraction()
    price: Fraction = Fraction()
    mix: Fraction = Fraction()
    fixed: Fraction = Fraction()
    of_price: Mapping[str, Fraction] = field(default_factory=dict)

    @property
    def total(self) -> Fraction:
        return self.volume + self.price + self.mix + self.fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """What changed for one API or operation. Minor units.

    parts: cause -> its part of the change; they sum to it. Every cause of CAUSES.
    price_moved: what moved prices most; "" where prices did not change.
    """

    label: Label
    before_minor: int
    billed_minor: int
    parts: Mapping[str, int]
    price_moved: str = ""
    many: int = 0  # how many rows this one stands for

    @property
    def change_minor(self) -> int:
        return self.billed_minor - self.before_minor

    @property
    def cause(self) -> str:
        """The cause that moved it furthest in the direction of its change; "" where nothing changed."""
        sign = 1 if self.change_minor > 0 else -1
        towards = {cause: sign * amount for cause, amount in self.parts.items()}
        best = max(CAUSES, key=lambda cause: (towards[cause], -CAUSES.index(cause)))
        return best if self.change_minor and towards[best] > 0 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movers:
    """Both months beside each other. Rows of each sum to the change of the total, cause by cause as well.

    by_api, by_operation: what moved most first; the others are one row.
    main: the API and the cause that moved the total furthest in the direction of its change; None without a change.
    """

    by_api: tuple[Mover, ...]
    by_operation: tuple[Mover, ...]
    main: tuple[Mover, str] | None


Prices = Mapping[str, object]  # SKU -> its free units and the prices in force; equal where nothing changed


def prices_in_force(statement: Statement) -> Prices:
    """What each SKU of a statement's book was sold at in its month; what had no price then is left out."""
    found = {}
    for sku in statement.book.skus:
        prices = {price for day in statement.period.days if (price := sku.price_on(day)) is not None}
        if prices:
            found[sku.id] = sku.free, {(p.mode, p.size, p.pool, p.currency, _steps(p)) for p in prices}
    return found


def _steps(price: Price) -> tuple[object, ...]:
    return tuple((tier.up_to, tier.price) for tier in price.tiers)


def book_change(before: Prices, now: Prices) -> BookChange:
    """How the books of two months differ in the prices that were in force."""
    return BookChange(
        one_sided=frozenset(before.keys() ^ now.keys()),
        repriced=frozenset(sku for sku in before.keys() & now.keys() if before[sku] != now[sku]),
    )


def movers(
    before: Cells, now: Cells, before_billed: Mapping[str, Mapping[Label, int]],
    now_billed: Mapping[str, Mapping[Label, int]], books: BookChange, scale: int,
) -> Movers:  # fmt: skip
    """Compare two months.

    before_billed, now_billed: billed cost by label of the tables "api" and "operation", in 10**-scale of the currency.
    """

    def rows(table: str, label_of: Callable[[CellKey], Label]) -> list[Mover]:
        first, second = _by(before, label_of), _by(now, label_of)
        old, new = before_billed[table], now_billed[table]
        found = [
            mover(
                label, first.get(label, {}), second.get(label, {}), old.get(label, 0), new.get(label, 0), books, scale
            )
            for label in {**old, **new}
        ]
        return sorted(found, key=lambda m: (-abs(m.change_minor), -m.billed_minor, m.label))

    apis = rows("api", lambda key: key.api)
    operations = rows("operation", lambda key: key.operation)
    change = sum(row.change_minor for row in apis)
    sign = 1 if change > 0 else -1
    effects = [(sign * row.parts[cause], row, cause) for row in apis for cause in CAUSES]
    best = max(effects, key=lambda effect: effect[0], default=None)
    main = (best[1], best[2]) if best and change and best[0] > 0 else None
    return Movers(by_api=_folded(apis), by_operation=_folded(operations), main=main)


def mover(
    label: Label, before: Cells, now: Cells, before_minor: int, billed_minor: int, books: BookChange, scale: int
) -> Mover:
    """One row: its change in minor units, by cause."""
    change = billed_minor - before_minor
    parts = dict.fromkeys(CAUSES, 0)
    moved = ""
    if label == CORRECTIONS:
        parts["corrections"] = change
    elif label == NOBODY:
        parts["fixed"] = change
    elif not before and not before_minor:
        parts["new"] = change
    elif not now and not billed_minor:
        parts["gone"] = change
    else:
        found = decompose(before, now, books)
        causes = ("volume", "price", "mix", "fixed")
        rounded = _rounded([getattr(found, cause) for cause in causes], change, scale)
        parts |= dict(zip(causes, rounded, strict=True))
        if parts["price"] and found.of_price:
            moved = max(found.of_price, key=lambda what: (abs(found.of_price[what]), what))
    return Mover(label=label, before_minor=before_minor, billed_minor=billed_minor, parts=parts, price_moved=moved)


def decompose(before: Cells, now: Cells, books: BookChange = BookChange()) -> Parts:
    """The change of the exact cost from one set of cells to another, by cause: the parts sum to it exactly."""
    fixed = price = Fraction()
    of_price: dict[str, Fraction] = defaultdict(Fraction)
    was: dict[str, list[Fraction]] = defaultdict(lambda: [Fraction(), Fraction()])  # meter: quantities of two months
    old_cost: dict[str, Fraction] = defaultdict(Fraction)
    at_old_prices = Fraction()
    paid_skus = {key.sku for cells in (before, now) for key, cell in cells.items() if cell.cost}
    for key in {**before, **now}:
        blank = Cell(meter=(before.get(key) or now[key]).meter)
        old, new = before.get(key, blank), now.get(key, blank)
        if blank.meter == FIXED:
            fixed += new.cost - old.cost
            continue
        if key.sku in books.one_sided:
            price += new.cost - old.cost
            of_price[BOOK] += new.cost - old.cost
            continue
        if key.sku in paid_skus:
            was[blank.meter][0] += old.quantity
            was[blank.meter][1] += new.quantity
        old_cost[blank.meter] += old.cost
        if not old.quantity:
            at_old_prices += new.cost
            continue
        value = new.quantity * old.cost / old.quantity
        at_old_prices += value
        price += new.cost - value
        for what, amount in _price_parts(old, new, BOOK if key.sku in books.repriced else TIERS).items():
            of_price[what] += amount
    volume = sum(
        (old_cost[meter] * (new / old - 1) for meter, (old, new) in was.items() if old),
        Fraction(),
    )
    mix = at_old_prices - sum(old_cost.values(), Fraction()) - volume
    return Parts(volume=volume, price=price, mix=mix, fixed=fixed, of_price={k: v for k, v in of_price.items() if v})


def _price_parts(old: Cell, new: Cell, of_list: str) -> dict[str, Fraction]:
    """New quantity at the new price less that at the old one, by factor: list price, contract, exchange rate.

    The factors are changed one after the other, so that the parts sum to the difference exactly.
    of_list: what a change of the average list price is called.
    """
    if not new.quantity:
        return {}
    old_kept, new_kept = _factors((old.cost, new.cost), (old.list_cost, new.list_cost))
    old_rate, new_rate = _factors((old.list_cost, new.list_cost), (old.pricing_cost, new.pricing_cost))
    old_list, new_list = old.pricing_cost / old.quantity, new.pricing_cost / new.quantity
    return {
        of_list: new.quantity * (new_list - old_list) * old_kept * old_rate,
        CONTRACT: new.quantity * new_list * (new_kept - old_kept) * old_rate,
        RATE: new.quantity * new_list * new_kept * (new_rate - old_rate),
    }


def _factors(tops: tuple[Fraction, Fraction], bottoms: tuple[Fraction, Fraction]) -> tuple[Fraction, Fraction]:
    """What a factor was and is; where one month does not say (all was free), that of the other; else 1."""
    old, new = (top / bottom if bottom else None for top, bottom in zip(tops, bottoms, strict=True))
    known = new if old is None else old
    one = Fraction(1)
    return (one, one) if known is None else (known if old is None else old, known if new is None else new)


def _rounded(parts: list[Fraction], change_minor: int, scale: int) -> list[int]:
    """Parts in minor units that sum to the change: what rounding leaves goes to the largest."""
    rounded = [money.half_even(part * 10**scale) for part in parts]
    largest = max(range(len(parts)), key=lambda i: (abs(parts[i]), -i))
    rounded[largest] += change_minor - sum(rounded)
    return rounded


def _by(cells: Cells, label_of: Callable[[CellKey], Label]) -> dict[Label, dict[CellKey, Cell]]:
    found: dict[Label, dict[CellKey, Cell]] = defaultdict(dict)
    for key, cell in cells.items():
        found[label_of(key)][key] = cell
    return found


def _folded(rows: list[Mover]) -> tuple[Mover, ...]:
    """The rows that moved most, and one for the others: those of a long list, and those in which nothing moved."""
    moved = [row for row in rows if any(row.parts.values())]
    still = [row for row in rows if not any(row.parts.values()) and (row.before_minor or row.billed_minor)]
    shown = moved if len(moved) <= TOP_MOVERS + 1 else moved[:TOP_MOVERS]
    rest = [*moved[len(shown) :], *still]
    if len(rest) < 2:
        return (*shown, *rest)
    others = Mover(
        label=Label(f"({len(rest)} others)", "", True, True), before_minor=sum(m.before_minor for m in rest),
        billed_minor=sum(m.billed_minor for m in rest), many=len(rest),
        parts={cause: sum(m.parts[cause] for m in rest) for cause in CAUSES},
    )  # fmt: skip
    return (*shown, others)
