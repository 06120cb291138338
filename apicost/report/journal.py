"""A month's bill as a Beancount journal: an accountant's programs read it, and `bean-check` proves its sums.

Rules of this file:
- Every charge that has a cost is one posting with its charge id; one transaction holds those of an API and price line,
  and credits their sum to the month's liability. A charge without a cost is a custom directive with its quantity.
- All accounts lie beneath the month, so that journals of several months can be included in one ledger.
- Figures asserted at the month's end come from the statement's own totals, not from the postings. Their tolerance is
  written as 0, and so is the file's: one missing cent fails.
- Names become account parts and strings in journal_text.py: two names never share an account.
- Exact figures are text: Beancount rounds negative numbers to 28 digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost import durable
from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.bill import Bill, minor_of
from apicost.core.rating.period import utc_text
from apicost.core.rating.statement import CORRECTION, PRICED, Statement
from apicost.report.export import ApiInfo, keys_of, with_owners
from apicost.report.journal_text import account_part, quoted, shown

ROOT = "Gateway"

# What a price line says of its charges: stands once, at its transaction. Metadata key -> column of CHARGE.
_OF_LINE = {
    "sku": "sku", "sku-price-id": "sku_price_id", "tier": "tier", "meter": "meter", "unit": "unit",
    "unit-price": "unit_price", "contracted-unit-price": "contracted_unit_price",
    "pricing-currency": "pricing_currency", "fx-rate": "fx_rate", "state": "state", "reason": "reason",
    "period-start": "period_start", "period-end": "period_end",
    "price-book": "price_book_id", "price-book-version": "price_book_version",
}  # fmt: skip
# What only the charge knows: stands at its posting.
_OF_CHARGE = {
    "charge-id": "charge_id", "quantity": "quantity", "exact-cost": "contracted_cost",
    "operation": "operation_id", "method": "method", "path": "path_template", "match-state": "match_state",
    "consumer": "consumer", "route": "route_id", "service": "service_id", "status": "status_class", "scope": "scope",
    "backend-scope": "upstream_scope", "model": "llm_model",
    "team": "team", "owner": "owner", "cost-center": "cost_center",
}  # fmt: skip
_Cells = Mapping[str, str | None]
_CURRENCY = re.compile(r"[A-Z][A-Z0-9'._-]*[A-Z0-9]")


def write(bill: Bill, path: Path, apis: Mapping[str, ApiInfo], api: str | None = None) -> int:
    """Write a month's journal, of one API if named, whole or not at all; returns the number of charges.

    Raises OSError (disk full, read-only folder), and ValueError as `pieces` does.
    """
    part = _part(bill, api)

    def fill(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.writelines(_pieces(part, apis))

    durable.write_file(path, fill)
    return len(part)


def pieces(bill: Bill, apis: Mapping[str, ApiInfo], api: str | None = None) -> Iterator[bytes]:
    """A month's journal in UTF-8, piece by piece: the same bytes for the same bill.

    apis: titles and owners of APIs, for their accounts and for what no tag rule of the book says.
    api: only this API's charges and corrections, and sums of these alone.
    Raises ValueError for a currency that Beancount can't name.
    """
    return _pieces(_part(bill, api), apis)


class _Place(NamedTuple):
    """Where a cost is booked: what an account's name is made from. None: no API, no SKU."""

    correction: bool
    api: str | None
    sku: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What is written of a bill, in the journal's order: by API, then price line, then key; corrections last.

    sums: billed cost of each place that has one, in minor units. whole: what all comes to, in the bill's own words
    where nothing is left out.
    """

    bill: Bill
    api: str | None
    statement: Statement
    corrected: pa.Table
    sums: Mapping[_Place, int]
    whole: int

    def __len__(self) -> int:
        return len(self.statement) + len(self.corrected)

    @property
    def unpriced(self) -> int:
        """How many charges have no cost."""
        without = int((~self.statement.priced).sum()) if len(self.statement) else 0
        return without + self.corrected.column("billed_cost").null_count

    def tables(self) -> Iterator[pa.Table]:
        """All rows in order, columns as in CHARGE, so many at a time."""
        yield from replace(self.bill, statement=self.statement, corrections=self.corrected).pieces()


def _part(bill: Bill, api: str | None) -> _Part:
    currency, scale = bill.statement.book.currency, bill.statement.book.statement_scale
    if not _CURRENCY.fullmatch(currency):
        raise ValueError(f"currency {currency!r} is none that Beancount can name")
    statement, corrected = _statement_of(bill, api), _corrections_of(bill, api)
    sums = _sums(statement) | _sums_of_rows(corrected, scale)
    whole = bill.total_minor if api is None else sum(sums.values())
    return _Part(bill=bill, api=api, statement=statement, corrected=corrected, sums=sums, whole=whole)


def _statement_of(bill: Bill, api: str | None) -> Statement:
    statement = bill.statement
    codes, values = records.codes(statement.keys, "api")
    rank_of = {name: rank for rank, name in enumerate(sorted(values))}
    rank = np.array([*(rank_of[name] for name in values), -1], np.int32)[codes]  # the last place serves code -1
    chosen = np.arange(len(statement)) if api is None else np.flatnonzero(keys_of(statement.keys, api)[statement.key])
    key, line = statement.key[chosen], statement.line[chosen]
    order = chosen[np.lexsort((key, line, rank[key]))]
    return replace(
        statement, key=statement.key[order], line=statement.line[order], quantity=statement.quantity[order],
        billed_minor=statement.billed_minor[order],
    )  # fmt: skip


def _corrections_of(bill: Bill, api: str | None) -> pa.Table:
    rows = bill.corrections if api is None else bill.corrections.filter(pa.array(keys_of(bill.corrections, api)))
    names = ["api", *_OF_LINE.values(), *_OF_CHARGE.values()]
    texts = [["" if text is None else f" {text}" for text in rows.column(name).to_pylist()] for name in names]
    sorting = sorted(zip(*texts, range(len(rows)), strict=True))
    return rows.take(pa.array([row[-1] for row in sorting], pa.int64()))


def _sums(statement: Statement) -> dict[_Place, int]:
    lines = len(statement.lines) + 1
    codes, values = records.codes(statement.keys, "api")
    cells, position = np.unique(codes[statement.key].astype(np.int64) * lines + statement.line, return_inverse=True)
    minors = money.add_by(position, statement.billed_minor, len(cells)).tolist()
    sums: dict[_Place, int] = {}
    for cell, minor in zip(cells.tolist(), minors, strict=True):
        code, number = divmod(cell, lines)
        if statement.lines[number].price is not None:
            place = _Place(False, None if code < 0 else values[code], statement.lines[number].sku)
            sums[place] = sums.get(place, 0) + minor
    return sums


def _sums_of_rows(rows: pa.Table, scale: int) -> dict[_Place, int]:
    apis, skus, costs = (rows.column(name).to_pylist() for name in ("api", "sku", "billed_cost"))
    sums: dict[_Place, int] = {}
    for api, sku, cost, minor in zip(apis, skus, costs, minor_of(rows, scale), strict=True):
        if cost is not None:
            place = _Place(True, api, sku)
            sums[place] = sums.get(place, 0) + minor
    return sums


def _pieces(part: _Part, apis: Mapping[str, ApiInfo]) -> Iterator[bytes]:
    book, period = part.bill.statement.book, part.bill.statement.period
    accounts = _Accounts(month=period.name, currency=book.currency, scale=book.statement_scale)
    yield _head(part).encode()
    yield accounts.opened(period.days[0].isoformat(), part, apis).encode()
    ends = {utc_text(end): day.isoformat() for end, day in zip(period.starts[1:], period.days, strict=True)}
    rows = _Rows(accounts=accounts, ends=ends, last_day=period.days[-1].isoformat())
    for table in part.tables():
        yield rows.written(with_owners(table, apis, book.tags)).encode()
    yield rows.closed().encode()
    yield accounts.asserted((period.days[-1] + timedelta(days=1)).isoformat(), part).encode()


def _head(part: _Part) -> str:
    book, period = part.bill.statement.book, part.bill.statement.period
    about = period.name if part.api is None else f"{period.name}, API {shown(part.api)} alone"
    said = "closed: these figures never change" if part.bill.closed else "not closed: these figures may change"
    return f"""\
