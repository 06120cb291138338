"""`apicost explain CHARGE_ID`: how a charge came to be, worked out a second time."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from apicost.commands import _closed, _months
from apicost.core import meter, records
from apicost.core.rating.bill import Bill
from apicost.core.rating.period import Period, utc_text
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.usage_rows import KEYS
from apicost.core.scopes import Scopes
from apicost.problems import InputError
from apicost.report import explain, explain_corrections
from apicost.report.explain import Explanation
from apicost.store.closed import ClosedMonth, closed_months
from apicost.store.query import Ledger

DESCRIPTION = """Show how one charge came to be: who bears it, what was measured, which line of the price book and
which tier priced it, how a shared tier was split, and how the cost was rounded. The amount is worked out
a second time from the usage and the price book, by other code than the one that made it, and compared.

Of a correction it shows what was booked, in which month, what the charge is now, and why the two differ: usage that
came late, a price that was put right, tiers that lie elsewhere, or rounding.

Some of the requests that the charge is for are listed, those with most bytes, while the ledger still has them.

CHARGE_ID is from the first column of charges.csv. A closed month's charges are explained from its folder; others
from the ledger and price book that made them."""

EPILOG = """examples:
  apicost explain 38484550ee7ad3531ac1dcf8b926 --month 2026-11 -c apicost.yaml

exit codes: 0 explained, 1 working it out again gave another amount, 2 no such charge or a wrong option,
3 the month has no usage"""

SAMPLES = 5
LOOKED_THROUGH = 2_000  # exchanges with most bytes, among which those of the charge are looked for
# Keys that exchanges have as usage has them; the others are worked out as the meter does.
_ASKED = ("api", "operation_id", "match_state", "consumer", "route_id", "service_id", "llm_model")


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost explain", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("charge_id", metavar="CHARGE_ID")
    _months.add_options(parser, month=False)
    parser.add_argument("--json", action="store_true", help="the steps as JSON")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"[0-9a-f]{28}", options.charge_id):
        raise _months.error("CHARGE_ID", f"{options.charge_id!r} is not the identity of a charge", "nothing to explain",
                            "copy the 28 digits of the column charge_id of charges.csv")  # fmt: skip
    sources = _months.sources(options)
    if options.month:
        _months.month_of(options.month, sources.book)
    with _months.open_ledger(sources.ledger) as ledger:
        months = closed_months(ledger.folder)
        seen: list[str] = []
        for name in [options.month] if options.month else _where_it_may_be(ledger, months, options.charge_id):
            bill = _bill(ledger, name, sources, asked=bool(options.month))
            if bill is None:
                continue
            seen.append(name)
            if found := _explained(ledger, months, bill, options.charge_id):
                explanation, samples = found
                _show(explanation, samples, options.json)
                return 0 if explanation.agrees else 1
    if not seen:
        return _months.no_data(options.month or "any month", sources.ledger)
    book = sources.priced
    raise _months.error(
        "CHARGE_ID",
        f"{options.charge_id} is no charge of {', '.join(seen)} with price book {book.id} {book.version}",
        "nothing to explain",
        "use the ledger, month and price book of the charges.csv it came from",
    )


def _bill(ledger: Ledger, name: str, sources: _months.Sources, *, asked: bool) -> Bill | None:
    """A month's bill; None where there is none, or where it can't be made and nobody asked for that month."""
    closed = [month for month in closed_months(ledger.folder) if month.month == name]
    month = _closed.month_of(closed[0]) if closed else _months.month_of(name, sources.priced)
    try:
        return _months.bill_of(ledger, month, sources)
    except InputError:
        if asked:
            raise
        return None  # no charge of it can be: its prices in another currency have no rate


def _where_it_may_be(ledger: Ledger, months: Sequence[ClosedMonth], charge_id: str) -> Iterator[str]:
    """The closed month that has a charge; else the months that may, latest first."""
    for closed in months:
        if pc.any(pc.equal(closed.charges(("charge_id",)).column("charge_id"), pa.scalar(charge_id))).as_py():
            yield closed.month
            return
    names = {closed.month for closed in months}
    last = _closed.open_month(months)
    yield from dict.fromkeys([*([last] if last else []), *(n for n in _months_of(ledger.span()) if n not in names)])


def _explained(
    ledger: Ledger, months: Sequence[ClosedMonth], bill: Bill, charge_id: str
) -> tuple[Explanation, list[str]] | None:
    """A charge's explanation, and the requests that it is for; None where the bill has no such charge."""
    statement = bill.statement
    position = statement.find(charge_id)
    if position is not None:
        found = explain.explain(statement, charge_id)
        row = statement.table(position, position + 1).to_pylist()[0]
        return None if found is None else (found, _samples(ledger, row, statement.period, statement.book))
    ids = bill.corrections.column("charge_id").to_pylist()
    if charge_id not in ids:
        return None
    row = bill.corrections.slice(ids.index(charge_id), 1).to_pylist()[0]
    before = [closed for closed in months if closed.month < statement.period.name]
    about = next(c for c in before if len(_closed.about(bill.corrections.slice(ids.index(charge_id), 1),
                                                        _closed.month_of(c))))  # fmt: skip
    then, now = _closed.corrected_from(ledger, months, about, statement)
    lots = [
        explain_corrections.Booked(billing_month=closed.month, charges=_closed.charges_about(closed, about))
        for closed in before
        if closed.month >= about.month
    ]
    found = explain_corrections.explain_correction(row, lots, then, now)
    return found, _samples(ledger, row, now.period, now.book)


