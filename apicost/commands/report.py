"""`apicost report`: the month as a page to forward, and the CSV files that its figures come from."""

from __future__ import annotations

import argparse
import sys
from datetime import date, timedelta
from pathlib import Path

from apicost import durable
from apicost.commands import _conformance, _months, _terminal
from apicost.core.rating import period
from apicost.core.rating.bill import Bill
from apicost.core.rating.period import Period
from apicost.core.rating.rate import WIRE_BYTES
from apicost.core.rating.statement import Statement
from apicost.core.rating.usage_rows import SUMS, UsageRows, gather
from apicost.problems import InputError
from apicost.report import csvfile, export, pdf
from apicost.report.conformance import page
from apicost.report.conformance.formats import render as render_findings
from apicost.report.conformance.outcome import Outcome, as_data
from apicost.report.month import before, monthly, render, words
from apicost.report.month.before import Before
from apicost.report.month.forecast import DayQuantity
from apicost.report.tables import charges, summary, xlsx
from apicost.store.closed import closed_month
from apicost.store.query import Ledger

DESCRIPTION = """Write what a month cost, by API, operation, consumer and day.

Files in the folder of --out (one folder per month: they are overwritten):
  report.html   one page, self-contained, printable
  charges.csv   every charge: bearer, SKU, quantity, unit price, list cost, billed cost
  usage.csv     the usage they were made from
  days.csv      the cost by day
  findings.csv  what the traffic does that the OpenAPI documents do not say (with -c apicost.yaml)
  report.pdf    the same page for A4 (--format pdf)
  charges.xlsx  the charges as a workbook, a sheet per API (--format xlsx)
  report.json   the page's figures for programs (--format json)

The month is one of the price book's time zone, held beside the month before; one that has not ended is forecast
to its end. A running daemon is not disturbed."""

EPILOG = """examples:
  apicost report --month 2026-11 -c apicost.yaml --out reports/2026-11
  apicost report --month 2026-11 --ledger /var/lib/apicost/ledger --prices prices.yaml --api shop --out shop-2026-11

exit codes: 0 written, 2 an option, configuration or price book is wrong, 3 the month has no usage"""

HOUR_S = 3_600
FORMATS = ("html", "pdf", "csv", "xlsx", "json")


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost report", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _months.add_options(parser)
    parser.add_argument("--api", metavar="ID", help="only this API's part of the statement")
    parser.add_argument("--as-of", metavar="YYYY-MM-DD",
                        help="forecast the month's end from the days to this one (default: the last complete day "
                        "with data, where the data end before the month)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files; made if needed")
    parser.add_argument(
        "--format", default="html,csv", metavar="LIST", help=f"of {','.join(FORMATS)} (default: html,csv)"
    )
    options = parser.parse_args(argv)
    formats = [name.strip() for name in options.format.split(",") if name.strip()]
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise _months.error(
            "--format", f"unknown: {', '.join(unknown)}", "nothing is written", f"use {','.join(FORMATS)}"
        )
    as_of = _day(options.as_of)
    sources = _months.sources(options)
    book = sources.priced
    month = _months.month_of(options.month, book)
    with _months.open_ledger(sources.ledger) as ledger:
        # The month before first: nothing of it but what is compared is kept.
        compared = _before(ledger, month, sources, options.api)
        bill = _months.bill_of(ledger, month, sources)
        if bill is None:
            return _months.no_data(month.name, sources.ledger)
        if options.api is not None and not _has(bill, options.api):
            print(f"apicost: API {options.api!r} has no usage in {month.name}", file=sys.stderr)
            return 3
        daily = _months.read_days(ledger, month, bill.statement.book)
        complete = None if bill.closed else _complete_days(ledger, month, daily, as_of)
        figures = monthly.figures(
            bill,
            daily,
            apis=sources.apis,
            completeness=_months.completeness(ledger, month) or None,
            before=compared,
            damaged=[str(damage) for damage in ledger.damaged],
            api=options.api,
            complete_days=complete,
            past=[] if complete is None else _day_quantities(ledger, _earlier(month), options.api),
        )
        found = _findings(ledger, sources, bill.statement, options.api)
    written = write(bill, figures, options.out, formats, found)
    print(words.summary(figures), file=sys.stderr)
    for path in written:
        print(path)
    return 0


def _day(text: str | None) -> date | None:
    """The day of --as-of. Raises InputError where it is none."""
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise _months.error("--as-of", f"{text!r} is not a day", "nothing is written",
                            "write YYYY-MM-DD, such as 2026-11-22") from None  # fmt: skip


def _has(bill: Bill, api: str) -> bool:
    return any(export.keys_of(keys, api).any() for keys in (bill.statement.keys, bill.corrections))