; What APIs cost in {about} ({period.time_zone}), by price book {shown(book.id)} {shown(book.version)}.
; {len(part)} charges, {money.fixed(part.whole, book.statement_scale)} {book.currency}; the month is {said}.
; {part.unpriced} of them have no price: their quantities are custom directives "unpriced" and in no sum.
option "title" {quoted(f"API costs {about}")}
option "operating_currency" "{book.currency}"
option "tolerance_multiplier" "0"

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accounts:
    """The accounts of a month and what is asserted of them."""

    month: str
    currency: str
    scale: int

    @property
    def expenses(self) -> str:
        return f"Expenses:{ROOT}:{self.month}"

    @property
    def liability(self) -> str:
        return f"Liabilities:{ROOT}:{self.month}"

    @property
    def corrections(self) -> str:
        return f"{self.expenses}:Corrections"

    def of(self, place: _Place) -> str:
        """The account of an API, or of one SKU of it."""
        node = self.corrections if place.correction else self.expenses
        node += ":No-API" if place.api is None else f":API:{account_part(place.api)}"
        return node if place.sku is None else f"{node}:{account_part(place.sku)}"

    def amount(self, minor: int) -> str:
        return f"{money.fixed(minor, self.scale)} {self.currency}"

    def opened(self, day: str, part: _Part, apis: Mapping[str, ApiInfo]) -> str:
        """Open directives of all accounts that are posted to or asserted."""
        book = part.bill.statement.book
        names = {
            self.expenses: _meta({"price-book": book.id, "price-book-version": book.version}, 2),
            self.liability: "",
        }
        for place in part.sums:
            if place.correction:
                names[self.corrections] = ""
            if place.sku is not None:
                names[self.of(place)] = _meta({"sku": place.sku}, 2)
            info = ApiInfo() if place.api is None else apis.get(place.api, ApiInfo())
            about = {"title": info.title or None, "owner": info.owner or None, "team": info.team or None}
            names[self.of(place._replace(sku=None))] = _meta({"api": place.api} | about, 2)
        return "".join(f"{day} open {name} {self.currency}\n{about}" for name, about in sorted(names.items())) + "\n"

    def asserted(self, day: str, part: _Part) -> str:
        """Balance assertions of all accounts, as they stand when a day begins."""
        balances = {self.expenses: part.whole, self.liability: -part.whole}
        for place, minor in part.sums.items():
            nodes = {self.of(place), self.of(place._replace(sku=None))}
            for name in nodes | ({self.corrections} if place.correction else set()):
                balances[name] = balances.get(name, 0) + minor
        return "".join(
            f"{day} balance {name}  {money.fixed(minor, self.scale)} ~ 0 {self.currency}\n"
            for name, minor in sorted(balances.items())
        )


