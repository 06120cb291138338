"""What report, export and explain have in common: which ledger, which prices, which month."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from apicost import config, durable
from apicost.catalog import prices
from apicost.commands import _closed
from apicost.commands._closed import source_of
from apicost.commands._terminal import error, say
from apicost.core import records
from apicost.core.rating import days, period
from apicost.core.rating.bill import Bill
from apicost.core.rating.days import keys_needed
from apicost.core.rating.period import Period
from apicost.core.rating.pricebook import PriceBook
from apicost.core.rating.statement import CHARGE, Statement
from apicost.core.rating.usage_rows import SUMS, UsageRows, gather
from apicost.report.export import ApiInfo
from apicost.report.focus.settings import FocusSettings
from apicost.store.catalogue import CATALOGUE, LedgerError
from apicost.store.closed import ClosedMonth, closed_month, closed_months
from apicost.store.query import Ledger

__all__ = ["error", "say", "source_of"]  # said by commands as parts of this module

DEFAULT_CONFIG = Path("apicost.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a month comes from. book, config: None where none is named.

    book, apis, focus: of a closed month those that it was closed with, whatever the options and the configuration say
    now; but for the invoice, which comes later.
    """

    ledger: Path
    book: PriceBook | None
    apis: Mapping[str, ApiInfo]
    config: config.Config | None = None
    focus: FocusSettings = field(default_factory=FocusSettings)

    @property
    def priced(self) -> PriceBook:
        """The price book. Raises InputError where none is named."""
        if self.book is None:
            raise error("--prices", "no price book is named", "no cost can be said", "add --prices FILE, or prices: "
                         "FILE to apicost.yaml")  # fmt: skip
        return self.book


def add_options(parser: argparse.ArgumentParser, *, month: bool = True, named: bool = True) -> None:
    """The options that say which ledger, prices and month. month: needed; named: there is such an option at all."""
    parser.add_argument("-c", "--config", type=Path, help=f"apicost.yaml (default: ./{DEFAULT_CONFIG} if it is there)")
    parser.add_argument("--ledger", type=Path, help="the ledger's folder; without a configuration this is needed")
    parser.add_argument("--prices", type=Path, help="price book; replaces the configuration's")
    if named:
        parser.add_argument(
            "--month", required=month, metavar="YYYY-MM", help="calendar month of the price book's time zone"
        )


def sources(options: argparse.Namespace) -> Sources:
    """Ledger, price book and APIs as the options say. Raises InputError with every problem."""
    file = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() and not options.ledger else None)
    settings = config.load(file) if file else None
    folder = options.ledger or (settings.ledger_dir if settings else None)
    if folder is None:
        raise error(
            "--ledger", "no ledger is named", "there is nothing to read", "add --ledger PATH or -c apicost.yaml"
        )
    if not (folder / CATALOGUE).exists() and (folder / "ledger" / CATALOGUE).exists():
        folder = folder / "ledger"  # the daemon's state folder was named
    file = options.prices or (settings.prices if settings else None)
    apis = {
        api.id: ApiInfo(title=api.title, owner=api.owner, team=api.team, tags=dict(api.tags))
        for api in (settings.apis if settings else ())
    }
    focus = settings.focus if settings else FocusSettings()
    if (closed := _closed_month(folder, getattr(options, "month", None))) is not None:
        if options.prices:
            print(f"apicost: {closed.month} is closed: it is shown with the price book and the APIs' owners of then",
                  file=sys.stderr)  # fmt: skip
        focus = _closed.focus_of(closed, focus.invoice_id)
        return Sources(
            ledger=folder, book=_closed.book_of(closed), apis=_closed.apis_of(closed), config=settings, focus=focus
        )
    book = prices.load(file) if file else None
    return Sources(ledger=folder, book=book, apis=apis, config=settings, focus=focus)


def _closed_month(folder: Path, month: str | None) -> ClosedMonth | None:
    try:
        return closed_month(folder, month) if month else None
    except LedgerError as failure:
        raise error(str(folder), str(failure), "the month is not shown", "run `apicost verify`") from None


def month_of(name: str, book: PriceBook | None, place: str = "--month") -> Period:
    """The month of an option. Raises InputError where it is none."""
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", name) or name < "0001-01":
        raise error(place, f"{name!r} is not a month", "nothing is written", "write YYYY-MM, such as 2026-11")
    return period.month(name, book.time_zone if book else "UTC")


