"""A month's bill as a Beancount journal: an accountant's programs read it, and `bean-check` proves its sums.

Rules of this file:
- Every charge that has a cost is one posting with its charge id; one transaction holds those of an API and price line,
  and credits their sum to the month's liability. A charge without a cost is a custom directive with its quantity.
- All accounts lie beneath the month, so that journals of several months can be included in one ledger.
- Figures asserted at the month's end come from the statement's own totals, not from the postings. Their tolerance is
  written as 0, and so is the file's: one missing cent fails.
- Account parts are made from names by `account_part`, which never makes one of two. Text keeps every character that can
  be seen; the others are written as \\u{HEX}, so that no name moves a line or the cursor.
- Exact figures are text: Beancount rounds negative numbers to 28 digits.
"""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apicost import durable
from apicost.core import records
from apicost.core.rating import money
from apicost.core.rating.bill import PIECE_ROWS, Bill, minor_of
from apicost.core.rating.period import utc_text
from apicost.core.rating.statement import CORRECTION, Statement
from apicost.report.export import ApiInfo, keys_of, with_owners

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
_CURRENCY = re.compile(r"[A-Z][A-Z0-9'._-]*[A-Z0-9]")
_PLAIN = frozenset(string.ascii_letters + string.digits)
# Categories of Unicode: control, format (zero width, direction), surrogates, line and paragraph separators.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def write(bill: Bill, path: Path, apis: Mapping[str, ApiInfo], api: str | None = None) -> int:
    """Write a month's journal, of one API if named, whole or not at all; returns the number of charges.

    Raises OSError (disk full, read-only folder).
    """

    def fill(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.writelines(pieces(bill, apis, api))

    durable.write_file(path, fill)
    return len(_statement_of(bill, api)) + len(_corrections_of(bill, api))


def pieces(bill: Bill, apis: Mapping[str, ApiInfo], api: str | None = None) -> Iterator[bytes]:
    """A month's journal in UTF-8, piece by piece: the same bytes for the same bill.

    apis: titles and owners of APIs, for their accounts and for what no tag rule of the book says.
    api: only this API's charges and corrections, and sums of these alone.
    Raises ValueError for a currency that Beancount can't name.
    """
    book, period = bill.statement.book, bill.statement.period
    if not _CURRENCY.fullmatch(book.currency):
        raise ValueError(f"currency {book.currency!r} is none that Beancount can name")
    statement, corrections = _statement_of(bill, api), _corrections_of(bill, api)
    usage_sums = _sums(statement)
    correction_sums: dict[_Place, int] = {}
    for place, minor in zip(
        zip(*(corrections.column(name).to_pylist() for name in ("api", "sku", "billed_cost")), strict=True),
        minor_of(corrections, book.statement_scale), strict=True,
    ):  # fmt: skip
        if place[2] is not None:
            correction_sums[place[:2]] = correction_sums.get(place[:2], 0) + minor
    whole = bill.total_minor if api is None else sum(usage_sums.values()) + sum(correction_sums.values())
    accounts = _Accounts(month=period.name, currency=book.currency, scale=book.statement_scale)
    yield _head(bill, api, whole, len(statement) + len(corrections)).encode()
    yield accounts.opened(period.days[0].isoformat(), usage_sums, correction_sums, apis).encode()
    ends = {utc_text(start): day.isoformat() for start, day in zip(period.starts[1:], period.days, strict=True)}
    last_day = period.days[-1].isoformat()
    rows = _Rows(accounts=accounts, ends=ends, last_day=last_day)
    tables = (statement.table(at, min(at + PIECE_ROWS, len(statement))) for at in range(0, len(statement), PIECE_ROWS))
    parts = (corrections.slice(at, PIECE_ROWS) for at in range(0, len(corrections), PIECE_ROWS))
    for table in itertools.chain(tables, parts):
        yield rows.written(with_owners(table, apis, book.tags)).encode()
    yield rows.closed().encode()
    after = (period.days[-1] + timedelta(days=1)).isoformat()
    yield accounts.asserted(after, usage_sums, correction_sums, whole).encode()


def account_part(name: str) -> str:
    """A name as one part of an account, legal in Beancount and never that of another name.

    Letters, digits and single hyphens stand as they are, the first letter in upper case; any other character is
    --HEX-. At the end `--` says that the name itself begins with a capital, `--x` that an X was put before a name that
    begins with something else than a letter or digit.
    """
    if not name or name[0] not in _PLAIN:
        return _escaped("X" + name) + "--x"
    if name[0].isupper():
        return _escaped(name) + "--"
    return _escaped(name[0].upper() + name[1:])


def _escaped(name: str) -> str:
    following = [*name[1:], ""]
    return "".join(
        c if c in _PLAIN or (c == "-" and after in _PLAIN) else f"--{ord(c):x}-"
        for c, after in zip(name, following, strict=True)
    )


def shown(text: str) -> str:
    """Text with every character that can't be seen as \\u{HEX}; two texts are never shown alike."""
    text = text.replace("\\u{", "\\u{5c}u{")
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _UNSEEN else c for c in text)


