"""The two exports, usage and charges: what every figure of a report can be added up from.

Rules of this file:
- Columns have a fixed order; new ones are added at the end of their list.
- Rows are sorted by key, then day or price line: the same ledger gives the same bytes.
- Usage has one row per key and charge period: the month, or each part of it between two price changes.
  On request, one per calendar day (of the book's time zone; UTC without a book).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from apicost.core import records
from apicost.core.rating import money, tags
from apicost.core.rating.bill import Bill, BillInLots
from apicost.core.rating.period import Period, utc_text
from apicost.core.rating.pricebook import TAGS, TagRule
from apicost.core.rating.statement import CHARGE, Statement
from apicost.core.rating.usage_rows import KEYS, UsageRows
from apicost.report import csvfile

PIECE_ROWS = 1 << 15  # written in pieces: about 30 MB of text at a time

OWNERS = ("owner", "team", "tags", "cost_center")
_CHARGE = tuple(column.name for column in CHARGE if column.name not in OWNERS)
_FIRST = _CHARGE.index("price_book_version") + 1  # the columns that the first exports had, then owners
CHARGE_COLUMNS = (*_CHARGE[:_FIRST], *OWNERS, *_CHARGE[_FIRST:])
_LEG_SUMS = tuple(
    f"{leg}_{way}_{kind}_bytes" for leg in records.LEGS for kind in ("wire", "app") for way in ("in", "out")
)
_MORE_SUMS = tuple(
    column.name for column in records.USAGE_SUMS
    if column.name not in (*_LEG_SUMS, "calls", "exact_bytes", "aligned_bytes", "apportioned_bytes")
)  # fmt: skip
USAGE_COLUMNS = (
    "period_start", "api", "operation_id", "method", "path_template", "route_id", "service_id", "consumer",
    "status_class", "scope", "calls", *_LEG_SUMS, "exact_bytes", "aligned_bytes", "apportioned_bytes",
    "period_end", "match_state", "upstream_scope", "llm_model", *_MORE_SUMS,
)  # fmt: skip
USAGE_COUNTS = frozenset(("calls", *_LEG_SUMS, "exact_bytes", "aligned_bytes", "apportioned_bytes", *_MORE_SUMS))

Seen = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiInfo:
    """Whose an API is; from the configuration."""

    title: str = ""
    owner: str = ""
    team: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


def write_charges(
    bill: Bill | BillInLots, path: Path, apis: Mapping[str, ApiInfo], api: str | None = None, seen: Seen | None = None
) -> int:
    """Write a month's charges and corrections, of one API if named; returns the number of rows.

    seen: called with the rows written so far.
    """

    def pieces() -> Iterator[tuple[csvfile.Bytes, int]]:
        for part in bill.parts():
            yield from _charge_pieces(part.statement, apis, api)
            yield from _correction_pieces(part, apis, api)
            del part  # before the next one is made

    return _write(path, CHARGE_COLUMNS, pieces(), seen)


def write_usage(
    usage: Iterable[UsageRows], period: Period, path: Path, api: str | None = None, seen: Seen | None = None
) -> int:
    """Write gathered usage, one lot after the other, of one API if named; returns the number of rows.

    seen: as in `write_charges`.
    """

    def pieces() -> Iterator[tuple[csvfile.Bytes, int]]:
        for lot in usage:
            for table in usage_tables(lot, period, api):
                yield csvfile.encode(table), len(table)
            del lot  # before the next one is made

    return _write(path, USAGE_COLUMNS, pieces(), seen)


def keys_of(keys: pa.Table, api: str) -> np.ndarray:
    """Which keys belong to an API."""
    codes, values = records.codes(keys, "api")
    return codes == values.index(api) if api in values else np.zeros(len(codes), np.bool_)


def _write(path: Path, names: tuple[str, ...], pieces: Iterable[tuple[csvfile.Bytes, int]], seen: Seen | None) -> int:
    count = 0

    def counted() -> Iterator[csvfile.Bytes]:
        nonlocal count
        for piece, rows in pieces:
            count += rows
            yield piece
            if seen:
                seen(count)

    csvfile.write_lines(path, names, counted())
    return count


def _charge_pieces(
    statement: Statement, apis: Mapping[str, ApiInfo], api: str | None
) -> Iterator[tuple[csvfile.Bytes, int]]:
    """The lines of the charges' CSV: what `csvfile.encode` makes of `with_owners(statement.table(...))`, but
    each key's and each price line's cells are made once, not once per charge."""
    first, last = 0, len(statement)
    if api is not None:  # charges are sorted by API first: its own lie together
        mine = np.flatnonzero(keys_of(statement.keys, api)[statement.key])
        first, last = (int(mine[0]), int(mine[-1]) + 1) if len(mine) else (0, 0)
    layout = _layout(statement)
    keys = with_owners(statement.keys, apis, statement.book.tags)
    coded = {name: csvfile.coded(keys.column(name), name) for name in (*KEYS, *OWNERS)}
    for start in range(first, last, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, last)
        key, line = statement.key[start:stop], statement.line[start:stop]
        low, high = int(key[0]), int(key[-1]) + 1
        amounts, place = statement.amounts(start, stop)
        parts: list[tuple[Any, np.ndarray]] = []
        for names, of_line in layout:
            if not names:
                parts.append((of_line, line))
            elif names == ("charge_id",):  # the line's half is of the line before it
                parts.append((statement.key_ids(statement.keys.slice(low, high - low)), key - low))
            elif names[0] in amounts:
                parts.append((amounts[names[0]], place))
            else:
                parts.append((csvfile.join([_taken(*coded[name], low, high) for name in names]), key - low))
        yield csvfile.interleave(parts), stop - start


def _taken(texts: Any, code: Any, low: int, high: int) -> Any:
    return texts.take(pa.array(code[low:high]))


def _layout(statement: Statement) -> list[tuple[tuple[str, ...], Any]]:
    """The parts of a charge's row from left to right: texts of each price line, with all commas and the line's end,
    and between them the columns that are of the key, or one that is the charge's own."""
    table = statement.line_table()
    nothing = pa.array([""] * len(statement.lines), pa.string())
    parts: list[tuple[tuple[str, ...], Any]] = [((), statement.line_ids()), (("charge_id",), None)]
    cells = [nothing]
    for kind, group in itertools.groupby(CHARGE_COLUMNS[1:], key=lambda name: _kind(name, table.column_names)):
        names = tuple(group)
        if kind == "line":
            cells += [csvfile.cells(table.column(name), name) for name in names]
            continue
        for more in [names] if kind == "key" else [(name,) for name in names]:
            parts += [((), csvfile.join([*cells, nothing])), (more, None)]
            cells = [nothing]
    ends = pa.array(["\n"] * len(statement.lines), pa.string())
    return [*parts, ((), money.joined([csvfile.join(cells), ends], ""))]


