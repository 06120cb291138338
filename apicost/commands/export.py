"""`apicost export`: a month's usage, charges, FOCUS rows or journal, in one or more formats."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apicost.commands import _closed, _lots, _months, _terminal
from apicost.core import records
from apicost.core.rating import rate
from apicost.core.rating.bill import Bill
from apicost.core.rating.period import Period
from apicost.core.rating.usage_rows import KEYS, UsageRows, gather
from apicost.report import export, journal
from apicost.report.focus.columns import VERSIONS
from apicost.report.focus.lint import Finding
from apicost.report.focus.rows import left_out
from apicost.report.tables import charges, focus, summary
from apicost.report.tables.formats import FORMATS, write
from apicost.report.tables.rows import Rows
from apicost.report.tables.xlsx import About
from apicost.store.query import Ledger, TooManyRows

DESCRIPTION = """Write a month's figures as files that add up to the last cent. The same ledger gives the same bytes,
whatever the format; a closed month's files never change.

  usage     what was measured, by API, operation, route, service, consumer, status class and scope
  charges   what it cost: one row for each of these and each price, and the month's corrections
  focus     the charges as FOCUS cost and usage, for FinOps tools
  journal   the charges as a Beancount journal, for accounting

formats of usage, charges and focus:
  csv       UTF-8, plain decimals, no cell that a spreadsheet takes for a formula
  parquet   amounts as exact decimals, counts as integers, times as timestamps
  xlsx      a summary and one sheet per API, numbers and dates as such
  json      one array, one object per line, amounts as text

The format is that of FILE's suffix, else csv. With a list of formats, FILE is written with each suffix.
All but usage need a price book. Rows are for the month, or for each part of it between two price changes, so that
usage and charges match row by row; `--by day` gives usage by day instead. Without a price book, months and days are
those of UTC."""

EPILOG = """examples:
  apicost export usage --month 2026-11 -c apicost.yaml -o usage.csv
  apicost export usage --month 2026-11 -c apicost.yaml --by day -o days.csv
  apicost export charges --month 2026-11 -c apicost.yaml --format csv,parquet,xlsx -o charges-2026-11
  apicost export focus --month 2026-11 -c apicost.yaml --focus-version 1.4 -o focus.parquet
  apicost export journal --month 2026-11 --ledger /var/lib/apicost/ledger --prices prices.yaml -o apis.beancount

exit codes: 0 written, 1 written, but FOCUS rows break a rule (each is told), 2 an option, configuration or price
book is wrong, 3 the month has no usage"""

JOURNAL = "beancount"
_ALL = (*FORMATS, JOURNAL)


def main(argv: list[str]) -> int:
    """Run the command. Raises InputError for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="apicost export", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=("usage", "charges", "focus", "journal"))
    _months.add_options(parser)
    parser.add_argument("--api", metavar="ID", help="only this API's rows")
    parser.add_argument("--by", choices=("month", "day"), default="month", help="grain of usage (default: month)")
    parser.add_argument("--format", metavar="LIST", help=f"of {','.join(FORMATS)} (default: FILE's suffix, else csv)")
    parser.add_argument("--focus-version", choices=VERSIONS, help="of FOCUS (default: 1.2)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    options = parser.parse_args(argv)
    files = _files(options.what, options.output, options.format)
    if options.what != "usage" and options.by != "month":
        raise _terminal.error("--by", f"{options.what} is by month", "nothing is written",
                              "remove it, or export usage")  # fmt: skip
    if options.what != "focus" and options.focus_version:
        raise _terminal.error("--focus-version", f"{options.what} is not FOCUS", "nothing is written",
                              "remove it, or export focus")  # fmt: skip
    sources = _months.sources(options)
    book = sources.book if options.what == "usage" else sources.priced
    month = _months.month_of(options.month, book)
    most = _lots.MOST_KEYS if list(files) == ["csv"] and options.what != "focus" else None
    with _months.open_ledger(sources.ledger) as ledger:
        try:
            if options.what == "usage":
                made = _usage(ledger, month, sources, options.api, options.by == "day", most)
            else:
                made = _costs(ledger, month, sources, options, most)
        except TooManyRows:
            made = _in_lots(ledger, month, sources, options)
        if made is None:
            return _months.no_data(month.name, sources.ledger)
        if not made.has_rows:
            print(f"apicost: API {options.api!r} has no usage in {month.name}", file=sys.stderr)
            return 3
        for name, path in files.items():
            written = _write(made, name, path)
            print(f"{path}: {written:,} rows", file=sys.stderr)
        for damage in ledger.damaged:
            print(f"apicost: part of the ledger could not be read: {damage}", file=sys.stderr)
    for note in (*made.notes, *made.findings):
        print(f"apicost: {note}", file=sys.stderr)
    return int(any(finding.rule.is_error for finding in made.findings))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What is written. special: what writes a format otherwise than its rows are written, by the format's name."""

    rows: Rows | None = None
    about: About | None = None
    special: dict[str, Callable[[Path, Callable[[int], None]], int]] = field(default_factory=dict)
    has_rows: bool = True
    count: int | None = None
    notes: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)  # what the linter says of what was written