@dataclass(slots=True, kw_only=True)
class _Rows:
    """Charges as transactions and custom directives, from one table after the other.

    ends: end of a charge period of this month -> the date of its last day. A correction, whose period has another end,
    has the last day of the month. open_, owed: heading of the transaction that is being written, and its sum in
    minor units.
    """

    accounts: _Accounts
    ends: Mapping[str, str]
    last_day: str
    open_: str = field(default="")
    owed: int = field(default=0)

    def written(self, charges: pa.Table) -> str:
        """The text of some charges, in the journal's order; a transaction may go on with the next ones."""
        if not len(charges):
            return ""
        heads = charges.select(["api", "charge_class", *_OF_LINE.values()])
        runs = _runs(heads)
        edges = [*runs.tolist(), len(charges)]
        of_row: Any = np.repeat(np.arange(len(runs)), np.diff(edges))
        billed, quantity = _strings(charges, "billed_cost"), _strings(charges, "quantity")
        priced = billed.is_valid().to_numpy(zero_copy_only=False)[runs].tolist()
        first: Any = pa.array(runs)
        lines = heads.take(first).to_pylist()
        around = [
            self._around(line) if has else self._around_unpriced(line) for line, has in zip(lines, priced, strict=True)
        ]
        headings = [self._heading(line) if has else "" for line, has in zip(lines, priced, strict=True)]
        before, after, end = (
            pa.array(texts, pa.string()).take(pa.array(of_row)) for texts in zip(*around, strict=True)
        )
        details = [_cells(charges.column(name), key) for key, name in _OF_CHARGE.items()]
        bodies = _joined_runs(money.joined([before, pc.coalesce(billed, quantity), after, *details, end], ""), edges)
        digits: Any = pc.replace_substring(billed.fill_null("0"), ".", "")
        sums = money.add_by(of_row, digits.cast(pa.int64()).to_numpy(), len(runs)).tolist()
        out = []
        for heading, body, minor in zip(headings, bodies, sums, strict=True):
            if heading != self.open_ or not heading:
                out += [self.closed(), heading]
                self.open_ = heading
            self.owed += minor
            out.append(body)
        return "".join(out)

    def closed(self) -> str:
        """The posting that ends a transaction, if one is open."""
        if not self.open_:
            return ""
        last = f"  {self.accounts.liability}  {self.accounts.amount(-self.owed)}\n\n"
        self.open_, self.owed = "", 0
        return last

    def _heading(self, line: _Cells) -> str:
        what = ", ".join(filter(None, (line["sku"], line["tier"])))
        text = f"{self._day(line)} * {quoted(_payee(line))} "
        text += f"{quoted(f'Correction: {what}')} #correction\n" if _corrects(line) else f"{quoted(what)}\n"
        return text + _meta({"api": line["api"]} | _about(line), 2)

    def _around(self, line: _Cells) -> tuple[str, str, str]:
        """What stands before and after the amount of a posting, and behind its metadata."""
        account = self.accounts.of(_Place(_corrects(line), line["api"], line["sku"]))
        return f"  {account}  ", f" {self.accounts.currency}\n", ""

    def _around_unpriced(self, line: _Cells) -> tuple[str, str, str]:
        """The same for the quantity of what has no price."""
        before = f'{self._day(line)} custom "unpriced" {quoted(_payee(line))} {quoted(line["meter"] or "")} "'
        return before, f'" {quoted(line["unit"] or "")}\n' + _meta({"api": line["api"]} | _about(line), 4), "\n"

    def _day(self, line: _Cells) -> str:
        return self.ends.get(line["period_end"] or "", self.last_day)


