"""`apicost export`: a month's usage or charges as one CSV file."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from apicost.commands import _months
from apicost.core.rating import rate
from apicost.core.rating.period import Period
from apicost.core.rating.usage_rows import KEYS, gather
from apicost.report import export
from apicost.store.query import Ledger

DESCRIPTION = """Write a month's usage or charges as CSV: UTF-8, plain decimals, a fixed order of columns and rows, and
no cell that a spreadsheet takes for a formula. The same ledger gives the same bytes.

  usage     what was measured, by API, operation, route, service, consumer, status class and scope
  charges   what it cost: one row for each of these and each price; needs a price book

Rows are for the month, or for each part of it between two price changes, so that usage and charges match row
by row; `--by day` gives usage by day instead. Without a price book, months and days are those of UTC."""

EPILOG = """examples:
  apicost export usage --month 2026-11 -c apicost.yaml -o usage.csv
  apicost export usage --month 2026-11 -c apicost.yaml --by day -o days.csv
  apicost export charges --month 2026-11 --ledger /var/lib/apicost/ledger --prices prices.yaml -o charges.csv

exit codes: 0 written, 2 an option, configuration or price book is wrong, 3 the month has no usage"""


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost export", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=("usage", "charges"))
    _months.add_options(parser)
    parser.add_argument("--api", metavar="ID", help="only this API's rows")
    parser.add_argument("--by", choices=("month", "day"), default="month", help="grain of usage (default: month)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the CSV file to write")
    options = parser.parse_args(argv)
    if options.what == "charges" and options.by != "month":
        raise _months.error("--by", "charges are by month", "nothing is written", "remove it, or export usage")
    sources = _months.sources(options)
    book = sources.priced if options.what == "charges" else sources.book
    month = _months.month_of(options.month, book)
    rows: int | None = None
    with _months.open_ledger(sources.ledger) as ledger:
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            if options.what == "charges":
                needed = rate.sums_needed(sources.priced)
                if (bill := _months.bill_of(ledger, month, sources, sums=needed)) is not None:
                    rows = export.write_charges(bill, options.output, sources.apis, options.api)
            elif options.by == "day":
                rows = _by_day(ledger, month, options.output, options.api)
            elif (usage := _months.read_rows(ledger, month, book)) is not None:
                rows = export.write_usage([usage], month, options.output, options.api)
        except OSError as failure:
            raise _months.error(str(options.output), f"can't be written: {failure.strerror}", "there is no export",
                                "name a file that can be written, with space left") from None  # fmt: skip
        for damage in ledger.damaged:
            print(f"apicost: part of the ledger could not be read: {damage}", file=sys.stderr)
    if rows is None:
        return _months.no_data(month.name, sources.ledger)
    print(f"{options.output}: {rows:,} rows", file=sys.stderr)
    return 0


def _by_day(ledger: Ledger, month: Period, output: Path, api: str | None) -> int | None:
    """Write usage one day after the other, so that a month of any size fits; None where there is none."""
    source = _months.source_of(ledger, month)
    if not source.usage((month.start_unix_s, month.end_unix_s), ()).num_rows:
        return None
    days = (gather(source.usage(edges, KEYS), month) for edges in itertools.pairwise(month.starts))
    return export.write_usage(days, month, output, api)