def _files(what: str, output: Path, asked: str | None) -> dict[str, Path]:
    """The file of each format that is asked for. Raises InputError for one that can't be."""
    suffix = output.suffix[1:].lower()
    told = suffix if suffix in _ALL else None
    default = JOURNAL if what == "journal" else told or "csv"
    formats = list(dict.fromkeys(name.strip().lower() for name in (asked or default).split(",") if name.strip()))
    able = (JOURNAL,) if what == "journal" else FORMATS
    if not formats or (unknown := [name for name in formats if name not in able]):
        fact = f"{what} has no format {', '.join(unknown)}" if formats else "no format is named"
        place = "--format" if asked else str(output)
        raise _terminal.error(place, fact, "nothing is written", f"use {','.join(able)}")
    if len(formats) == 1:
        if told and told != formats[0]:
            other = ", or remove --format" if asked and what != "journal" else ""
            raise _terminal.error(
                str(output), f"ends in .{suffix}, but the format is {formats[0]}", "nothing is written",
                f"name the file {output.with_suffix('.' + formats[0]).name}{other}",
            )  # fmt: skip
        return {formats[0]: output}
    base = output.with_suffix("") if told else output
    return {name: base.with_name(f"{base.name}.{name}") for name in formats}


def _write(made: _Made, name: str, path: Path) -> int:
    progress = _terminal.Progress(path.name, made.count)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in made.special:
            return made.special[name](path, progress.seen)
        assert made.rows is not None and made.about is not None, name
        return write(name, made.rows, path, progress.seen, made.about)
    except OSError as failure:
        raise _terminal.error(str(path), f"can't be written: {failure.strerror or failure}", "there is no export",
                              "name a file that can be written, with space left") from None  # fmt: skip
    finally:
        progress.end()


def _in_lots(ledger: Ledger, month: Period, sources: _months.Sources, options: argparse.Namespace) -> _Made:
    """What is made of a month that can't be held at once."""
    api = options.api
    has_rows = api is None or bool(
        ledger.usage((month.start_unix_s, month.end_unix_s), (), where={"api": api}).num_rows
    )

    def write_csv(path: Path, _: Callable[[int], None]) -> int:
        if options.what == "usage":
            return _lots.write_usage(ledger, month, sources.book, path, api)
        return _lots.write_charges(ledger, month, sources, path, api)

    return _Made(special={"csv": write_csv}, has_rows=has_rows)


def _costs(
    ledger: Ledger, month: Period, sources: _months.Sources, options: argparse.Namespace, most: int | None
) -> _Made | None:
    """What is made of the month's bill; None where there is none. Raises TooManyRows for more usage than `most`."""
    if options.what == "charges":
        bill = _months.bill_of(ledger, month, sources, sums=rate.sums_needed(sources.priced), most=most)
    else:
        bill = _months.bill_of(ledger, month, sources)
    if bill is None:
        return None
    api, apis = options.api, sources.apis
    of_charges = charges.charges(bill, apis, api)
    has_rows = bool(of_charges.count)
    if options.what == "journal":
        count = of_charges.count
        return _Made(
            special={JOURNAL: lambda path, _: _journal(bill, path, sources, api)}, has_rows=has_rows, count=count
        )
    if options.what == "focus":
        version = options.focus_version or VERSIONS[0]
        findings: list[Finding] = []
        rows = focus.focus(bill, apis, version, sources.focus, api, findings.extend)
        notes = tuple(
            f"{count:,} charges without a price have no row in FOCUS: {what}, {why}"
            for (what, why), count in sorted(left_out(bill).items())
        )
        about = summary.of_focus(bill, version, api)
        return _Made(rows=rows, about=about, has_rows=has_rows, notes=notes, findings=findings)
    return _Made(
        rows=of_charges, about=summary.of_bill(bill, api), has_rows=has_rows, count=of_charges.count,
        special={"csv": lambda path, seen: export.write_charges(bill, path, apis, api, seen)},
    )  # fmt: skip


def _journal(bill: Bill, path: Path, sources: _months.Sources, api: str | None) -> int:
    try:
        return journal.write(bill, path, sources.apis, api)
    except ValueError as failure:
        raise _terminal.error("--prices", str(failure), "there is no journal",
                              "use a currency of capital letters, such as EUR") from None  # fmt: skip


def _usage(
    ledger: Ledger, month: Period, sources: _months.Sources, api: str | None, by_day: bool, most: int | None
) -> _Made | None:
    """What is made of the month's usage; None where there is none. Raises TooManyRows for more than `most`."""
    lots: Callable[[], Iterator[UsageRows]]
    if by_day:
        # One day after the other, so that a month of any size fits.
        source = _closed.source_of(ledger, month)
        keys = source.usage((month.start_unix_s, month.end_unix_s), ("api",), sums=("calls",))

        def lots() -> Iterator[UsageRows]:
            return (gather(source.usage(edges, KEYS), month) for edges in itertools.pairwise(month.starts))
    else:
        found = _months.read_rows(ledger, month, sources.book, most=most)
        if found is None:
            return None
        keys = found.keys

        def lots() -> Iterator[UsageRows]:
            return iter([found])

    if not len(keys):
        return None
    codes, values = records.codes(keys, "api")
    apis = {values[code] if code >= 0 else None for code in set(codes.tolist())}
    return _Made(
        rows=charges.usage(lots, month, api, apis), about=summary.of_usage(month, api),
        has_rows=api is None or api in apis,
        special={"csv": lambda path, seen: export.write_usage(lots(), month, path, api, seen)},
    )  # fmt: skip
