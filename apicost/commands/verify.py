"""`apicost verify [YYYY-MM]`: closed months held against their checksums, the chain, and a second rating."""

from __future__ import annotations

import argparse
import json
import re
import sys
from fractions import Fraction
from typing import Any

from apicost.commands import _closed, _closing, _months
from apicost.commands._closing import Verified
from apicost.core.rating import money
from apicost.core.rating.bill import minor_of
from apicost.problems import InputError
from apicost.store.catalogue import LedgerError
from apicost.store.closed import ClosedMonth, closed_months
from apicost.store.query import Ledger

DESCRIPTION = """Hold closed months against what they were made from:

  every file has the checksum that the manifest says, the manifest its own, and no file is missing or came later;
  each manifest names the checksum of the one before: no month was exchanged or taken out;
  the frozen usage rated with the frozen price book gives the frozen charges, row by row, and the same totals;
  the corrections in it come out the same from the closed months before it.

With a price book (--prices or apicost.yaml) it also says what the ledger and the book of today would correct of
each month. That is news, not a difference: it is booked in the open month."""

EPILOG = """examples:
  apicost verify 2026-10 -c apicost.yaml
  apicost verify -c apicost.yaml                                 every closed month
  apicost verify 2026-10 --ledger LEDGER --sha256 4be1...        is it still the one that was signed?

exit codes: 0 as it was closed, 1 something differs, 2 no such closed month, or a wrong option"""


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost verify", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("verified", metavar="YYYY-MM", nargs="?", help="a closed month; none is all of them")
    _months.add_options(parser, month=False, named=False)
    parser.add_argument("--sha256", metavar="CHECKSUM", help="the manifest's, as `apicost close` printed it")
    parser.add_argument("--json", action="store_true", help="what was found as JSON on standard output")
    options = parser.parse_args(argv)
    sources = _months.sources(options)
    if options.sha256 and not options.verified:
        raise _months.error("--sha256", "no month is named", "nothing is compared", "add YYYY-MM")
    if options.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", options.sha256):
        raise _months.error("--sha256", f"{options.sha256!r} is not a whole checksum", "nothing is compared",
                            "write all 64 digits that `apicost close` printed")  # fmt: skip
    with _months.open_ledger(sources.ledger) as ledger:
        try:
            months = closed_months(ledger.folder)
        except LedgerError as failure:  # a manifest that can't be read is what this command is to find
            print(json.dumps({"months": [], "problems": [str(failure)]}) if options.json else str(failure))
            return 1
        chosen = [m for m in months if options.verified in (None, m.month)]
        if not chosen:
            raise _months.error(
                options.verified or str(sources.ledger),
                "no such month is closed here" if months else "no month is closed here", "there is nothing to verify",
                f"closed are: {', '.join(m.month for m in months)}" if months else "close one: apicost close YYYY-MM",
            )  # fmt: skip
        found = [_verified(months, closed, options.sha256) for closed in chosen]
        news = _news(ledger, months, sources)
    if options.json:
        told = [_as_data(one) | {"would_correct": news.get(one.month)} for one in found]
        print(json.dumps({"months": told, "problems": []}, ensure_ascii=False, indent=1))
    else:
        for one in found:
            _show(one, news.get(one.month))
    return 1 if any(one.problems for one in found) else 0


def _verified(months: tuple[ClosedMonth, ...], closed: ClosedMonth, wanted: str | None) -> Verified:
    _months.say(f"verifying {closed.month}")
    found = _closing.verify(months, closed)
    if wanted and wanted.lower() != closed.sha256:
        return found.with_problem(f"manifest: its SHA-256 is {closed.sha256}, not {wanted}")
    return found


def _news(ledger: Ledger, months: tuple[ClosedMonth, ...], sources: _months.Sources) -> dict[str, dict[str, Any]]:
    """What the present ledger and price book would correct, by closed month: rows and billed cost."""
    if sources.book is None:
        return {}
    try:
        corrected = _closed.corrections(ledger, months, sources.book)
    except (InputError, LedgerError, ValueError) as failure:
        print(f"apicost: what today's ledger and price book would correct can't be said:\n{failure}", file=sys.stderr)
        return {}
    news = {}
    for closed in months:
        rows = _closed.about(corrected.rows, _closed.month_of(closed))
        cost = sum(minor_of(rows, closed.scale))
        news[closed.month] = {
            "rows": len(rows), "billed_cost": money.fixed(cost, closed.scale), "in": _closed.open_month(months)
        }  # fmt: skip
    return news


def _as_data(found: Verified) -> dict[str, Any]:
    return {
        "month": found.month, "good": not found.problems, "manifest_sha256": found.sha256, "billed_cost": found.total,
        "currency": found.currency, "charges": found.charges, "corrections": found.corrections,
        "problems": list(found.problems),
    }  # fmt: skip


def _show(found: Verified, news: dict[str, Any] | None) -> None:
    count = len(found.problems)
    state = "as it was closed" if not count else f"NOT as it was closed: {count} difference{'s' * (count != 1)}"
    print(f"{found.month}: {state}; {found.total} {found.currency}, {found.charges:,} charges, of which "
          f"{found.corrections:,} corrections; manifest {found.sha256}")  # fmt: skip
    for problem in found.problems:
        print(f"  {problem}")
    if news and news["rows"]:
        sign = "+" if Fraction(news["billed_cost"]) > 0 else ""
        print(f"  today's ledger and price book correct {news['rows']:,} rows of it, {sign}{news['billed_cost']} "
              f"{found.currency}, in {news['in']}")  # fmt: skip
