"""From what was metered to what was billed, cause by cause.

Rules of this file:
- Rows sum to billed less metered, exactly: in money, and SKU by SKU in quantity. Nothing is spread: what no cause
  takes stays `UNEXPLAINED`, of the SKU where it lies.
- Metered quantities count at the month's average contracted price of their SKU, so that a quantity is one amount
  wherever the bridge puts it; what the provider's unit price differs from that is a cause of its own.
- Billed amounts count at the book's exchange rates; what the bill's own rate differs from them is `FX`.
- Causes take in the order of `CAUSES`; within a group of SKUs in the order in which the rules name them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

from apicost.core.reconcile import lines as kinds
from apicost.core.reconcile.lines import CORRECTION, ELSEWHERE, IGNORED, LATE, OTHER_HOSTS, UNMAPPED, USAGE, Lines
from apicost.core.reconcile.metered import Metered, MeteredSku

K = TypeVar("K")

TIMING = "timing"
SCOPE = "scope classification"
UNATTRIBUTED = "unattributed"
UNPRICED = "unpriced"
POOLING = "tier pooling"
CONTRACTS = "contracts"
PRICE = "price"
FX = "FX"
HOSTS = "traffic of other hosts"
FIXED = "fixed amounts"
CORRECTIONS = "corrections"
ROUNDING = "rounding"
TAXES = "taxes"
CREDITS = "credits"
REFUNDS = "refunds"
DISCOUNTS = "discounts"
ADJUSTMENTS = "adjustments"
NO_RULE = "unmapped"
UNEXPLAINED = "unexplained"
CAUSES: Mapping[str, str] = {
    TIMING: "usage that month and bill put into different periods",
    SCOPE: "billed as one SKU of a group and metered as another",
    UNATTRIBUTED: "billed; metered without a price, and no request claims it",
    UNPRICED: "billed; metered without a price",
    POOLING: "the provider counts tiers and free units over more than this gateway",
    CONTRACTS: "consumers' contracts, which the provider's price list does not have",
    PRICE: "the bill's unit price is none of the book's",
    FX: "the bill's exchange rate is not the book's",
    HOSTS: "lines that the rules say are not the gateway's",
    FIXED: "fixed amounts of the book that the bill has otherwise",
    CORRECTIONS: "of earlier months: the bill's less ours",
    ROUNDING: "of the bill's lines less that of our charges",
    TAXES: "", CREDITS: "", REFUNDS: "", DISCOUNTS: "", ADJUSTMENTS: "",
    NO_RULE: "lines that no rule maps",
    UNEXPLAINED: "what none of these causes says",
}  # fmt: skip
_OF_KIND = {
    kinds.TAX: TAXES, kinds.CREDIT: CREDITS, kinds.REFUND: REFUNDS, kinds.DISCOUNT: DISCOUNTS,
    kinds.ADJUSTMENT: ADJUSTMENTS, UNMAPPED: NO_RULE, OTHER_HOSTS: HOSTS,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A part of the difference.

    sku: None where the bill names none. quantity: base units; None where it is money alone.
    note: what the cause says of this row; count: the bill's lines that it is made of, 0 for none in particular.
    """

    cause: str
    sku: str | None
    amount: Fraction
    quantity: Fraction | None = None
    note: str = ""
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A SKU's base units on both sides: billed - metered = the sum of the rows' quantities."""

    sku: str
    unit: str
    unit_base: int
    metered: int
    billed: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """What is not compared: of the statement, or of the bill."""

    side: str  # statement or bill
    what: str
    amount: Fraction
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """The bridge of a month; amounts in the book's currency.

    metered: the statement's total less what is not compared; billed: the bill's less what is not compared.
    without_request: the part of `metered` that falls on bytes that no request claims, exact, for information.
    remarks: what could not be told, in whole sentences.
    """

    month: str
    currency: str
    scale: int
    statement_total: Fraction
    bill_total: Fraction
    apart: tuple[Apart, ...]
    metered: Fraction
    billed: Fraction
    rows: tuple[Row, ...]
    quantities: tuple[Quantity, ...]
    without_request: Fraction
    remarks: tuple[str, ...] = ()

    @property
    def difference(self) -> Fraction:
        return self.billed - self.metered

    @property
    def unexplained(self) -> Fraction:
        """What no cause says, and what no rule maps."""
        return sum((row.amount for row in self.rows if row.cause in (UNEXPLAINED, NO_RULE)), Fraction())


def bridge(
    metered: Metered,
    currency: str,
    lines: Sequence[Lines],
    *,
    named: Sequence[str],
    groups: Sequence[Sequence[str]] = (),
    paid_rate: Fraction | None = None,
) -> Bridge:
    """The bridge of a month.

    currency: the bill's; lines: all of the bill. named: the SKUs that some rule can map a line to; what the month
        has of others is not compared.
    groups: SKUs of one meter whose usage may have been taken for each other's, in the order in which they give and
        take.
    paid_rate: what one unit of the bill's currency was paid with in the book's, where they differ.

    Raises ValueError where the bill's currency is not the book's and neither knows a rate.
    """
    making = _Making(metered, currency, lines, paid_rate)
    making.money_alone()
    making.by_sku([sku for name, sku in sorted(metered.skus.items()) if name in set(named)], groups)
    return making.bridge()


@dataclass(slots=True)
class _Side:
    """A SKU while the bridge is made. `left`: billed less metered base units that no cause has taken yet."""

    sku: MeteredSku
    lines: list[Lines]
    left: Fraction = Fraction()


class _Making:
    """A bridge in the making."""

    def __init__(self, metered: Metered, currency: str, lines: Sequence[Lines], paid_rate: Fraction | None) -> None:
        self.metered = metered
        self.currency = currency
        self.lines = lines
        self.rows: list[Row] = []
        self.remarks: set[str] = set()
        self.apart: list[Apart] = []
        self.quantities: list[Quantity] = []
        self.named: list[MeteredSku] = []
        self.own_rate = Fraction(1)
        if currency != metered.currency:
            rate = metered.rates.get(currency, paid_rate)
            if rate is None:
                raise ValueError(f"the bill is in {currency}, and no rate to {metered.currency} is known")
            self.own_rate = rate
        self.paid_rate = self.own_rate if paid_rate is None or currency == metered.currency else paid_rate

    # -- money -----------------------------------------------------------------------------------------------

    def paid(self, line: Lines) -> Fraction:
        """What lines cost in the book's currency, at the rate at which the bill is paid."""
        return line.cost * self.paid_rate

    def factor(self, line: Lines) -> Fraction:
        """What an amount of the bill's currency is in the book's, at the book's rate."""
        foreign = line.pricing_currency
        if self.currency != self.metered.currency or foreign in (None, self.metered.currency) or not line.rate:
            return self.own_rate
        rate = self.metered.rates.get(foreign)
        if rate is None:
            self.remarks.add(
                f"The bill's prices are in {foreign}, for which the book has no rate of {self.metered.month}: "
                "its exchange rate is taken as it is."
            )
            return self.own_rate
        return rate / line.rate

    def add(
        self, cause: str, sku: str | None, amount: Fraction, quantity: Fraction | None = None, note: str = "",
        count: int = 0,
    ) -> None:  # fmt: skip
        """A row, but for one that says nothing."""
        if amount or quantity or count:
            self.rows.append(Row(cause=cause, sku=sku, amount=amount, quantity=quantity, note=note, count=count))

    # -- what is money alone ---------------------------------------------------------------------------------

    def money_alone(self) -> None:
        """Lines whose whole cost is one cause, and those that are not compared."""
        for (kind, sku, label), same in _grouped(self.lines, lambda x: (x.kind, x.sku, x.label)).items():
            mine = [line for line in same if line.when != ELSEWHERE]
            self._set_apart("other billing periods", [line for line in same if line.when == ELSEWHERE])
            if not mine:
                continue
            if kind == IGNORED:
                self._set_apart(f"ignored: {label}", mine)
            elif kind in _OF_KIND:
                quantity = sum((line.quantity for line in mine), Fraction()) if kind == OTHER_HOSTS and sku else None
                self.add(
                    _OF_KIND[kind], sku, sum(map(self.paid, mine), Fraction()), quantity, label,
                    sum(line.count for line in mine),
                )  # fmt: skip

    def _set_apart(self, what: str, lines: Sequence[Lines]) -> None:
        if lines:
            amount = sum(map(self.paid, lines), Fraction())
            self.apart.append(Apart(side="bill", what=what, amount=amount, count=sum(x.count for x in lines)))

    # -- SKU by SKU ------------------------------------------------------------------------------------------

    def by_sku(self, skus: Sequence[MeteredSku], groups: Sequence[Sequence[str]]) -> None:
        """Everything about usage that a rule maps to a SKU."""
        self.named = list(skus)
        usage = _grouped([line for line in self.lines if line.kind == USAGE], lambda x: x.sku)
        sides = {sku.id: _Side(sku, usage.get(sku.id, [])) for sku in skus}
        for side in sides.values():
            self._corrections(side)
            if side.sku.unit is None:
                self._fixed(side)
            else:
                self._timing(side)
                self._money_of(side)
        for group in groups:
            self._scope([sides[name] for name in group if name in sides])
        pools = {name: {k: Fraction(v) for k, v in pool.items()} for name, pool in self.metered.unpriced.items()}
        for cause in (UNATTRIBUTED, UNPRICED):
            for name in dict.fromkeys([name for group in groups for name in group] + list(sides)):
                if name in sides:
                    self._without_price(sides[name], cause, pools)
        for side in sides.values():
            price = side.sku.average
            self.add(UNEXPLAINED, side.sku.id, side.left * price, side.left, "quantity" if side.left else "")

    def _corrections(self, side: _Side) -> None:
        theirs = [line for line in side.lines if line.when == CORRECTION]
        amount = sum(map(self.paid, theirs), Fraction()) - side.sku.corrections
        self.add(CORRECTIONS, side.sku.id, amount)

    def _fixed(self, side: _Side) -> None:
        """An amount without usage: the bill's less ours."""
        theirs = [line for line in side.lines if line.when in (kinds.IN, LATE)]
        neutral = sum((line.cost * self.factor(line) for line in theirs), Fraction())
        self.add(FX, side.sku.id, sum(map(self.paid, theirs), Fraction()) - neutral)
        if theirs or side.sku.cost:
            rounding = side.sku.cost - side.sku.billed
            exact = neutral == side.sku.billed  # the bill is rounded as the statement is
            self.add(FIXED, side.sku.id, Fraction() if exact else neutral - side.sku.cost)
            self.add(ROUNDING, side.sku.id, Fraction() if exact else rounding)

    def _timing(self, side: _Side) -> None:
        """Usage of other periods on the bill; and hours that the bill's month has and ours has not."""
        price = side.sku.average
        late = [line for line in side.lines if line.when == LATE]
        self.add(
            TIMING, side.sku.id, sum(map(self.paid, late), Fraction()), sum((x.quantity for x in late), Fraction()),
            "billed, but used in another period", sum(line.count for line in late),
        )  # fmt: skip
        self.add(
            TIMING, side.sku.id, side.sku.edges * price, Fraction(side.sku.edges),
            "metered in the hours between the bill's month and ours" if side.sku.edges else "",
        )  # fmt: skip

    def _money_of(self, side: _Side) -> None:
        """Exchange rate, rounding and unit price of the bill's lines; leaves the quantity."""
        sku = side.sku
        theirs = [line for line in side.lines if line.when == kinds.IN]
        paid = sum(map(self.paid, theirs), Fraction())
        neutral = sum((line.cost * self.factor(line) for line in theirs), Fraction())
        self.add(FX, sku.id, paid - neutral)
        quantity = sum((line.quantity for line in theirs), Fraction())
        exact, parts = Fraction(), dict.fromkeys((POOLING, PRICE, UNEXPLAINED), Fraction())
        known = sku.prices | {Fraction()}
        as_listed = True
        for line in theirs:
            factor = self.factor(line)
            cost = (line.cost if line.exact is None else line.exact) * factor
            if not line.quantity:
                cause = PRICE  # money without a quantity makes the others dearer or cheaper
            elif line.exact is None or line.unit_price is None:
                cause = POOLING if sku.tiered else UNEXPLAINED
                as_listed = False
            else:
                price = line.unit_price * factor
                cause = POOLING if price in known else PRICE
                as_listed &= price in sku.list_prices
            exact += cost
            parts[cause] += cost - line.quantity * sku.average
        self.add(ROUNDING, sku.id, (neutral - exact) + (sku.cost - sku.billed))
        if as_listed and sku.cost != sku.listed and sku.quantity:
            by_contract = quantity * (sku.listed - sku.cost) / sku.quantity
            self.add(CONTRACTS, sku.id, by_contract)
            parts[POOLING] -= by_contract
        for cause, amount in parts.items():
            self.add(cause, sku.id, amount, note="price" if cause == UNEXPLAINED and amount else "")
        side.left = quantity - sku.quantity - sku.edges
        everything = [line for line in side.lines if line.when in (kinds.IN, LATE)]
        hosts = [x for x in self.lines if x.kind == OTHER_HOSTS and x.sku == sku.id and x.when != ELSEWHERE]
        self.quantities.append(
            Quantity(
                sku=sku.id, unit=sku.unit or "", unit_base=sku.unit_base, metered=sku.quantity,
                billed=sum((line.quantity for line in (*everything, *hosts)), Fraction()),
            )
        )  # fmt: skip

    def _scope(self, group: Sequence[_Side]) -> None:
        """What one SKU of a group was billed too much and another too little, up to the smaller of both."""
        surplus = [side for side in group if side.left > 0]
        deficit = [side for side in group if side.left < 0]
        while surplus and deficit:
            to, of = surplus[0], deficit[0]
            moved = min(to.left, -of.left)
            self.add(SCOPE, to.sku.id, moved * to.sku.average, moved, f"metered as {of.sku.id}")
            self.add(SCOPE, of.sku.id, -moved * of.sku.average, -moved, f"billed as {to.sku.id}")
            to.left -= moved
            of.left += moved
            surplus, deficit = surplus[not to.left :], deficit[not of.left :]

    def _without_price(self, side: _Side, cause: str, pools: dict[str, dict[str, Fraction]]) -> None:
        """What was billed beyond what has a price, as far as it was metered without one."""
        measures = side.sku.measures
        wire = [name.replace("_payload_", "_wire_").replace("_app_", "_wire_") for name in measures]
        names = ["+".join(measures), *wire, *(["app_only_bytes"] if any(n.endswith("_bytes") for n in wire) else [])]
        for name in dict.fromkeys(names):
            pool = pools.get(name, {})
            taken = min(side.left, pool.get(cause, Fraction()))
            if taken > 0:
                self.add(cause, side.sku.id, taken * side.sku.average, taken, name)
                side.left -= taken
                pool[cause] -= taken

    # -- putting together ------------------------------------------------------------------------------------

    def bridge(self) -> Bridge:
        names = {sku.id for sku in self.named}
        for name, sku in sorted(self.metered.skus.items()):
            amount = sku.billed + sku.corrections
            if name not in names and amount:
                self.apart.append(Apart(side="statement", what=name, amount=amount))
        bill_total = sum(map(self.paid, self.lines), Fraction())
        kept = {
            side: sum((x.amount for x in self.apart if x.side == side), Fraction()) for side in ("statement", "bill")
        }
        found = Bridge(
            month=self.metered.month, currency=self.metered.currency, scale=self.metered.scale,
            statement_total=self.metered.total, bill_total=bill_total, apart=_apart(self.apart),
            metered=self.metered.total - kept["statement"], billed=bill_total - kept["bill"], rows=_sorted(self.rows),
            quantities=tuple(self.quantities), remarks=tuple(sorted(self.remarks)),
            without_request=sum((sku.without_request for sku in self.named), Fraction()),
        )  # fmt: skip
        explained = sum((row.amount for row in found.rows), Fraction())
        if explained != found.difference:
            raise AssertionError(f"causes come to {explained}, billed less metered is {found.difference}")
        return found


