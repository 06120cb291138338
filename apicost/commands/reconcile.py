"""`apicost reconcile --bill FILE`: what was metered against what the provider billed, cause by cause."""

from __future__ import annotations

import argparse
import re
import sys
from fractions import Fraction
from pathlib import Path

from apicost.catalog import bill_rules, bills
from apicost.commands import _months
from apicost.core.rating import rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.days import keys_needed
from apicost.core.rating.period import utc_text
from apicost.core.reconcile import lines as kinds
from apicost.core.reconcile.bridge import Bridge, bridge
from apicost.core.reconcile.lines import ProviderBill
from apicost.core.reconcile.metered import edge_quantities, edge_spans, metered
from apicost.report import bridge as output
from apicost.store.query import Ledger

DESCRIPTION = """Hold a month's statement against the provider's bill, and say by cause what they differ by.

FILE is a FOCUS cost-and-usage export of any version, or an AWS Cost and Usage Report with the older column names or
the newer: CSV, gzipped CSV or Parquet; a bill in several files is named file by file. RULES says which SKU of the
price book each line is (docs/reconcile.md; specs/reconcile.yaml is a sample).

The bridge goes from metered to billed: timing, scope classification, unattributed and unpriced bytes, tier pooling,
contracts, prices, exchange rate, traffic of other hosts, taxes, credits and the like, lines that no rule maps, and what
remains unexplained. Its rows sum to the difference exactly."""

EPILOG = """examples:
  apicost reconcile --bill cur-2026-11.csv.gz --rules reconcile.yaml --month 2026-11 -c apicost.yaml
  apicost reconcile --bill focus.parquet --rules reconcile.yaml --month 2026-11 --tolerance 0.5% --json

exit codes: 0 within the tolerance, 1 above it, 2 a wrong bill, rules file or option, 3 the month has no usage or the
bill no line of it"""

_TOLERANCE = re.compile(r"(\d{1,15}(?:\.\d{1,12})?)\s*(%?)", re.ASCII)


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost reconcile", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _months.add_options(parser)
    parser.add_argument("--bill", type=Path, nargs="+", required=True, metavar="FILE", help="the provider's bill")
    parser.add_argument("--rules", type=Path, required=True, metavar="RULES.yaml", help="what its lines are")
    parser.add_argument("--tolerance", default="0", metavar="AMOUNT|PCT",
                        help="how much is well: 0.50, or 0.5%% of what is metered (default: 0)")  # fmt: skip
    parser.add_argument("--judge", choices=("difference", "unexplained"), default="difference",
                        help="what the tolerance is for; unexplained leaves out every cause that is known")  # fmt: skip
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument("-o", "--output", type=Path, help="write there instead of to standard output")
    options = parser.parse_args(argv)
    tolerance = _tolerance(options.tolerance)
    sources = _months.sources(options)
    month = _months.month_of(options.month, sources.priced)
    with _months.open_ledger(sources.ledger) as ledger:
        ours = _months.bill_of(ledger, month, sources, sums=rate.sums_needed(sources.priced))
        if ours is None:
            return _months.no_data(options.month, sources.ledger)
        book = ours.statement.book
        rules = bill_rules.load(options.rules, book)
        _months.say(f"reading {', '.join(map(str, options.bill))}")
        theirs = bills.read(options.bill, rules, ours.statement.period)
        if not any(line.when != kinds.ELSEWHERE for line in theirs.lines):
            print(f"apicost: the bill has no line of {month.name}", file=sys.stderr)
            return 3
        found = _bridge(ledger, ours, theirs, rules)
        damaged = ledger.damaged
    for remark in theirs.remarks:
        print(f"note: {remark}", file=sys.stderr)
    for damage in damaged:
        print(f"apicost: part of the ledger could not be read: {damage}", file=sys.stderr)
    amount, percent = tolerance
    judged = output.Judged(
        bridge=found, what=options.judge, tolerance=abs(found.metered) * amount / 100 if percent else amount,
        price_book=f"{book.id} {book.version}", bill_files=tuple(map(str, options.bill)),
        bill_currency=theirs.currency, bill_lines=theirs.count,
    )  # fmt: skip
    write = {"text": output.text, "json": output.as_json, "csv": output.as_csv}[options.format]
    _months.write_text(write(judged), options.output, "the bridge is not written")
    return 0 if judged.within else 1


def _bridge(ledger: Ledger, ours: Bill, theirs: ProviderBill, rules: bill_rules.Rules) -> Bridge:
    """The bridge, with the usage of the hours between the bill's month and ours."""
    statement = ours.statement
    book, period = statement.book, statement.period
    sums = sorted({column for sku in book.skus for column in sku.columns})
    spans = edge_spans(period, theirs.start_unix_s, theirs.end_unix_s)
    usage = []
    for start, end, sign in spans:
        found = ledger.usage([start, end], keys_needed(book), sums=sums)
        if not found.num_rows:
            print(f"note: the ledger has no usage from {utc_text(start)} to {utc_text(end)}, which only one of the "
                  "bill's month and ours has: no timing is counted for it", file=sys.stderr)  # fmt: skip
        usage.append((found, sign))
    month, paid = metered(ours, edge_quantities(book, usage)), rules.paid.get(theirs.currency)
    try:
        return bridge(
            month, theirs.currency, theirs.lines, named=rules.named, groups=rules.groups,
            paid_rate=None if paid is None else Fraction(paid),
        )  # fmt: skip
    except ValueError as failure:
        raise _months.error(
            rules.file, str(failure), "its amounts can't be compared",
            f'add fx: {{{theirs.currency}: "..."}} to the rules, what one unit was paid with in {book.currency}, or a '
            f"rate of {period.name} to the price book",
        ) from None  # fmt: skip


def _tolerance(text: str) -> tuple[Fraction, bool]:
    """An amount, or a percentage. Raises InputError for anything else."""
    found = _TOLERANCE.fullmatch(text.strip())
    if found is None:
        raise _months.error("--tolerance", f"{text!r} is neither an amount nor a percentage", "nothing is compared",
                            "write such as 0.50 or 0.5%")  # fmt: skip
    return Fraction(found[1]), bool(found[2])