def _corrects(line: _Cells) -> bool:
    return line["charge_class"] == CORRECTION


def _payee(line: _Cells) -> str:
    return "(no API)" if line["api"] is None else line["api"]


def _about(line: _Cells) -> dict[str, str | None]:
    """Metadata of a price line, without what goes without saying."""
    told = {key: line[name] for key, name in _OF_LINE.items()}
    if told["state"] == PRICED:
        told["state"] = None
    if told["contracted-unit-price"] == told["unit-price"]:
        told["contracted-unit-price"] = None
    if not _corrects(line):
        told["price-book"] = told["price-book-version"] = None  # the month's, said where its account is opened
    return told


def _meta(values: _Cells, indent: int) -> str:
    """Metadata lines of what is there."""
    return "".join(f"{' ' * indent}{key}: {quoted(text)}\n" for key, text in values.items() if text is not None)


def _runs(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Where rows begin that differ from the one before."""
    new = np.zeros(len(rows), np.bool_)
    new[0] = True
    for name in rows.column_names:
        codes = records.codes(pa.table({name: _strings(rows, name).dictionary_encode()}), name)[0]
        new[1:] |= codes[1:] != codes[:-1]
    return np.flatnonzero(new)


def _joined_runs(texts: Any, edges: Sequence[int]) -> list[str]:
    """Texts between each two edges, put together."""
    lists: Any = pa.ListArray.from_arrays(pa.array(edges, pa.int32()), texts)
    joined: Any = pc.binary_join(lists, "")
    return list(joined.to_pylist())


def _cells(column: Any, key: str) -> Any:
    """Metadata lines of a column, empty where it is null; each distinct text is quoted once."""
    codes, values = records.codes(pa.table({key: column.cast(pa.string()).dictionary_encode()}), key)
    lines = [*(f"    {key}: {quoted(text)}\n" for text in values), ""]
    place: Any = pa.array(np.where(codes < 0, len(values), codes))
    return pa.array(lines, pa.string()).take(place)


def _strings(table: pa.Table, name: str) -> Any:
    return table.column(name).cast(pa.string()).combine_chunks()
