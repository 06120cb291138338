"""`apicost export`: a month's usage or charges as one CSV file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apicost.commands import _months
from apicost.core.usage_rows import gather
from apicost.report import export

DESCRIPTION = """Write a month's usage or charges as CSV: UTF-8, plain decimals, a fixed order of columns and rows, and
no cell that a spreadsheet takes for a formula. The same ledger gives the same bytes.

  usage     what was measured, by day and by API, operation, route, service, consumer, status class and scope
  charges   what it cost: one row for each of these and each price; needs a price book

Without a price book, usage is by days of UTC."""

EPILOG = """examples:
  apicost export usage --month 2026-11 -c apicost.yaml -o usage.csv
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
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the CSV file to write")
    options = parser.parse_args(argv)
    sources = _months.sources(options)
    book = sources.priced if options.what == "charges" else sources.book
    month = _months.month_of(options.month, book)
    with _months.open_ledger(sources.ledger) as ledger:
        usage = _months.read_usage(ledger, month)
        if usage is None:
            return _months.no_data(month.name, sources.ledger)
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            if options.what == "usage":
                rows = export.write_usage(gather(usage, month), month, options.output, options.api)
            else:
                statement = _months.rated(usage, month, sources.priced)
                rows = export.write_charges(statement, options.output, sources.apis, options.api)
        except OSError as failure:
            raise _months.error(str(options.output), f"can't be written: {failure.strerror}", "there is no export",
                                "name a file that can be written, with space left") from None  # fmt: skip
        for damage in ledger.damaged:
            print(f"apicost: part of the ledger could not be read: {damage}", file=sys.stderr)
    print(f"{options.output}: {rows:,} rows", file=sys.stderr)
    return 0
