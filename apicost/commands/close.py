"""`apicost close YYYY-MM`: a month as finance signs it, written once and for all."""

from __future__ import annotations

import argparse
import json
import sys
import time

from apicost.commands import _closing, _months

DESCRIPTION = """Close a month: its usage by day, its charges, the price book and a manifest with checksums of all of
them and of the month closed before are written to LEDGER/closed/YYYY-MM, all at once. From then on every command
shows the month from this folder. Usage that comes late and prices that are put right are corrections in the month
that is open: the first after the last closed one. No command opens a closed month again.

Months are closed in order, without a gap. A month is not closed before it has ended, while an exchange rate in it
is not locked, or while a part of the ledger can't be read.

Keep the checksum that is printed, in the minutes or a mail: with it anybody can tell that a month is still the one
that was signed (apicost verify YYYY-MM --sha256 CHECKSUM)."""

EPILOG = """examples:
  apicost close 2026-10 -c apicost.yaml
  apicost close 2026-10 --ledger /var/lib/apicost/ledger --prices prices.yaml

exit codes: 0 closed, 2 the month can't be closed (nothing is written), or a wrong option"""


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost close", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("closing", metavar="YYYY-MM", help="calendar month of the price book's time zone")
    _months.add_options(parser, month=False, named=False)
    parser.add_argument("--json", action="store_true", help="the manifest's figures as JSON on standard output")
    options = parser.parse_args(argv)
    sources = _months.sources(options)
    book = sources.priced
    name = _months.month_of(options.closing, book, place="YYYY-MM").name
    with _months.open_ledger(sources.ledger) as ledger:
        closed = _closing.close(ledger, name, book, sources.apis, sources.focus, now_unix_s=int(time.time()))
    totals = closed.manifest["totals"]
    if options.json:
        told = {"month": name, "manifest_sha256": closed.sha256, "folder": str(closed.folder), "totals": totals}
        print(json.dumps(told, indent=1))
        return 0
    rows = totals["rows"]
    print(f"{name} is closed: {closed.folder}")
    print(f"total        {totals['billed_cost']} {closed.currency}")
    print(f"charges      {sum(rows.values()) - rows['corrections']:,}")
    print(
        f"corrections  {rows['corrections']:,}, {totals['billed_cost_of_corrections']} {closed.currency} of the total"
    )
    print(f"price book   {book.id} {book.version}")
    print(f"manifest     {closed.sha256}")
    if totals["calls"] == 0:
        print(f"apicost: the ledger has no usage in {name}", file=sys.stderr)
    return 0