def _grouped(lines: Iterable[Lines], key: Callable[[Lines], K]) -> dict[K, list[Lines]]:
    found: dict[K, list[Lines]] = {}
    for line in lines:
        found.setdefault(key(line), []).append(line)
    return found


def _sorted(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows in the order of causes, those that say the same added up."""
    order = list(CAUSES)
    same: dict[tuple[int, str, str], Row] = {}
    for row in rows:
        key = order.index(row.cause), row.sku or "", row.note
        if key in same:
            other = same[key]
            parts = [quantity for quantity in (row.quantity, other.quantity) if quantity is not None]
            row = replace(
                row, amount=row.amount + other.amount, count=row.count + other.count,
                quantity=sum(parts, Fraction()) if parts else None,
            )  # fmt: skip
        same[key] = row
    return tuple(row for _, row in sorted(same.items(), key=lambda item: item[0]))


def _apart(found: Sequence[Apart]) -> tuple[Apart, ...]:
    same: dict[tuple[str, str], Apart] = {}
    for entry in found:
        key = entry.side, entry.what
        if key in same:
            entry = replace(entry, amount=same[key].amount + entry.amount, count=same[key].count + entry.count)
        same[key] = entry
    return tuple(entry for _, entry in sorted(same.items(), key=lambda item: item[0]))
