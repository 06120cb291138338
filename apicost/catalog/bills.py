"""A provider's bill read to what the bridge takes: FOCUS cost and usage, or an AWS Cost and Usage Report.

Rules of this file:
- Lines are added up as they are read, by all that the bridge asks of them: the order of lines changes nothing, and a
  bill of millions of lines stays small.
- The first rule that fits a line says what it is; else the line does: usage, tax, credit, refund, discount. Usage that
  no rule fits is unmapped, and kept.
- A bill's own unit price is believed where cost = quantity x unit price but for the rounding of the cost, which is
  less than one unit of the last decimal place that the bill's costs have (two places at least).
- A line that stands twice by its identity is a problem: a bill that is read twice would be twice as dear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost.catalog import bill_files
from apicost.catalog.bill_dialects import Dialect, dialect_of
from apicost.catalog.bill_files import EFFECT, MOST_PROBLEMS, NUMBER, BillFile, problem, unix_s
from apicost.catalog.bill_pieces import MOST_PLACES, Codes, Piece, agreement_of, fraction
from apicost.catalog.bill_rules import NONE, Rule, Rules, unit_base
from apicost.core.rating.period import Period, month
from apicost.core.reconcile import lines as kinds
from apicost.core.reconcile.lines import Lines, ProviderBill
from apicost.problems import InputError, Problem

Mask = npt.NDArray[np.bool_]

_WIDE = Context(prec=120)  # more digits than a sum of `NUMBER` has: nothing is rounded


def read(paths: Sequence[Path], rules: Rules, period: Period) -> ProviderBill:
    """The lines of a bill, added up.

    paths: the files of one bill. period: our month; the bill's period that holds its middle is compared.
    Raises InputError for what can't be read: missing columns, values that are no number or time, several currencies,
    lines that stand twice, units that are not known. A bill without a line of the month has none that is not elsewhere.
    """
    files = [bill_files.inspect(path) for path in paths]
    dialect = dialect_of(files, rules)
    reader = _Reader(dialect, rules, period)
    for file in files:
        for first, table in bill_files.pieces(file, reader.texts, reader.numbers):
            reader.add(file, first, table)
    reader.refuse_twice(files)
    return replace(reader.bill(str(paths[0])), remarks=_idle(rules, files))


def _idle(rules: Rules, files: Sequence[BillFile]) -> tuple[str, ...]:
    """Rules that can fit no line, as the bill has none of the columns that they ask for."""
    here = {name for file in files for name in file.columns}
    return tuple(
        f"{rule.place}: the bill has no column {' or '.join(condition.columns)}: this rule fits no line"
        for rule in rules.rules
        for condition in rule.conditions
        if not here & set(condition.columns) and None not in condition.values
    )


@dataclass(slots=True)
class _Sum:
    """Lines of one key added up so far, in units of the last place of `NUMBER`; `row` is one of them."""

    count: int = 0
    row: str = ""
    cost: int = 0
    quantity: int = 0
    priced: int = 0
    theirs: int = 0
    foreign: int = 0


# What lines are told apart by, in the order of a key.
_KEY = (
    "rule", "kind", "when", "sku", "unit", "price", "priced_unit", "foreign_price", "pricing_currency", "agrees",
    "label", "start", "end",
)  # fmt: skip
_SUMS = ("cost", "quantity", "priced", "theirs", "foreign")


class _Reader:
    """Adds lines up as they come."""

    def __init__(self, dialect: Dialect, rules: Rules, period: Period) -> None:
        self.dialect = dialect
        self.rules = rules
        self.middle = (period.start_unix_s + period.end_unix_s) // 2
        own = month(period.name, rules.time_zone)
        self.default = own.start_unix_s, own.end_unix_s
        d = dialect
        self.cost = rules.cost_column or d.cost
        own_quantity = rules.quantity_column
        self.quantities = ((own_quantity, ""),) if own_quantity else d.quantities
        self.prices = ((rules.unit_price_column, ""),) if rules.unit_price_column else d.prices
        self.identity = rules.identity or d.identity
        conditions = {x for rule in rules.rules for c in rule.conditions for x in c.columns}
        sku_columns = {rule.sku_column for rule in rules.rules if rule.sku_column}
        of_rules = {x for rule in rules.rules for x in (rule.quantity_column, rule.cost_column) if x and x != NONE}
        texts = {
            d.currency, d.start, d.billing_start, d.billing_end, d.kind, d.correction, d.pricing_currency, *d.labels,
            d.priced_quantity[1], *(unit for _, unit in d.quantities), *(x for pair in self.prices for x in pair),
            *self.identity, *conditions, *sku_columns,
        }  # fmt: skip
        numbers = {self.cost, d.priced_quantity[0], *d.costs_by_rate, *(x for x, _ in self.quantities), *of_rules}
        self.texts = sorted(texts - numbers - {""})
        self.numbers = sorted(numbers - {""})
        self.found: dict[tuple[Any, ...], _Sum] = {}
        self.currencies: dict[str, str] = {}
        self.places = 2
        self.times: dict[str | None, int | None] = {None: None}
        self.seen: list[npt.NDArray[np.int64]] = []

    # -- one piece -------------------------------------------------------------------------------------------

    def add(self, file: BillFile, first: int, table: pa.Table) -> None:
        """Add the lines of a piece. Raises InputError with its problems."""
        if not table.num_rows:
            return
        piece = Piece(table)
        self._require(file, first, piece)
        self._remember(piece)
        d, rules = self.dialect, self.rules.rules
        rule, sku = self._ruled(piece)
        kind = self._kinds(piece, rule, sku)
        start, end, when = self._times(file, first, piece)
        cost = self._overridden(piece, self.cost, rule, [r.cost_column for r in rules])
        self._count_places(cost)
        counted = np.isin(kind, [kinds.KINDS.index(kinds.USAGE), kinds.KINDS.index(kinds.OTHER_HOSTS)])
        quantity, unit = self._quantity(piece, rule, counted)
        price, foreign_price = self._unit_price(piece)
        agrees = agreement_of(cost, piece.number(d.priced_quantity[0]), price)
        usage: Mask = kind == kinds.KINDS.index(kinds.USAGE)
        unknown = kind == kinds.KINDS.index(kinds.UNMAPPED)
        blank = pa.nulls(len(piece), pa.string())
        columns: dict[str, Any] = {
            "rule": pa.array(rule), "kind": pa.array(kind), "when": pa.array(when), "sku": sku,
            "unit": pc.if_else(pa.array(counted), unit, blank),
            "price": pc.if_else(pa.array(usage), price, blank),
            "priced_unit": pc.if_else(pa.array(usage), piece.plain(d.priced_quantity[1]), blank),
            "foreign_price": pc.if_else(pa.array(usage), foreign_price, blank),
            "pricing_currency": pc.if_else(pa.array(usage), piece.plain(d.pricing_currency), blank),
            "agrees": pa.array(np.where(usage, agrees, -1)),
            "label": pc.if_else(pa.array(unknown), self._labels(piece), blank),
            "start": pa.array(start), "end": pa.array(end),
            "cost": cost, "quantity": quantity, "priced": piece.number(d.priced_quantity[0]),
            "theirs": piece.number(d.costs_by_rate[0]), "foreign": piece.number(d.costs_by_rate[1]),
            "row": pa.array(np.arange(first, first + len(piece))),
        }  # fmt: skip
        grouped = pa.table(columns).group_by(list(_KEY), use_threads=False)
        sums = grouped.aggregate([(name, "sum") for name in _SUMS] + [("row", "count"), ("row", "min")])
        values = [sums.column(name).to_pylist() for name in _KEY]
        amounts: list[list[Any]] = [sums.column(f"{name}_sum").to_pylist() for name in _SUMS]
        counts: list[Any] = sums.column("row_count").to_pylist()
        rows = sums.column("row_min").to_pylist()
        for position, key in enumerate(zip(*values, strict=True)):
            total = self.found.setdefault(key, _Sum())
            total.row = total.row or f"row {rows[position]}"
            total.count += counts[position]
            for name, column in zip(_SUMS, amounts, strict=True):
                if column[position]:
                    setattr(total, name, getattr(total, name) + int(_WIDE.scaleb(column[position], NUMBER.scale)))

    def _require(self, file: BillFile, first: int, piece: Piece) -> None:
        """Raises InputError for costs and currencies that are not there, and for a second currency."""
        problems = []
        for name, column in ((self.cost, piece.number(self.cost, none=True)),
                             (self.dialect.currency, piece.plain(self.dialect.currency))):  # fmt: skip
            absent = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            problems += [
                Problem(place=str(file.path), fact=f"row {first + row}, column {file.columns[name]}: there is no value",
                        effect=EFFECT, fix="fetch the file again, or write the value")
                for row in absent[:MOST_PROBLEMS].tolist()
            ]  # fmt: skip
        codes, values = piece.codes(self.dialect.currency)
        for code in np.unique(codes[codes >= 0]).tolist():
            row = first + int(np.argmax(codes == code))
            self.currencies.setdefault(values[code], f"row {row} of {file.path}")
        if len(self.currencies) > 1:
            (one, here), (other, there) = list(self.currencies.items())[:2]
            problems.append(
                Problem(
                    place=str(file.path),
                    fact=f"column {file.columns[self.dialect.currency]}: {here} is in {one!r}, {there} in {other!r}",
                    effect="amounts of two currencies have no sum",
                    fix="reconcile the bills of each currency by themselves",
                )
            )
        for name in {x for pair in self.prices for x in pair} & piece.names:
            codes, values = piece.codes(name)
            for code, value in enumerate(values):
                if fraction(value) is None and (codes == code).any():
                    fact = (
                        f"row {first + int(np.argmax(codes == code))}, column {file.columns[name]}: {value!r:.60} is "
                    )
                    problems.append(Problem(place=str(file.path), fact=fact + "no decimal number", effect=EFFECT,
                                            fix="write digits and a point, without separators"))  # fmt: skip
        if problems:
            raise InputError(problems[:MOST_PROBLEMS])

    # -- which rule, what kind ---------------------------------------------------------------------------------

    def _ruled(self, piece: Piece) -> tuple[Codes, Any]:
        """The first rule that fits each line, -1 for none, and the line's SKU."""
        which = np.full(len(piece), -1, np.int32)
        for number in range(len(self.rules.rules) - 1, -1, -1):
            which[self._fits(piece, self.rules.rules[number])] = number
        named: Any = pa.array([*(rule.sku for rule in self.rules.rules), None], pa.string())
        sku = named.take(pa.array(np.where(which < 0, len(self.rules.rules), which)))
        for number, rule in enumerate(self.rules.rules):
            if rule.sku_column:
                sku = pc.if_else(pa.array(which == number), piece.plain(rule.sku_column), sku)
        return which, sku

    def _fits(self, piece: Piece, rule: Rule) -> Mask:
        fits = np.ones(len(piece), np.bool_)
        for condition in rule.conditions:
            column = next((name for name in condition.columns if name in piece.names), "")
            codes, values = piece.codes(column)
            fits &= np.array([*map(condition.fits, values), condition.fits(None)], np.bool_)[codes]
        if rule.sku_column:
            codes, values = piece.codes(rule.sku_column)
            fits &= np.array([*(value in self.rules.meters for value in values), False], np.bool_)[codes]
        return fits

    def _kinds(self, piece: Piece, rule: Codes, sku: Any) -> npt.NDArray[np.int8]:
        """What each line is, as a position in KINDS."""
        number = kinds.KINDS.index
        codes, values = piece.codes(self.dialect.kind)
        own = [number(self.dialect.kind_of.get(value, kinds.USAGE)) for value in values] + [number(kinds.USAGE)]
        kind = np.array(own, np.int8)[codes]
        by_rule = [-1 if r.kind is None else number(r.kind) for r in self.rules.rules] + [-1]
        said = np.array(by_rule, np.int8)[rule]
        fixed = pc.is_in(
            sku, pa.array([name for name, meter in self.rules.meters.items() if meter is None], pa.string())
        )
        amount = (kind == number(kinds.ADJUSTMENT)) & fixed.to_numpy(zero_copy_only=False)
        kind = np.where(said >= 0, said, np.where(amount, number(kinds.USAGE), kind))
        nameless = sku.is_null().to_numpy(zero_copy_only=False)
        return np.where((kind == number(kinds.USAGE)) & nameless, number(kinds.UNMAPPED), kind).astype(np.int8)

    def _labels(self, piece: Piece) -> Any:
        """What is billed, in the bill's own words."""
        columns = [piece.plain(name) for name in self.dialect.labels if name in piece.names]
        if len(columns) < 2:
            return columns[0] if columns else pa.nulls(len(piece), pa.string())
        join: Any = pc.binary_join_element_wise
        return join(*columns, " / ", null_handling="skip")

    # -- when ------------------------------------------------------------------------------------------------

    def _times(self, file: BillFile, first: int, piece: Piece) -> tuple[Any, Any, npt.NDArray[np.int8]]:
        """The bill's period that each line is on (0, 0 where it is not ours), and when it was used."""
        d = self.dialect
        used = self._unix(file, first, piece, d.start)
        begins, ends = (self._unix(file, first, piece, name) for name in (d.billing_start, d.billing_end))
        told = begins[1] & ends[1]
        start = np.where(told, begins[0], self.default[0])
        end = np.where(told, ends[0], self.default[1])
        ours = (start <= self.middle) & (self.middle < end)
        within = ~used[1] | ((used[0] >= start) & (used[0] < end))
        codes, values = piece.codes(d.correction)
        corrects = np.array([*(value == "Correction" for value in values), False], np.bool_)[codes]
        when = np.select(
            [~ours, corrects, within], [kinds.TIMES.index(x) for x in (kinds.ELSEWHERE, kinds.CORRECTION, kinds.IN)],
            kinds.TIMES.index(kinds.LATE),
        )  # fmt: skip
        return np.where(ours, start, 0), np.where(ours, end, 0), when.astype(np.int8)

    def _unix(self, file: BillFile, first: int, piece: Piece, name: str) -> tuple[npt.NDArray[np.int64], Mask]:
        """A column of times in unix seconds, and where it has one. Raises InputError for what is no time."""
        codes, values = piece.codes(name)
        for value in values:
            if value not in self.times:
                self.times[value] = unix_s(value)
        found = [self.times[value] for value in values]
        bad = [code for code, seconds in enumerate(found) if seconds is None]
        if bad:
            places = [(int(np.argmax(codes == code)), values[code]) for code in bad if (codes == code).any()]
            raise InputError([
                Problem(place=str(file.path), fact=f"row {first + row}, column {file.columns[name]}: {text[:60]!r} is "
                        "no time", effect=EFFECT, fix="write such as 2026-11-01T00:00:00Z")
                for row, text in places[:MOST_PROBLEMS]
            ])  # fmt: skip
        seconds = np.array([*(x or 0 for x in found), 0], np.int64)[codes]
        return seconds, codes >= 0

    # -- how much --------------------------------------------------------------------------------------------

    def _overridden(self, piece: Piece, default: str, rule: Codes, columns: Sequence[str | None]) -> Any:
        """A number of each line, of another column where its rule says so."""
        found = piece.number(default)
        for number, name in enumerate(columns):
            if name is not None and (rule == number).any():
                other = pa.nulls(len(piece), NUMBER) if name == NONE else piece.number(name)
                found = pc.if_else(pa.array(rule == number), other, found)
        compute: Any = pc
        return compute.fill_null(found, 0)

    def _quantity(self, piece: Piece, rule: Codes, counted: Mask) -> tuple[Any, Any]:
        """The quantity of each line, and its unit."""
        quantity = pa.nulls(len(piece), NUMBER)
        unit = pa.nulls(len(piece), pa.string())
        for amount, of in reversed(self.quantities):
            if amount not in piece.names:
                continue
            amounts = piece.number(amount, none=True)
            has = pc.is_valid(amounts)
            if of and len(self.quantities) > 1:  # a unit that is not known leaves the word to the other column
                codes, values = piece.codes(of)
                known = np.array([*(unit_base(value) is not None for value in values), False], np.bool_)[codes]
                has = pc.and_(has, pc.or_(pa.array(known), pc.is_null(quantity)))
            quantity = pc.if_else(has, amounts, quantity)
            unit = pc.if_else(has, piece.plain(of), unit)
        for number, name in enumerate(r.quantity_column for r in self.rules.rules):
            if name is not None:
                other = pa.nulls(len(piece), NUMBER) if name == NONE else piece.number(name)
                quantity = pc.if_else(pa.array(rule == number), other, quantity)
        compute: Any = pc
        return compute.if_else(pa.array(counted), compute.fill_null(quantity, 0), pa.scalar(0).cast(NUMBER)), unit

    def _unit_price(self, piece: Piece) -> tuple[Any, Any]:
        """The unit price of each line as text, and the same in the pricing currency."""
        price = pa.nulls(len(piece), pa.string())
        foreign = pa.nulls(len(piece), pa.string())
        for own, other in reversed(self.prices):
            if own in piece.names:
                has = pc.is_valid(piece.plain(own))
                price = pc.if_else(has, piece.plain(own), price)
                foreign = pc.if_else(has, piece.plain(other), foreign)
        return price, foreign

    def _count_places(self, cost: Any) -> None:
        """Take in how many decimal places costs have."""
        while self.places < MOST_PLACES and not pc.all(pc.equal(pc.round(cost, self.places), cost)).as_py():
            self.places += 1

    # -- lines that stand twice ----------------------------------------------------------------------------------

    def _remember(self, piece: Piece) -> None:
        """Take in the identities of lines: 8 bytes each."""
        texts = self._identities(piece)
        if texts is not None:
            self.seen.append(np.fromiter(map(hash, texts), np.int64, len(texts)))

    def _identities(self, piece: Piece) -> list[str | None] | None:
        names = [name for name in self.identity if name in piece.names]
        if not names or names[0] != self.identity[0]:
            return None
        first = piece.plain(names[0])
        join: Any = pc.binary_join_element_wise
        rest = [pc.fill_null(piece.plain(name), "") for name in names[1:]]
        texts: list[str | None] = join(first, *rest, "\x1f").to_pylist() if rest else first.to_pylist()
        return texts

    def refuse_twice(self, files: Sequence[BillFile]) -> None:
        """Raises InputError for lines that have the same identity; reads the files again only to name them."""
        hashes = np.concatenate([np.zeros(0, np.int64), *self.seen])
        self.seen.clear()
        hashes.sort()
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()) - {hash(None)}
        if not twice:
            return
        places: dict[str, str] = {}
        problems = []
        for file in files:
            for first, table in bill_files.pieces(file, self.identity, ()):
                for row, text in enumerate(self._identities(Piece(table)) or ()):
                    if text is None or hash(text) not in twice:
                        continue
                    if text in places:
                        shown = text.replace("\x1f", ", ")
                        fact = f"row {first + row}, column {file.columns[self.identity[0]]}: {shown!r:.120} stands at "
                        fact += f"{places[text]}, too"
                        problems.append(
                            Problem(
                                place=str(file.path),
                                fact=fact,
                                effect="its cost would count twice; " + EFFECT,
                                fix="name each file of the bill once, and one version of the bill alone",
                            )
                        )
                        if len(problems) >= MOST_PROBLEMS:
                            raise InputError(problems)
                    places[text] = f"row {first + row} of {file.path}"
        if problems:
            raise InputError(problems)

    # -- putting together ------------------------------------------------------------------------------------

    def bill(self, place: str) -> ProviderBill:
        """Everything that was added. Raises InputError for units that are not known."""
        problems: dict[str, Problem] = {}
        found = []
        spans = set()
        for values, total in self.found.items():
            key = dict(zip(_KEY, values, strict=True))
            when = kinds.TIMES[key["when"]]
            if when != kinds.ELSEWHERE:
                spans.add((key["start"], key["end"]))
            found.append(self._line(place, key, total, problems))
        if problems:
            raise InputError(list(problems.values())[:MOST_PROBLEMS])
        if len(spans) > 1:
            raise problem(place, f"{len(spans)} billing periods of the file hold the middle of the month",
                          "name the bill of one month")  # fmt: skip
        start, end = spans.pop() if spans else self.default
        currency = next(iter(self.currencies), "")
        return ProviderBill(currency=currency, start_unix_s=start, end_unix_s=end, lines=tuple(found))

    def _line(self, place: str, key: Mapping[str, Any], total: _Sum, problems: dict[str, Problem]) -> Lines:
        kind, sku = kinds.KINDS[key["kind"]], key["sku"]
        rule = self.rules.rules[key["rule"]] if key["rule"] >= 0 else None
        if kind == kinds.UNMAPPED:
            sku = None
        label = key["label"] or "" if rule is None or not rule.label else rule.label
        meter = self.rules.meters.get(sku or "")
        plain = Lines(kind=kind, when=kinds.TIMES[key["when"]], sku=sku, label=label, count=total.count,
                      quantity=Fraction(), cost=_exact(total.cost))  # fmt: skip
        if kind not in (kinds.USAGE, kinds.OTHER_HOSTS) or rule is None:
            return plain
        quantity = Fraction()
        if meter and total.quantity and key["when"] != kinds.TIMES.index(kinds.ELSEWHERE):
            unit = _unit(rule, key["unit"])
            if unit is None or unit[0] != meter:
                fact = f"{total.row}: unit {key['unit']!r} of {sku} is none that counts {meter}"
                problems.setdefault(
                    f"{sku} {key['unit']}",
                    Problem(
                        place=place,
                        fact=fact,
                        effect=EFFECT,
                        fix=f"add unit: to the rule at {rule.place}, or quantity_column: none",
                    ),
                )
            else:
                quantity = _exact(total.quantity * unit[1])
        price = fraction(key["price"])
        agrees = price is not None and key["agrees"] >= min(self.places, MOST_PLACES)
        priced_unit = _unit(rule, key["priced_unit"])
        foreign = fraction(key["foreign_price"])
        rate = price / foreign if price and foreign else None
        if rate is None and total.foreign and total.theirs:
            rate = Fraction(total.theirs, total.foreign)
        return Lines(
            kind=kind, when=plain.when, sku=sku, label=label, count=total.count, quantity=quantity, cost=plain.cost,
            exact=_exact(total.priced) * price if agrees and price is not None else None,
            unit_price=price / priced_unit[1] if agrees and price is not None and priced_unit else None,
            pricing_currency=key["pricing_currency"], rate=rate,
        )  # fmt: skip


def _exact(units: int) -> Fraction:
    """An amount from units of the last place of `NUMBER`."""
    return Fraction(units, 10**NUMBER.scale)


def _unit(rule: Rule, said: str | None) -> tuple[str, int] | None:
    """What a unit of a line counts: by its rule, else by its name."""
    if rule.unit is not None and rule.unit_from in (None, said):
        return rule.unit
    return unit_base(said)