def _before(ledger: Ledger, month: Period, sources: _months.Sources, api: str | None) -> Before | None:
    """The month before, as far as the report compares; None where there is none, or it can't be compared."""
    book = sources.priced
    earlier = _earlier(month)
    closed = [closed_month(ledger.folder, name) is not None for name in (month.name, earlier.name)]
    if closed == [True, False]:  # what a closed month's report says never changes
        print(f"apicost: not compared with {earlier.name}: it was not closed, and may say another cost each time",
              file=sys.stderr)  # fmt: skip
        return None
    try:
        # A closed month's book may ask for other sums than this one: there all are read, and they are few.
        sums = SUMS if closed[1] else before.sums_needed(book)
        bill = _months.bill_of(ledger, earlier, sources, sums=sums)
    except InputError as failure:  # this month's cost can be told without the other
        if not closed[1] and not ledger.usage([earlier.start_unix_s, earlier.end_unix_s], (), sums=("calls",)).num_rows:
            return None  # the ledger begins later: there is nothing to compare, and no price is missing
        print(f"apicost: not compared with {earlier.name}:\n{failure}", file=sys.stderr)
        return None
    if bill is None:
        return None
    then = bill.statement.book
    if (then.currency, then.statement_scale) != (book.currency, book.statement_scale):
        print(f"apicost: not compared with {earlier.name}: it was billed in {then.currency} with "
              f"{then.statement_scale} places", file=sys.stderr)  # fmt: skip
        return None
    return before.before_of(bill, book, sources.apis, api)


def _earlier(month: Period) -> Period:
    """The month before."""
    return period.month((month.days[0] - timedelta(days=1)).strftime("%Y-%m"), month.time_zone)


def _day_quantities(ledger: Ledger, month: Period, api: str | None) -> list[DayQuantity]:
    """What each day of a month had."""
    where = {} if api is None else {"api": api}
    found = ledger.usage(month.starts, (), where=where, sums=("calls", *WIRE_BYTES))
    rows = gather(found, month)
    calls, wire = (
        dict(zip(rows.day.tolist(), rows.of(names).tolist(), strict=True)) for names in (("calls",), WIRE_BYTES)
    )
    return [DayQuantity(day=day, calls=calls.get(i, 0), wire_bytes=wire.get(i, 0)) for i, day in enumerate(month.days)]


def _complete_days(ledger: Ledger, month: Period, daily: UsageRows, as_of: date | None) -> int | None:
    """How many days of the month are complete, where its data end before it does; None where they don't.

    The last day with data is complete where they reach into its last hour, or where its month ends with it.
    Raises InputError for a day that is not of the month.
    """
    if as_of is not None:
        if as_of not in month.days:
            raise _months.error("--as-of", f"{as_of} is no day of {month.name}", "nothing is written",
                                f"name one of {month.days[0]} to {month.days[-1]}, or leave it out")  # fmt: skip
        known = month.days.index(as_of) + 1
        return known if known < len(month.days) else None
    span = ledger.span()
    busy = daily.day[daily.of(("calls", *WIRE_BYTES)) > 0]
    if not len(busy) or span is None or span[1] >= month.end_unix_s:
        return None
    last = int(busy.max())
    if last == len(month.days) - 1:
        return None
    end = month.starts[last + 1]
    return last + 1 if ledger.usage([end - HOUR_S, end], (), sums=("calls",)).num_rows else last


def _findings(ledger: Ledger, sources: _months.Sources, statement: Statement, api: str | None) -> Outcome | None:
    """What the traffic does that the documents do not say; None where no document is known."""
    if sources.config is None or not any(settings.documents for settings in sources.config.apis):
        return None
    _months.say("holding the traffic against the documents")
    try:
        return _conformance.of_month(ledger, sources.config, statement, api)
    except InputError as failure:  # money does not wait for a document to be mended
        print(f"apicost: the report has no conformance section:\n{failure}", file=sys.stderr)
        return None


def write(
    bill: Bill, figures: monthly.Figures, out: Path, formats: list[str], found: Outcome | None = None
) -> list[Path]:
    """Write the files of a report; returns their paths. Raises InputError where the folder can't be written."""
    statement = bill.statement
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if "html" in formats or "pdf" in formats:
            view = page.view(found) if found else None
            text = render.html(figures, view)
            if "html" in formats:
                written.append(out / "report.html")
                durable.write_bytes(written[-1], text.encode())
            if "pdf" in formats:
                _months.say("laying out the PDF")
                written.append(out / "report.pdf")
                durable.write_bytes(written[-1], pdf.pdf(text))
        if "json" in formats:
            written.append(out / "report.json")
            durable.write_bytes(written[-1], render.as_json(figures, as_data(found) if found else None).encode())
        if "xlsx" in formats:
            written.append(out / "charges.xlsx")
            rows = charges.charges(bill, figures.apis, figures.api)
            progress = _terminal.Progress(written[-1].name, rows.count)
            xlsx.write(rows, written[-1], progress.seen, summary.of_bill(bill, figures.api))
            progress.end()
        if "csv" in formats:
            _months.say(f"writing {figures.charges:,} charges")
            written += [out / "charges.csv", out / "usage.csv", out / "days.csv"]
            export.write_charges(bill, written[-3], figures.apis, figures.api)
            export.write_usage([statement.usage], statement.period, written[-2], figures.api)
            days = render.day_table(figures)
            csvfile.write(written[-1], days.column_names, [days])
            if found:
                written.append(out / "findings.csv")
                durable.write_bytes(written[-1], render_findings(found, "csv").encode())
    except OSError as failure:
        raise _months.error(str(out), f"can't be written: {failure.strerror}", "the report is not complete",
                            "name a folder that can be written, with space left") from None  # fmt: skip
    return written