def _correction_pieces(bill: Bill, apis: Mapping[str, ApiInfo], api: str | None) -> Iterator[tuple[bytes, int]]:
    rows = bill.corrections if api is None else bill.corrections.filter(pa.array(keys_of(bill.corrections, api)))
    for start in range(0, len(rows), PIECE_ROWS):
        piece = with_owners(rows.slice(start, PIECE_ROWS), apis, bill.statement.book.tags)
        yield csvfile.encode(piece.select(list(CHARGE_COLUMNS))), len(piece)


def _kind(name: str, of_line: Collection[str]) -> str:
    if name in of_line:
        return "line"
    return "key" if name in KEYS or name in OWNERS else "own"


def with_owners(charges: pa.Table, apis: Mapping[str, ApiInfo], rules: Sequence[TagRule] = ()) -> pa.Table:
    """Charges, or their keys, with owner, team and cost centre, and the tags (name=value;...) of their API.

    rules: the price book's; what none of them tags has what the configuration says of its API.
    """
    tagged = tags_of(charges, apis, rules)
    codes, values = records.codes(charges, "api")
    infos = [apis.get(name, ApiInfo()) for name in values]
    texts = [";".join(f"{k}={v}" for k, v in sorted(info.tags.items())) for info in infos]
    known = sorted({text for text in texts if text})
    code = np.array([known.index(text) if text else -1 for text in texts] + [-1], np.int32)
    charges = charges.drop_columns([name for name in OWNERS if name in charges.column_names])
    for name in OWNERS:
        column = tagged.column(name) if name in TAGS else records.text(code[codes], known)
        charges = charges.append_column(name, column)
    return charges


def tags_of(keys: pa.Table, apis: Mapping[str, ApiInfo], rules: Sequence[TagRule]) -> pa.Table:
    """Owner, team and cost centre of each key: by the price book's rules, else by the API's configuration."""
    defaults = {
        name: {"owner": info.owner, "team": info.team, "cost_center": info.tags.get("cost_center", "")}
        for name, info in apis.items()
    }
    return tags.of_keys(keys, rules, defaults)


def usage_tables(usage: UsageRows, period: Period, api: str | None = None) -> Iterator[pa.Table]:
    """Gathered usage as tables of USAGE_COLUMNS, of one API if named."""
    rows = np.arange(len(usage.key)) if api is None else np.flatnonzero(keys_of(usage.keys, api)[usage.key])
    texts = [utc_text(start) for start in period.starts]
    for start in range(0, len(rows), PIECE_ROWS):
        picked = rows[start : start + PIECE_ROWS]
        keys = usage.keys.take(usage.key[picked])
        day = usage.day[picked].astype(np.int32)
        ends = np.array([*usage.cuts[1:], len(period.days)], np.int32)[np.searchsorted(usage.cuts, day)]
        columns = {
            "period_start": records.text(day, texts),
            "period_end": records.text(ends, texts),
            **{name: keys.column(name) for name in KEYS},
            **{name: pa.array(values[picked]) for name, values in usage.sums.items()},
        }
        yield pa.table({name: columns[name] for name in USAGE_COLUMNS})