@contextlib.contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger. Raises InputError where there is none or it can't be read."""
    try:
        with Ledger.open(folder) as ledger:
            yield ledger
    except LedgerError as failure:
        raise error(
            str(folder), str(failure), "there is nothing to read", "name the ledger's folder: --ledger PATH"
        ) from None
    except OSError as failure:
        raise error(str(folder), f"can't be read or written: {failure}", "the month is not written whole",
                     "mend what the message says") from None  # fmt: skip


def read_rows(
    ledger: Ledger, month: Period, book: PriceBook | None, *, sums: Sequence[str] = SUMS, most: int | None = None
) -> UsageRows | None:
    """The month's usage by key, cut where a price of the book changes; None where there is none.

    sums: the columns that are asked for; `rate.sums_needed` names those that charges are made from.
    most: TooManyRows is raised where an open month has more rows.
    """
    source = source_of(ledger, month)
    rows = _closed.rows_of(source, month, book and _closed.with_models(source, month, book), sums, most)
    return rows if len(rows.key) else None


def read_days(ledger: Ledger, month: Period, book: PriceBook) -> UsageRows:
    """The month's usage by day, with the keys and sums alone that the cost by day depends on."""
    source = source_of(ledger, month)
    return gather(source.usage(month.starts, keys_needed(book), sums=days.sums_needed(book)), month)


def completeness(ledger: Ledger, month: Period) -> dict[str, int]:
    """How complete the month's data is, as `Ledger.completeness`; of a closed month as it was then."""
    closed = closed_month(ledger.folder, month.name)
    return closed.completeness if closed else ledger.completeness(month.start_unix_s, month.end_unix_s)


def write_text(text: str, path: Path | None, effect: str) -> None:
    """Write to a file, or to standard output where none is named. effect: what it means that it can't be written.

    Raises InputError.
    """
    if path is None:
        sys.stdout.write(text)
        return
    try:
        durable.write_bytes(path, text.encode("utf-8", errors="replace"))
    except OSError as failure:
        fix = "name a file in a folder that can be written"
        raise error(str(path), f"can't be written: {failure.strerror}", effect, fix) from None


def no_data(month: str, folder: Path) -> int:
    """Says that a month has no usage; the exit code for too little data."""
    print(f"apicost: the ledger {folder} has no usage in {month}", file=sys.stderr)
    return 3


def statement_of(ledger: Ledger, month: Period, book: PriceBook, *, sums: Sequence[str] = SUMS) -> Statement | None:
    """The month rated with a book; None where it has no usage. sums: as in `read_rows`.

    Raises InputError where an exchange rate is missing.
    """
    statement = _closed.statement_of(source_of(ledger, month), month, book, sums)
    return statement if len(statement.usage.key) else None


def bill_of(
    ledger: Ledger, month: Period, sources: Sources, *, sums: Sequence[str] = SUMS, most: int | None = None
) -> Bill | None:
    """What the month bills: its statement, and the corrections of closed months that fall to it.

    A closed month is what was booked. sums, most: as in `read_rows`.
    None where it has neither usage nor corrections, nor, as the month after the last closed one, fixed costs.
    Raises InputError where an exchange rate is missing, where this program does not come to what was booked, or where
    the price book can't be held against what was.
    """
    if (closed := closed_month(ledger.folder, month.name)) is not None:
        return _closed.bill_of(closed, sums)
    statement = _closed.statement_of(ledger, month, sources.priced, sums, most)
    corrections = corrections_of(ledger, month, sources.priced)
    # A month that can be closed next bills its fixed costs without any usage, too; of any other month it means nothing.
    is_next = _closed.open_month(closed_months(ledger.folder)) == month.name and len(statement)
    if not len(statement.usage.key) and not len(corrections) and not is_next:
        return None
    return Bill(statement=statement, corrections=corrections)


def corrections_of(ledger: Ledger, month: Period, book: PriceBook) -> pa.Table:
    """The corrections of closed months that fall to an open one; columns as in CHARGE."""
    months = closed_months(ledger.folder)
    if _closed.open_month(months) != month.name:
        return records.empty(CHARGE)
    corrected = _closed.corrections(ledger, months, book)
    for name, days_gone in corrected.forgotten.items():
        print(f"apicost: the ledger knows less of {days_gone} days of {name} than when it was closed: what was booked "
              "of these days stands", file=sys.stderr)  # fmt: skip
    return corrected.rows
