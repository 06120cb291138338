"""`apicost report`: the month as a page to forward, and the CSV files that its figures come from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apicost import durable
from apicost.commands import _conformance, _months
from apicost.core.rating.bill import Bill
from apicost.core.rating.statement import Statement
from apicost.problems import InputError
from apicost.report import csvfile, export, monthly, pdf, render
from apicost.report.conformance import page
from apicost.report.conformance.formats import render as render_findings
from apicost.report.conformance.outcome import Outcome, as_data
from apicost.store.query import Ledger

DESCRIPTION = """Write what a month cost, by API, operation, consumer and day.

Files in the folder of --out (one folder per month: they are overwritten):
  report.html   one page, self-contained, printable
  charges.csv   every charge: bearer, SKU, quantity, unit price, list cost, billed cost
  usage.csv     the usage they were made from
  days.csv      the cost by day
  findings.csv  what the traffic does that the OpenAPI documents do not say (with -c apicost.yaml)
  report.pdf    the same page for A4 (--format pdf)
  report.json   the page's figures for programs (--format json)

The month is one of the price book's time zone. A running daemon is not disturbed."""

EPILOG = """examples:
  apicost report --month 2026-11 -c apicost.yaml --out reports/2026-11
  apicost report --month 2026-11 --ledger /var/lib/apicost/ledger --prices prices.yaml --api shop --out shop-2026-11

exit codes: 0 written, 2 an option, configuration or price book is wrong, 3 the month has no usage"""

FORMATS = ("html", "pdf", "csv", "json")


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost report", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _months.add_options(parser)
    parser.add_argument("--api", metavar="ID", help="only this API's part of the statement")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files; made if needed")
    parser.add_argument("--format", default="html,csv", metavar="LIST", help="of html,pdf,csv,json (default: html,csv)")
    options = parser.parse_args(argv)
    formats = [name.strip() for name in options.format.split(",") if name.strip()]
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise _months.error(
            "--format", f"unknown: {', '.join(unknown)}", "nothing is written", f"use {','.join(FORMATS)}"
        )
    sources = _months.sources(options)
    book = sources.priced
    month = _months.month_of(options.month, book)
    with _months.open_ledger(sources.ledger) as ledger:
        statement = _months.statement_of(ledger, month, book)
        if statement is None:
            return _months.no_data(month.name, sources.ledger)
        if options.api is not None and not export.keys_of(statement.keys, options.api).any():
            print(f"apicost: API {options.api!r} has no usage in {month.name}", file=sys.stderr)
            return 3
        figures = monthly.figures(
            statement,
            _months.read_days(ledger, month, book),
            apis=sources.apis,
            completeness=ledger.completeness(month.start_unix_s, month.end_unix_s) or None,
            previous=None if options.api else _months.total_before(ledger, month, book),
            damaged=[str(damage) for damage in ledger.damaged],
            api=options.api,
        )
        found = _findings(ledger, sources, statement, options.api)
    written = write(statement, figures, options.out, formats, found)
    print(render.View(figures).summary, file=sys.stderr)
    for path in written:
        print(path)
    return 0


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
    statement: Statement, figures: monthly.Figures, out: Path, formats: list[str], found: Outcome | None = None
) -> list[Path]:
    """Write the files of a report; returns their paths. Raises InputError where the folder can't be written."""
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
        if "csv" in formats:
            _months.say(f"writing {figures.charges:,} charges")
            written += [out / "charges.csv", out / "usage.csv", out / "days.csv"]
            export.write_charges(Bill(statement=statement), written[-3], figures.apis, figures.api)
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