def quoted(text: str) -> str:
    """A Beancount string."""
    return '"' + shown(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


# API and SKU, null for none.
_Place = tuple[str | None, str | None]


def _statement_of(bill: Bill, api: str | None) -> Statement:
    """The month's statement, or an API's part of it, with charges by API, then line, then key."""
    statement = bill.statement
    codes, values = records.codes(statement.keys, "api")
    rank = np.array([*np.argsort(np.argsort(np.array(values, object))), -1] if values else [-1], np.int32)[codes]
    chosen = np.arange(len(statement)) if api is None else np.flatnonzero(keys_of(statement.keys, api)[statement.key])
    key, line = statement.key[chosen], statement.line[chosen]
    order = chosen[np.lexsort((key, line, rank[key]))]
    return replace(
        statement, key=statement.key[order], line=statement.line[order], quantity=statement.quantity[order],
        billed_minor=statement.billed_minor[order],
    )  # fmt: skip


def _corrections_of(bill: Bill, api: str | None) -> pa.Table:
    """The corrections, or those of an API, with the rows of one API and price line beside each other."""
    rows = bill.corrections if api is None else bill.corrections.filter(pa.array(keys_of(bill.corrections, api)))
    names = ["api", *_OF_LINE.values(), "charge_id", *_OF_CHARGE.values()]
    texts = [["" if text is None else f" {text}" for text in rows.column(name).to_pylist()] for name in names]
    sorting = list(zip(*texts, range(len(rows)), strict=True))
    return rows.take(pa.array([row[-1] for row in sorted(sorting)], pa.int64()))


def _sums(statement: Statement) -> dict[_Place, int]:
    """Billed cost of each API and SKU that has a price, in minor units."""
    lines = len(statement.lines) or 1
    codes, values = records.codes(statement.keys, "api")
    cells, position = np.unique(codes[statement.key].astype(np.int64) * lines + statement.line, return_inverse=True)
    sums: dict[_Place, int] = {}
    for cell, minor in zip(
        cells.tolist(), money.add_by(position, statement.billed_minor, len(cells)).tolist(), strict=True
    ):
        code, number = divmod(cell, lines)
        if statement.lines[number].price is not None:
            place = (None if code < 0 else values[code], statement.lines[number].sku)
            sums[place] = sums.get(place, 0) + minor
    return sums


def _head(bill: Bill, api: str | None, whole: int, charges: int) -> str:
    statement = bill.statement
    book, period = statement.book, statement.period
    about = f"{period.name}" if api is None else f"{period.name}, API {shown(api)} alone"
    said = "closed: these figures never change" if bill.closed else "not closed: these figures may change"
    return f"""\
; What APIs cost in {about} ({period.time_zone}), by price book {shown(book.id)} {shown(book.version)}.
; {charges} charges, {money.fixed(whole, book.statement_scale)} {book.currency}; the month is {said}.
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

    def of(self, api: str | None, sku: str | None, correction: bool) -> str:
        """The account of an API, or of one SKU of it."""
        node = self.corrections if correction else self.expenses
        node += ":No-API" if api is None else f":API:{account_part(api)}"
        return node if sku is None else f"{node}:{account_part(sku)}"

    def amount(self, minor: int) -> str:
        return f"{money.fixed(minor, self.scale)} {self.currency}"

    def opened(
        self, day: str, usage: Mapping[_Place, int], corrections: Mapping[_Place, int], apis: Mapping[str, ApiInfo]
    ) -> str:
        """Open directives of all accounts that are posted to or asserted."""
        names = {self.expenses: "", self.liability: ""}
        if corrections:
            names[self.corrections] = ""
        for sums, correction in ((usage, False), (corrections, True)):
            for api, sku in sums:
                info = apis.get(api or "", ApiInfo())
                about = {"api": api, "title": info.title, "owner": info.owner, "team": info.team}
                names[self.of(api, None, correction)] = _meta(about, 2)
                if sku is not None:
                    names[self.of(api, sku, correction)] = _meta({"sku": sku}, 2)
        return "".join(f"{day} open {name} {self.currency}\n{about}" for name, about in sorted(names.items())) + "\n"

    def asserted(self, day: str, usage: Mapping[_Place, int], corrections: Mapping[_Place, int], whole: int) -> str:
        """Balance assertions at the start of the day after the month."""
        balances = {self.expenses: whole, self.liability: -whole}
        if corrections:
            balances[self.corrections] = sum(corrections.values())
        for sums, correction in ((usage, False), (corrections, True)):
            for (api, sku), minor in sums.items():
                for name in {self.of(api, None, correction), self.of(api, sku, correction)}:
                    balances[name] = balances.get(name, 0) + minor
        return "".join(
            f"{day} balance {name}  {money.fixed(minor, self.scale)} ~ 0 {self.currency}\n"
            for name, minor in sorted(balances.items())
        )


@dataclass(slots=True, kw_only=True)
class _Rows:
    """Charges as transactions and custom directives, from one table after the other.

    ends: end of a charge period -> the date of its last day. A correction is of another period: it has the last day
    of this month. open_, owed: heading of the transaction that is being written, and its sum in minor units.
    """

    accounts: _Accounts
    ends: Mapping[str, str]
    last_day: str
    open_: str = field(default="")
    owed: int = field(default=0)

    def written(self, charges: pa.Table) -> str:
        """The text of some charges, those of one API and line beside each other; a transaction may go on in the next."""
        runs = _runs([charges.column(name) for name in ("api", "charge_class", *_OF_LINE.values())])
        if not len(runs):
            return ""
        of_row = np.repeat(np.arange(len(runs)), np.diff([*runs, len(charges)]))
        lines = charges.select(["api", "charge_class", *_OF_LINE.values()]).take(pa.array(runs)).to_pylist()
        billed = _strings(charges, "billed_cost")
        priced = np.array(billed.is_valid())[runs]
        headings = [self._heading(line) if has else "" for line, has in zip(lines, priced.tolist(), strict=True)]
        before = [self._before(line) if has else self._unpriced(line) for line, has in zip(lines, priced, strict=True)]
        after = [
            f" {self.accounts.currency}\n" if has else f'" {quoted(line["unit"])}\n' + _meta(_about(line), 2)
            for line, has in zip(lines, priced.tolist(), strict=True)
        ]
        texts = money.joined(
            [
                pa.array(before).take(pa.array(of_row)),
                pc.coalesce(billed, _strings(charges, "quantity")),
                pa.array(after).take(pa.array(of_row)),
                *(_cells(charges.column(name), key) for key, name in _OF_CHARGE.items()),
            ],
            "",
        )
        bodies = pc.binary_join(pa.ListArray.from_arrays(pa.array([*runs, len(charges)], pa.int32()), texts), "")
        digits = pc.replace_substring(billed.fill_null("0"), ".", "").cast(pa.int64())
        sums = money.add_by(of_row, digits.to_numpy(), len(runs)).tolist()
        out = []
        for heading, body, minor in zip(headings, bodies.to_pylist(), sums, strict=True):
            if heading != self.open_ or not heading:
                out += [self.closed(), heading]
                self.open_ = heading
            self.owed += minor
            out.append(body)
            if not heading:
                out.append("\n")
        return "".join(out)

    def closed(self) -> str:
        """The posting that ends a transaction, if one is open."""
        if not self.open_:
            return ""
        last = f"  {self.accounts.liability}  {self.accounts.amount(-self.owed)}\n\n"
        self.open_, self.owed = "", 0
        return last

    def _heading(self, line: Mapping[str, str | None]) -> str:
        api, corrects = line["api"], line["charge_class"] == CORRECTION
        payee = "(no API)" if api is None else api
        what = ", ".join(filter(None, (line["sku"], line["tier"])))
        narration = f"Correction: {what}" if corrects else what
        tag = " #correction" if corrects else ""
        return f"{self._day(line)} * {quoted(payee)} {quoted(narration)}{tag}\n" + _meta({"api": api} | _about(line), 2)

    def _before(self, line: Mapping[str, str | None]) -> str:
        return f"  {self.accounts.of(line['api'], line['sku'], line['charge_class'] == CORRECTION)}  "

    def _unpriced(self, line: Mapping[str, str | None]) -> str:
        return (
            f'{self._day(line)} custom "unpriced" {quoted(line["api"] or "(no API)")} {quoted(line["meter"] or "")} "'
        )

    def _day(self, line: Mapping[str, str | None]) -> str:
        corrects = line["charge_class"] == CORRECTION
        return self.last_day if corrects else self.ends.get(line["period_end"] or "", self.last_day)


def _about(line: Mapping[str, str | None]) -> dict[str, str | None]:
    return {key: line[name] for key, name in _OF_LINE.items()}


def _meta(values: Mapping[str, str | None], indent: int) -> str:
    """Metadata lines of what is there."""
    return "".join(f"{' ' * indent}{key}: {quoted(text)}\n" for key, text in values.items() if text)


def _runs(columns: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Where rows begin that differ from the one before."""
    new = np.zeros(len(columns[0]), np.bool_)
    new[:1] = True
    for column in columns:
        text = column.cast(pa.string()).dictionary_encode()
        codes = records.codes(pa.table({"text": text}), "text")[0]
        new[1:] |= codes[1:] != codes[:-1]
    return np.flatnonzero(new)


def _cells(column: Any, key: str) -> Any:
    """Metadata lines of a column, empty where it is null; each distinct text is quoted once."""
    texts = column.cast(pa.string()).dictionary_encode().combine_chunks()
    if isinstance(texts, pa.ChunkedArray):
        return pa.array([], pa.string())
    lines = pa.array([f"    {key}: {quoted(text)}\n" for text in texts.dictionary.to_pylist()], pa.string())
    return lines.take(texts.indices).fill_null("")


def _strings(table: pa.Table, name: str) -> Any:
    return table.column(name).cast(pa.string()).combine_chunks()