def _samples(ledger: Ledger, row: Mapping[str, Any], month: Period, book: PriceBook) -> list[str]:
    """Some of the requests that a charge is for, a line each, or one that says why there is none."""
    if row["match_state"] is None:
        return ["none: no usage bears this charge"]
    texts = {utc_text(start): start for start in month.starts}
    start, end = texts[row["period_start"]], texts[row["period_end"]]
    found = ledger.exchanges(start, end, where={name: row[name] for name in _ASKED}, limit=LOOKED_THROUGH)
    if not len(found):
        return ["none is left: the ledger keeps requests for days, their usage for years"]
    _, keys = meter.keys_of(found, Scopes(book.scopes), bucket_s=60)
    mine = np.ones(len(found), np.bool_)
    for name in KEYS:
        codes, values = keys[name]
        mine &= np.array([value == row[name] for value in values] + [row[name] is None], np.bool_)[codes]
    picked = found.filter(pa.array(mine)).slice(0, SAMPLES)
    if not len(picked):
        return [f"none among the {len(found):,} with most bytes of its API, operation and consumer"]
    return [_exchange(exchange) for exchange in picked.to_pylist()]


def _exchange(row: Mapping[str, Any]) -> str:
    ended = datetime.fromtimestamp(row["ended_unix_ns"] // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wire = {leg: row[f"{leg}_in_wire_bytes"] + row[f"{leg}_out_wire_bytes"] for leg in records.LEGS}
    what = f"{row['method'] or ''} {row['host'] or ''}{row['path'] or ''}".strip()
    if row["kind"] != records.RowKind.EXCHANGE:
        what = "bytes of a connection that no request claims" if not what else f"overhead of {what}"
    status = f", status {row['status']}" if row["status"] > 0 else ""
    named = f", request {row['request_id']}" if row["request_id"] else ""
    return (f"{ended} {what}{status}, {wire['downstream']:,} wire bytes with the client, "
            f"{wire['upstream']:,} with the backend{named}")  # fmt: skip


def _show(explanation: Explanation, samples: Sequence[str], as_json: bool) -> None:
    if as_json:
        data = {"charge_id": explanation.charge_id, "steps": explanation.steps, "samples": samples,
                "agrees": explanation.agrees}  # fmt: skip
        print(json.dumps(data, ensure_ascii=False, indent=1))
        return
    steps = [*explanation.steps, *(("request", text) for text in samples)]
    wide = max(len(what) for what, _ in steps)
    for what, text in steps:
        print(f"{what:<{wide}}  {_one_line(text)}", file=sys.stdout)


def _one_line(text: str) -> str:
    """Text for a terminal: names come from traffic and must not move its cursor or forge a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _months_of(span: tuple[int, int] | None) -> list[str]:
    """Months that a ledger touches, latest first. One more on each side, for time zones."""
    if span is None:
        return []
    first, last = (datetime.fromtimestamp(day, UTC) for day in (span[0] - 86_400, span[1] + 2 * 86_400))
    names, year, month = [], last.year, last.month
    while (year, month) >= (first.year, first.month):
        names.append(f"{year:04}-{month:02}")
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return names
