"""`apicost explain CHARGE_ID`: how a charge came to be, worked out a second time."""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, datetime

from apicost.commands import _months
from apicost.report import explain

DESCRIPTION = """Show how one charge came to be: who bears it, what was measured, which line of the price book and
which tier priced it, how a shared tier was split, and how the cost was rounded. The amount is worked out
a second time from the usage and the price book, by other code than the one that made it, and compared.

CHARGE_ID is from the first column of charges.csv. The ledger and price book must be those that made it."""

EPILOG = """examples:
  apicost explain 38484550ee7ad3531ac1dcf8b926 --month 2026-11 -c apicost.yaml

exit codes: 0 explained, 1 working it out again gave another amount, 2 no such charge or a wrong option,
3 the month has no usage"""


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
    book = sources.priced
    if options.month:
        _months.month_of(options.month, book)
    with _months.open_ledger(sources.ledger) as ledger:
        months = [options.month] if options.month else _months_of(ledger.span())
        seen = False
        for name in months:
            month = _months.month_of(name, book)
            if not options.month and book.without_rate(month.days, month.name):
                continue  # no charge of it can be: its prices in another currency have no rate
            statement = _months.statement_of(ledger, month, book)
            if statement is None:
                continue
            seen = True
            if explanation := explain.explain(statement, options.charge_id):
                _show(explanation, options.json)
                return 0 if explanation.agrees else 1
    if not seen:
        return _months.no_data(options.month or "any month", sources.ledger)
    raise _months.error(
        "CHARGE_ID",
        f"{options.charge_id} is no charge of {', '.join(months)} with price book {book.id} {book.version}",
        "nothing to explain",
        "use the ledger, month and price book of the charges.csv it came from",
    )


def _show(explanation: explain.Explanation, as_json: bool) -> None:
    if as_json:
        data = {"charge_id": explanation.charge_id, "steps": explanation.steps, "agrees": explanation.agrees}
        print(json.dumps(data, ensure_ascii=False, indent=1))
        return
    wide = max(len(what) for what, _ in explanation.steps)
    for what, text in explanation.steps:
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
